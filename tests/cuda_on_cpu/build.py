"""Compiles drivers/<name>.cpp, once per content, into a shared library per build."""

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import ahead

HERE = Path(__file__).parent
CSRC = Path(os.environ.get("FASTSEG_CUDA_ON_CPU_CSRC", HERE.parent.parent / "csrc"))  # delete_barriers.py sets it
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra"]
FLAGS += ["-fno-strict-aliasing"]  # as nvcc
FLAGS += ["-fvisibility=hidden", "-fno-gnu-unique"]  # two builds in one process share no variables
# Each build looks for other faults: see README.md.
BUILDS = {
    "plain": ["-ftrivial-auto-var-init=pattern"],
    "race": ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}
LINKED_WITH = {"plain": [], "race": [], "memory": ["-fsanitize=address,undefined"]}  # races.h stands in for libtsan


@functools.cache
def cuda_headers():
    """The folder of cuda_fp16.h and its like, or None: a CUDA toolkit's, or those that come with Triton."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home, "include") for home in homes if home]
    if triton := importlib.util.find_spec("triton"):
        folders.append(Path(triton.origin).parent / "backends/nvidia/include")
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


@functools.cache
def sanitizer():
    """What a process must have loaded first to run the memory build: AddressSanitizer's library, and then C++'s, whose
    `throw` it looks for as it starts."""
    ask = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in ask]


@functools.cache
def why_not():
    """Why no driver can be built or run here, or None."""
    if os.uname().machine != "x86_64":
        return "fiber.h switches stacks on x86-64 only"
    if not shutil.which("g++"):
        return "there is no g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.split(".")[0]) < 12:
        return f"g++ {version} cannot poison registers; 12 can"
    if not cuda_headers():
        return "CUDA's headers were not found; set CUDA_HOME"
    if not all(map(os.path.isabs, sanitizer())):  # g++ repeats the name of a file that it does not have
        return "g++ has no AddressSanitizer library"
    return None


def sources(file):
    """A file and all of ours that it includes."""
    found, left = {}, [Path(file)]
    while left:
        path = left.pop()
        if path in found:
            continue
        found[path] = path.read_bytes()
        for name in re.findall(rb'^#include "(.+)"', found[path], re.M):
            candidates = [folder / name.decode() for folder in (path.parent, CSRC, HERE)]
            left += [path for path in candidates if path.exists()][:1]
    return found


@functools.cache
def cache():
    """Where libraries are kept between runs."""
    folder = Path(tempfile.gettempdir(), f"fastseg_cuda_on_cpu_{os.getuid()}")
    folder = Path(os.environ.get("FASTSEG_CUDA_ON_CPU_CACHE", folder))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to someone else; set FASTSEG_CUDA_ON_CPU_CACHE")
    return folder


@functools.cache
def library(driver, build):
    """The path of a driver's library. Two processes may build it at once: the last to finish replaces an equal file."""
    source = HERE / f"drivers/{driver}.cpp"
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((compiler, cuda_headers().resolve(), FLAGS, BUILDS[build], LINKED_WITH[build])).encode())
    for path, text in sorted(sources(source).items()):
        key.update(path.name.encode() + text)
    result = cache() / f"{driver}-{build}-{key.hexdigest()[:16]}.so"
    if result.exists():
        return result
    include = [f"-I{CSRC}", f"-I{HERE}", "-isystem", cuda_headers()]
    if not (cuda_headers() / "nv/target").exists():
        include += ["-isystem", HERE / "without_toolkit"]
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        objects, shared = f"{work}/driver.o", f"{work}/driver.so"
        run(["g++", *FLAGS, *BUILDS[build], *include, "-c", source, "-o", objects])
        run(["g++", "-shared", "-Wl,-Bsymbolic,-z,defs", *LINKED_WITH[build], objects, "-o", shared])
        os.replace(shared, result)
    return result


def run(command):
    done = ahead.run(command)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
