"""What every GPU kernel needs of a GPU, read from its machine code; no GPU needed.

CUDA kernels are read from the built library; Triton kernels are compiled for each architecture, in every launch that
their file's launches() lists. `fastseg info --kernels` prints the table; `python -m fastseg.bench.resources` writes it
to bench/KERNELS.md.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import fastseg
from fastseg import dispatch
from fastseg.bench.formats import markdown

TRITON_ARCHS = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block can have
LEAST_SHARED_LIMIT = 99 * 1024  # of any GPU from sm_80 on
REGISTER_FILE = 65536  # registers of a multiprocessor, so the most a block can have
# Matrix products of sm_80 and sm_90; copies to shared memory by cp.async, of boxes by TMA; ldmatrix; spills.
INSTRUCTIONS = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG", "LDSM", "LDL", "STL")


def cuobjdump():
    """NVIDIA's reader of machine code: the one that triton brings, or one on PATH; None without."""
    triton = importlib.util.find_spec("triton")
    bundled = triton and Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")


def read(path):
    """One dict per kernel and architecture in a library or cubin: arch, kernel, registers, stack, shared, wide_loads
    (16 bytes from global memory), loop_shared (of `shared_in_loops`) and the counts of INSTRUCTIONS."""
    found = {}
    arch = kernel = None
    for line in _dump("--dump-resource-usage", path):
        arch = _after(r"^arch = sm_(\w+)", line, arch)
        kernel = _after(r"^ Function (\S+):", line, kernel)
        if "STACK:" in line:
            used = dict(re.findall(r"(\w+):(\d+)", line))
            found[arch, kernel] = {
                "arch": arch,
                "kernel": plain_name(kernel),
                "registers": int(used["REG"]),
                "stack": int(used["STACK"]) + int(used["LOCAL"]),
                "shared": int(used["SHARED"]),
            }
    counts = {key: Counter() for key in found}
    code = {key: [] for key in found}
    for line in _dump("--dump-sass", path):
        arch = _after(r"^\s*arch = sm_(\w+)|EF_CUDA_SM(\w+)\"", line, arch)
        kernel = _after(r"^\s*Function : (\S+)", line, kernel)
        if (arch, kernel) in counts and (
            opcode := re.search(r"^\s+/\*(\w+)\*/\s+(?:@!?U?P\w+ )?([A-Z][^\s;]*)(?:.*?\b0x(\w+))?", line)
        ):
            counts[arch, kernel][opcode[2].split(".")[0]] += 1
            counts[arch, kernel]["wide_loads"] += opcode[2].startswith("LDG") and ".128" in opcode[2]
            code[arch, kernel].append(opcode.groups())
    for key, row in found.items():
        row |= {name: counts[key][name] for name in (*INSTRUCTIONS, "wide_loads")}
        row["loop_shared"] = shared_in_loops(code[key])
        row["instructions"] = counts[key].total() - counts[key]["wide_loads"]
    return list(found.values())


def shared_in_loops(code):
    """The most loads and stores of shared memory in an innermost loop that holds an HGMMA, which needs none.

    code: (address, opcode, last operand's number or None) of each instruction, numbers in hexadecimal.
    """
    code = [(int(address, 16), opcode.split(".")[0], target) for address, opcode, target in code]
    loops = [(int(to, 16), at) for at, opcode, to in code if opcode == "BRA" and to and int(to, 16) < at]
    most = 0
    for product in (at for at, opcode, _ in code if opcode == "HGMMA"):
        around = [(at - to, to, at) for to, at in loops if to <= product <= at]
        if around:
            _, first, last = min(around)
            inside = [opcode for at, opcode, _ in code if first <= at <= last]
            most = max(most, sum(opcode in ("LDS", "STS", "LDSM") for opcode in inside))
    return most


def _dump(what, path):
    return subprocess.run([cuobjdump(), what, path], capture_output=True, text=True, check=True).stdout.splitlines()


def _after(pattern, line, otherwise):
    found = re.search(pattern, line)
    return next(filter(None, found.groups())) if found else otherwise


def plain_name(mangled):
    """The function's own name in a mangled C++ one, where each part is preceded by its length."""
    for part in re.finditer(r"\d+", mangled):
        name = mangled[part.end() : part.end() + int(part[0])]
        if name.endswith("_kernel"):
            return name
    return mangled


def of_cuda():
    """Rows of the built library; none if it holds no CUDA kernel."""
    info = fastseg.build_info()
    return [row | {"launch": ""} for row in read(info["extension"])] if info["archs"] else []


def _run(command, env):
    return subprocess.run(command, env=env, capture_output=True, text=True)


def of_triton(archs=TRITON_ARCHS, run=_run):
    """Rows of every Triton kernel in every launch. A process per architecture: an interpreting one cannot compile."""
    with ThreadPoolExecutor() as pool:
        return [row for rows in pool.map(lambda arch: _compile_elsewhere(arch, run), archs) for row in rows]


def _compile_elsewhere(arch, run):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("TRITON_INTERPRET", None)
    done = run([sys.executable, "-m", "fastseg.bench.resources", str(arch)], env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"fastseg: a Triton kernel does not compile for sm_{arch}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class NoGpu:
    """What triton asks of a driver before it compiles for a GPU that is not there."""

    def __init__(self, arch):
        from triton.backends.compiler import GPUTarget

        self.get_current_target = lambda: GPUTarget("cuda", arch, 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device=None: 0
        self.map_python_to_cpp_type = lambda kind: kind


def _compile(arch):
    from triton.runtime import driver

    driver.set_active(NoGpu(arch))
    rows = []
    written = [name for name in dispatch.ops() if not dispatch.not_written(name, "triton", "cuda")]
    for room in sorted(set(map(dispatch.kernel_room, written))):
        kernels = importlib.import_module(f"fastseg.kernels.{room}")
        only_here = getattr(kernels, f"launches_sm_{arch}", tuple)()
        for what, kernel, grid, arguments, constants in (*kernels.launches(), *only_here):
            compiled = kernel.warmup(*arguments, grid=grid, **constants)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                cubin.write(compiled.asm["cubin"])
                cubin.flush()
                (row,) = read(cubin.name)
            rows.append(row | {"arch": str(arch), "launch": what, "threads": 32 * compiled.metadata.num_warps})
            rows[-1]["shared"] = compiled.metadata.shared  # dynamic, so not in the cubin
    return rows


def table(cuda=None, triton=None):
    """The worst of each kernel and architecture over its variants, as lines of Markdown."""
    head = ("kernel", "written in", "for", "variants", "registers", "stack", "shared", "16-byte loads", "HMMA", "HGMMA")
    groups = {}
    for language, rows in (("CUDA C++", cuda or of_cuda()), ("Triton", triton or of_triton())):
        for row in rows:
            groups.setdefault((row["kernel"], language, row["arch"]), []).append(row)
    lines = []
    for (kernel, language, arch), rows in sorted(groups.items()):
        most = [max(row[key] for row in rows) for key in ("registers", "stack", "shared")]
        least = [min(row[key] for row in rows) for key in ("wide_loads", "HMMA", "HGMMA")]
        lines.append((f"`{kernel}`", language, f"sm_{arch}", len(rows), *most, *least))
    return markdown(head, lines)


def compilers():
    """The versions that decide the table."""
    return f"nvcc {fastseg.build_info()['cuda']}, triton {metadata.version('triton')}"


def page(cuda=None, triton=None):
    return "\n".join(
        [
            "# Resources of the GPU kernels",
            "",
            "Generated by `python -m fastseg.bench.resources`, without a GPU, from the machine code.",
            "Registers (per thread), stack and shared memory (bytes) are the most of any variant, instruction counts",
            "the least. A variant is a dtype (CUDA C++), or a launch that the kernel's file can choose (Triton).",
            "Shared memory of CUDA C++ kernels is what is static; on sm_90, 1024 bytes of it are the system's own.",
            "",
            f"Compilers: {compilers()}.",
            "",
            *table(cuda, triton),
            "",
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_compile(int(sys.argv[1]))))
    else:
        Path(__file__).with_name("KERNELS.md").write_text(page())
