"""Calls a function of a driver's library.

Standard library only: the memory build runs this file in a bare Python process, with AddressSanitizer loaded first.
"""

import ctypes
import pickle
import re
import subprocess
import sys

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


class Array(ctypes.Structure):
    """The struct of the same name in driver.h."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_char_p), ("sizes", ctypes.c_int64 * 6)]


def call(library, function, seed, arguments):
    """Calls function(*arguments) of a library; returns (error or None, the bytes of each array as it left them).

    Arguments are numbers, strings and arrays: (dtype, shape, bytes), dense. Each array lies in a heap block of exactly
    its size: one element beyond is AddressSanitizer's red zone.
    """
    loaded = ctypes.CDLL(str(library))
    entry = getattr(loaded, function)
    entry.restype = ctypes.c_char_p
    loaded.set_seed(ctypes.c_uint(seed))
    passed, blocks = [], []
    for argument in arguments:
        if isinstance(argument, tuple):
            dtype, shape, data = argument
            block = libc.malloc(len(data))
            ctypes.memmove(block, data, len(data))
            blocks.append((block, len(data)))
            passed.append(ctypes.byref(Array(block, dtype.encode(), (ctypes.c_int64 * 6)(*shape))))
        elif isinstance(argument, float):
            passed.append(ctypes.c_double(argument))
        else:
            passed.append(argument.encode() if isinstance(argument, str) else ctypes.c_int64(argument))
    error = entry(*passed)
    left = [ctypes.string_at(block, size) for block, size in blocks]
    for block, _ in blocks:
        libc.free(block)
    return error and with_lines(library, error.decode()), left


def with_lines(library, text):
    """ "<code 1a2b>", an address in the library, becomes "kernel.cuh:42"."""

    def line(address):
        command = ["addr2line", "-e", library, f"0x{address[1]}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return said.split()[0].rsplit("/", 1)[-1]

    return re.sub(r"<code (\w+)>", line, text)


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as job:
        result = call(*pickle.load(job))
    with open(sys.argv[1], "wb") as job:
        pickle.dump(result, job)
