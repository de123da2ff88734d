"""The one checker: every backend of this machine, on every memory layout, repeated."""

import pytest
import torch

import fastseg


def places(op):
    """(backend, device) pairs to test: all that this machine has. "triton" on "cpu" is Triton's interpreter."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [(backend, device) for device in devices for backend in fastseg.backends(op, device)]


def each_place(op):
    """Parametrises a test over places(op)."""
    return pytest.mark.parametrize("backend, device", places(op), ids=lambda value: value)


def layouts(x):
    """The same (N, C, H, W) values in every memory layout a caller may have: {name: tensor}."""
    padded = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 1, x.shape[3] + 3), float("nan")).to(x)
    sliced = padded[:, 1:-1, 1:, 2:-1]
    sliced.copy_(x)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": sliced,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


def check(call, x, backend, device, verify):
    """call(x) on one backend in every layout: verify(result) judges it; x is left alone and a repeat is bit-equal."""
    chosen = layouts(x.to(device))
    if (backend, device) == ("triton", "cpu"):  # strides are run-time numbers to Triton, and interpreting is slow
        chosen = {name: chosen[name] for name in ("channels_last", "sliced")}
    with fastseg.use_backend(backend):
        for name, given in chosen.items():
            before = given.clone()
            result = call(given)
            assert torch.equal(given.nan_to_num(), before.nan_to_num()), f"{name}: the input was written to"
            try:
                verify(result.cpu())
            except AssertionError as error:
                raise AssertionError(f"{backend} on {device}, {name}: {error}") from error
        assert torch.equal(call(given), result), "two runs differ"
