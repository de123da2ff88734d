"""What kernels that multiply matrices share on the host: the precision of products, and sums cut into parts."""

import torch
import triton

from fastseg.ops.layout import laid_out, memory_format

PROGRAMS = 264  # two for each multiprocessor of an H200: what a launch needs to keep it busy


def precision(dtype, allowed=None):
    """What products are computed in, as tl.dot names it: half precision has no choice, and is exact in either.

    allowed: to float32, by default as torch.backends.cuda.matmul says.
    """
    allowed = allowed or torch.backends.cuda.matmul.fp32_precision
    return "ieee" if dtype == torch.float32 and allowed != "tf32" else "tf32"


def shared_out(blocks, programs):
    """(parts, blocks in each part) of a sum over blocks that so many programs would compute at once.

    At least 4 blocks in a part, as the sums of all parts are written and read again.
    """
    each = max(triton.cdiv(blocks, max(PROGRAMS // max(programs, 1), 1)), 4)
    return max(triton.cdiv(blocks, each), 1), each


def empty(parts, shape, like, channels_last):
    """New memory for sums, (parts, *shape): in float32 if they are still to be added up."""
    tensor = torch.empty(
        (parts * shape[0], *shape[1:]),
        dtype=like.dtype if parts == 1 else torch.float32,
        device=like.device,
        memory_format=memory_format(channels_last),
    )
    return tensor.unflatten(0, (parts, shape[0]))


def added_up(sums, dtype, channels_last):
    """The sum over the parts, always in the same order, in that dtype and memory format."""
    total = sums.sum(0) if len(sums) > 1 else sums[0]
    if total.dtype == dtype and total.is_contiguous(memory_format=memory_format(channels_last)):
        return total
    return laid_out(total.to(dtype), channels_last)
