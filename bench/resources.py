"""What every GPU kernel needs of a GPU, read from its machine code; no GPU needed.

CUDA kernels are read from the built library; Triton kernels are compiled for each architecture, in every launch that
their file's launches() lists. `fastseg info --kernels` prints the table; `python -m fastseg.bench.resources` writes it
to bench/KERNELS.md.
"""

import bisect
import importlib
import json
import os
import re
import shutil
import struct
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
# Address, opcode, first number.
INSTRUCTION = re.compile(r"^\s+/\*(\w+)\*/\s+(?:@!?U?P\w+ )?([A-Z][^\s;]*)(?:.*?\b0x(\w+))?")


def cuobjdump():
    """NVIDIA's reader of machine code: the one that triton brings, or one on PATH; None without."""
    triton = importlib.util.find_spec("triton")
    bundled = triton and Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")


def read(path):
    """One dict per kernel and architecture in a library or cubin: arch, kernel, registers, stack, shared, wide_loads
    (16 bytes from global memory), loop_shared (of `shared_in_loops`) and the counts of INSTRUCTIONS."""
    found, code = _used(path), {}
    arch = kernel = None
    for line in _dump(cuobjdump(), "--dump-sass", path):
        arch = _after(r"^\s*arch = sm_(\w+)|EF_CUDA_SM(\w+)\"", line, arch)
        kernel = _after(r"^\s*Function : (\S+)", line, kernel)
        if instruction := INSTRUCTION.search(line):
            code.setdefault((arch, kernel), []).append(instruction.groups())
    return [row | _counts(code.get(key, [])) for key, row in found.items()]


def read_cubins(cubins, arch):
    """As read, of the bytes of cubins that hold one kernel each. The disassembler takes longer to start than to read a
    kernel, so the code of all goes through it at once."""
    rows, code, starts = [], b"", []
    for cubin in cubins:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            (row,) = _used(file.name).values()
        rows.append(row)
        starts.append(len(code))
        code += machine_code(cubin)
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        model = f"SM{arch}a" if arch >= 90 else f"SM{arch}"  # as Triton compiles
        nvdisasm = Path(cuobjdump()).with_name("nvdisasm")
        lines = _dump(nvdisasm, "--binary", model, "-hex", "-novliw", file.name)
    of_each = [[] for _ in rows]
    for line in lines:
        if instruction := INSTRUCTION.search(line):
            which = bisect.bisect_right(starts, int(instruction[1], 16)) - 1
            of_each[which].append(instruction.groups())
    return [row | _counts(instructions) for row, instructions in zip(rows, of_each, strict=True)]


def machine_code(cubin):
    """Of the one kernel in a cubin, an ELF file: its section .text.<kernel>."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    (code,) = [
        cubin[start : start + length]
        for name, _, _, _, start, length in sections
        if cubin.startswith(b".text.", sections[names][4] + name)
    ]
    return code


def _used(path):
    """{(arch, kernel): what read says of registers and memory}"""
    found = {}
    arch = kernel = None
    for line in _dump(cuobjdump(), "--dump-resource-usage", path):
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
    return found


def _counts(code):
    """What read says of instructions: (address, opcode with its suffixes, first number or None) of each."""
    counts = Counter(opcode.split(".")[0] for _, opcode, _ in code)
    return {name: counts[name] for name in INSTRUCTIONS} | {
        "wide_loads": sum(opcode.startswith("LDG") and ".128" in opcode for _, opcode, _ in code),
        "loop_shared": shared_in_loops(code),
        "instructions": len(code),
    }


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


def _dump(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


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
    cubins, launches = [], []
    written = [name for name in dispatch.ops() if not dispatch.not_written(name, "triton", "cuda")]
    for room in sorted(set(map(dispatch.kernel_room, written))):
        kernels = importlib.import_module(f"fastseg.kernels.{room}")
        only_here = getattr(kernels, f"launches_sm_{arch}", tuple)()
        for what, kernel, grid, arguments, constants in (*kernels.launches(), *only_here):
            compiled = kernel.warmup(*arguments, grid=grid, **constants)
            cubins.append(compiled.asm["cubin"])
            launches.append({"arch": str(arch), "launch": what, "threads": 32 * compiled.metadata.num_warps})
            launches[-1]["shared"] = compiled.metadata.shared  # dynamic, so not in the cubin
    return [row | launch for row, launch in zip(read_cubins(cubins, arch), launches, strict=True)]


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
