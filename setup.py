"""Builds fastseg/_C.abi3.so: CPU kernels always, CUDA kernels wherever nvcc is found (also next to a CPU-only torch).

FASTSEG_CUDA=1   fail unless the CUDA kernels are built     FASTSEG_CUDA=0     leave them out
FASTSEG_NO_EXT=1 pure Python, no compiler needed            CUDA_HOME          which toolkit
TORCH_CUDA_ARCH_LIST="8.0;9.0a+PTX"                         which GPUs (default: the one here, else sm_80, sm_90a, PTX)
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zlib
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

DEFAULT_ARCHS = ["80", "90a", "90+PTX"]  # between them they run on everything from Ampere on
TORCH_2_10 = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the oldest torch the library loads on
VERSION = re.search(r'^version = "(.+)"', Path("pyproject.toml").read_text(), re.M)[1]


def find_torch():
    """torch's extension builder, from this environment or, under build isolation, from the one pip installs into."""
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    try:
        from torch.utils import cpp_extension
    except ImportError:
        return None
    return cpp_extension


def is_toolkit(home):
    return Path(home, "bin/nvcc").exists() and Path(home, "include/cuda_runtime.h").exists()


def find_cuda_home(torch_guess):
    """The folder with bin/nvcc and the CUDA headers, or None. Stops where there is half of one."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if not is_toolkit(home):
                sys.exit(
                    f"fastseg: {variable}={home} lacks bin/nvcc or include/cuda_runtime.h (FASTSEG_CUDA=0: no CUDA)"
                )
            return home
    guesses = [torch_guess, "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):  # may be a wrapper far from its toolkit: ask it where it lives
        dryrun = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
        said = subprocess.run(dryrun, capture_output=True, text=True).stderr
        guesses += [os.path.realpath(top) for top in re.findall(r"TOP=(\S+)", said)]
    for home in filter(None, guesses):
        if is_toolkit(home):
            return home
    if nvcc:
        sys.exit(f"fastseg: {nvcc} is there, but not the headers of its toolkit; set CUDA_HOME, or FASTSEG_CUDA=0")
    return None


def visible_archs():
    """The architectures of this machine's GPUs, asked without loading a CUDA context."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    capabilities = sorted(set(re.findall(r"^(\d+\.\d)$", said, re.M)))
    return [c.replace(".", "").replace("90", "90a") for c in capabilities]


def parse_arch_list(text):
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX") as architectures: ["80", "90a", "90+PTX"]."""
    archs = []
    for item in re.split(r"[;,\s]+", text.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if not found:
            sys.exit(f"fastseg: TORCH_CUDA_ARCH_LIST must be numbers such as '8.0;9.0a+PTX', got {item!r}")
        major, minor, feature, ptx = found.groups()
        archs += [f"{major}{minor}{feature}"] + [f"{major}{minor}+PTX"] * bool(ptx)
    return archs


def gencode(arch):
    """nvcc's flag for one architecture: "90a" is machine code for it, "90+PTX" is code any later GPU compiles."""
    number, ptx = arch.removesuffix("+PTX"), arch.endswith("+PTX")
    return f"-gencode=arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"


def extension(cpp_extension):
    """The one extension, with CUDA if it is wanted and possible; stops with a sentence if it is wanted and not."""
    wanted = os.environ.get("FASTSEG_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"fastseg: FASTSEG_CUDA must be 0 or 1, got {wanted!r}")
    home = find_cuda_home(cpp_extension.CUDA_HOME) if wanted != "0" else None
    if wanted == "1" and home is None:
        sys.exit("fastseg: FASTSEG_CUDA=1, but no CUDA toolkit (nvcc and its headers) was found; set CUDA_HOME")

    import torch

    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 10):
        sys.exit(f"fastseg: building needs torch>=2.10, found {torch.__version__}")
    cxx = ["-O3", "-std=c++17", "-fvisibility=hidden", "-Wno-psabi", TORCH_2_10]
    sources = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
    include_dirs = [os.path.abspath("csrc"), *cpp_extension.include_paths("cpu")]
    library_dirs = cpp_extension.library_paths("cpu")
    nvcc, archs, toolkit, link = [], [], "none", []
    if home:
        cpp_extension.CUDA_HOME = home  # CPU-only torch leaves it None and would refuse to call nvcc
        # torch insists on its own CUDA version, for libraries that link it dynamically; this one does not.
        cpp_extension._check_cuda_version = lambda *ignored: None
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
        archs = parse_arch_list(asked) if asked else visible_archs() or DEFAULT_ARCHS
        said = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
        toolkit = re.search(r"release (\S+),", said)[1]
        nvcc = [
            "-O3",
            "-std=c++17",
            TORCH_2_10,
            "-Xcompiler=-fvisibility=hidden",
            "-Xptxas=-v",
            "--threads=2",
        ]
        nvcc += map(gencode, archs)
        # A CPU-only torch does not tell ninja which headers a CUDA file includes: a changed flag makes it compile anew.
        headers = b"".join(Path(name).read_bytes() for name in sorted(glob("csrc/**/*.*h", recursive=True)))
        nvcc.append(f"-DFASTSEG_HEADERS={zlib.crc32(headers)}")
        sources += sorted(glob("csrc/cuda/*.cu"))
        include_dirs.append(f"{home}/include")
        library_dirs += [d for d in (f"{home}/lib64", f"{home}/lib") if os.path.isdir(d)]
        # Static cudart: the library loads without CUDA, and beside any CUDA version that torch brings.
        link = ["-lcudart_static", "-lrt", "-ldl", "-lpthread", "-Wl,--exclude-libs,ALL"]
    else:
        print(f"fastseg: building CPU kernels only ({'FASTSEG_CUDA=0' if wanted == '0' else 'no nvcc found'})")
    built = f"-DFASTSEG_BUILD=version={VERSION},torch={torch.__version__},cuda={toolkit},archs={'/'.join(archs)}"
    return Extension(
        "fastseg._C",
        sources,
        depends=sorted(filter(os.path.isfile, glob("csrc/**/*", recursive=True))),  # headers too: rebuilt on change
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=["torch_cpu"],
        language="c++",
        py_limited_api=True,
        extra_compile_args={"cxx": [*cxx, built], "nvcc": nvcc},
        # libtorch.so by name, although nothing in it is used: on a CUDA torch it brings the symbols that
        # csrc/cuda/launch.h declares weak.
        extra_link_args=[*(["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"] if home else []), *link],
    )


def arguments():
    """What setup() needs beyond pyproject.toml."""
    if os.environ.get("FASTSEG_NO_EXT") == "1":
        return {}
    cpp_extension = find_torch()
    if cpp_extension is None:  # pip asks for requirements first: name torch then, and only then
        if {"bdist_wheel", "build_ext", "editable_wheel"} & set(sys.argv):
            sys.exit("fastseg: building needs torch>=2.10; install it first and turn build isolation off")
        return {"setup_requires": ["torch>=2.10"]}
    return {
        "ext_modules": [extension(cpp_extension)],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":
    setup(**arguments())
