"""What kernels that multiply matrices share on the host: the precision of products, and sums cut into parts."""

import torch
import triton

PROGRAMS = 264  # two for each multiprocessor of an H200: what a launch needs to keep it busy


def precision(dtype):
    """What products are computed in, as tl.dot names it: half precision has no choice, and is exact in either."""
    exact = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "ieee" if exact else "tf32"


def shared_out(blocks, programs):
    """(parts, blocks in each part) of a sum over blocks that so many programs would compute at once.

    At least 4 blocks in a part, as the sums of all parts are written and read again.
    """
    each = max(triton.cdiv(blocks, max(PROGRAMS // max(programs, 1), 1)), 4)
    return max(triton.cdiv(blocks, each), 1), each
