"""Random convolutions, for hypothesis."""

from hypothesis import strategies as st


def pairs(draw, least, most):
    return draw(st.tuples(st.integers(least, most), st.integers(least, most)))


@st.composite
def convolutions(draw):
    """(batch, size, kernel, stride, padding, dilation), with an output of at least 1 x 1."""
    size, kernel, stride = pairs(draw, 1, 40), pairs(draw, 1, 5), pairs(draw, 1, 3)
    dilation, padding = pairs(draw, 1, 14), pairs(draw, 0, 30)
    least = [max(0, -(-(d * (k - 1) + 1 - n) // 2)) for n, k, d in zip(size, kernel, dilation, strict=True)]
    padding = tuple(map(max, padding, least))
    return draw(st.integers(1, 9)), size, kernel, stride, padding, dilation
