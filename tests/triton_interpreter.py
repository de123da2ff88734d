"""Makes bfloat16 casts and dots exact in Triton's interpreter (3.6 to 3.9), which truncates float32 -> bfloat16 and
multiplies raw bits in tl.dot.

Known and left: arithmetic, comparisons and reductions of bfloat16 blocks compute on raw bits, so kernels widen to
float32 first, as they should anyway; tl.dot ignores tf32 (it computes float32); tl.max and tl.maximum drop NaN unless
told not to.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widen(bits):
    """bfloat16 bits (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values):
    """float32 as bfloat16 bits, rounded to nearest even; every NaN becomes the quiet one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def make_bfloat16_exact():
    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot
    handle = interpreter.TensorHandle

    def exact_cast(self, source, to):
        given, wanted = source.dtype.scalar, to.scalar
        if given == tl.bfloat16 and wanted != tl.bfloat16:
            return handle(widen(source.data).astype(interpreter._get_np_dtype(to)), wanted)
        if wanted == tl.bfloat16 and given != tl.bfloat16:
            return handle(narrow(source.data.astype(np.float32)), wanted)
        return cast(self, source, to)

    def exact_dot(self, a, b, accumulator, *options):
        a, b = (handle(widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, accumulator, *options)

    builder.cast_impl, builder.create_dot = exact_cast, exact_dot
