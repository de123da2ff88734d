"""bfloat16 in Triton's interpreter, as tests/triton_interpreter.py mends it, against torch."""

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted")

# Halfway between two bfloat16 (to even: down, then up), just beside halfway, the largest, subnormal, special.
HARD = [
    1.00390625,
    1.01171875,
    1.00390637,
    1.0039061,
    -1.01171875,
    3.4e38,
    1e-40,
    0.0,
    -0.0,
    float("inf"),
    float("nan"),
]


@triton.jit
def cast_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr + offs, x.to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    at = offs[:, None] * N + offs[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def test_rounds_to_nearest_even():
    x = torch.cat([torch.tensor(HARD), torch.randn(100)])
    y = torch.empty(len(x), dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, len(x), BLOCK=128)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_widens_exactly():
    x = torch.cat([torch.tensor(HARD), torch.randn(100)]).bfloat16()
    y = torch.empty(len(x))
    cast_kernel[(1,)](x, y, len(x), BLOCK=128)
    torch.testing.assert_close(y, x.float(), rtol=0, atol=0, equal_nan=True)


def test_dot_multiplies_values_not_bits():
    """Whole numbers small enough for the sums to be exact."""
    a, b = (torch.randint(-8, 9, (16, 16)).bfloat16() for _ in range(2))
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c, N=16)
    assert torch.equal(c, a.float() @ b.float())
