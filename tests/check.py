"""The checkers: every backend of this machine, on every memory layout, repeated."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fastseg

INTERPRETER = ("triton", "cpu")
NOT_COMPILED = (INTERPRETER, ("reference", "cpu"), ("reference", "cuda"))
IN_INTERPRETER = ("channels_last", "sliced")  # enough there, as it is slow and strides are run-time numbers to Triton


def places(op):
    """(backend, device) pairs to test: all that this machine has. "triton" on "cpu" is Triton's interpreter."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [(backend, device) for device in devices for backend in fastseg.backends(op, device)]


def each_place(op, without=()):
    """Parametrises a test over places(op)."""
    chosen = [place for place in places(op) if place not in without]
    return pytest.mark.parametrize("backend, device", chosen, ids=lambda value: value)


def layouts(x):
    """The same (N, C, H, W) or (N, H, W) values in every memory layout a caller may have: {name: tensor}."""
    if x.dim() == 0:
        return {"scalar": x}
    if x.dim() == 3:
        return {name: y[:, 0] for name, y in layouts(x[:, None]).items()}
    padded = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 1, x.shape[3] + 3), float("nan")).to(x)
    sliced = padded[:, 1:-1, 1:, 2:-1]
    sliced.copy_(x)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": sliced,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


def far_apart(x, axis):
    """x, of length 2 along `axis`, with a stride of 2^31 there. numpy's zeros take no memory until they are touched."""
    strides = list(x.contiguous().stride())
    strides[axis] = 2**31
    zeros = np.zeros(2**31 + x.numel(), torch.empty(0, dtype=x.dtype).numpy().dtype)
    return torch.from_numpy(zeros).to(x.device).as_strided(x.shape, strides).copy_(x)


def check(call, x, backend, device, verify):
    """call(x) on one backend in every layout: verify(result) judges it; x is left alone and a repeat is bit-equal."""
    chosen = layouts(x.to(device))
    if (backend, device) == INTERPRETER:
        chosen = {name: chosen[name] for name in IN_INTERPRETER}
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


def value_and_grad(f, x, upstream=None):
    """f(x) and its gradient, of the sum of f(x) if no other gradient comes in."""
    x = x.detach().requires_grad_()
    y = f(x)
    upstream = torch.ones_like(y) if upstream is None else upstream.to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, upstream)[0]


def results(f, tensors, upstream):
    """[f(*tensors), gradients ...]"""
    tensors = [x.detach().requires_grad_() for x in tensors]
    output = f(*tensors)
    return [output.detach(), *torch.autograd.grad(output, tensors, upstream.to(output.dtype))]


def check_differentiable(ours, theirs, x, backend, device, roundings, expanded=False):
    """ours(x) and its gradient on one backend, in every layout of x and of the gradient that comes in.

    theirs(x) is PyTorch's own on the CPU: in float64 it is the truth, in x's dtype it tells what errors are usual.
    `roundings` lie between an input and a result in float32: granted, as PyTorch may be exact by luck in a small case.
    The gradient that comes in is random; `expanded` makes it one number per image or channel, as a sum or mean does.
    x is left alone, a repeat is bit-equal, and what has four axes comes in the memory format of x.
    """
    upstream = torch.randn_like(theirs(x))
    upstream = upstream[..., :1, :1].expand_as(upstream) if expanded else upstream
    known = [value_and_grad(theirs, x.to(dtype), upstream) for dtype in (torch.float64, x.dtype, torch.float32)]
    value, gradient = zip(*known, strict=True)
    interpreted = (backend, device) == INTERPRETER
    for name, given, coming in arriving(x.to(device), upstream.to(device), expanded, interpreted):
        before = given.clone(), coming.clone()
        with fastseg.use_backend(backend):
            results = value_and_grad(ours, given, coming)
        assert torch.equal(given, before[0]) and torch.equal(coming, before[1]), f"{name}: an input was written to"
        try:
            assert_accurate("value", results[0], *value, roundings)
            assert_accurate("gradient", results[1], *gradient, roundings)
            assert [y.dtype for y in results] == [upstream.dtype, x.dtype]
            channels_last = name == "channels_last" and not given.is_contiguous()
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            for y in results:
                assert y.dim() < 4 or y.is_contiguous(memory_format=memory_format), "not in the memory format of x"
        except AssertionError as error:
            raise AssertionError(f"{backend} on {device}, {name}: {error}") from error
    if not interpreted:  # which runs one program after another: always the same
        with fastseg.use_backend(backend):
            assert_accurate("value without a gradient", ours(given), *value, roundings)
            again = value_and_grad(ours, given, coming)
        assert all(torch.equal(a, b) for a, b in zip(again, results, strict=True)), "two runs differ"


def check_tensors(ours, theirs, names, tensors, upstream, backend, device, roundings=4):
    """As check_differentiable, for a function of several tensors: ours(*tensors) and the gradients of all of them.

    The first comes in every layout (in one for the slow interpreter), which the result and its gradient keep; others of
    four axes, and the gradient that comes in, in another one.
    """
    dtype = upstream.dtype
    known = [results(theirs, [x.to(wide) for x in tensors], upstream) for wide in (torch.float64, dtype, torch.float32)]
    tensors, upstream = [x.to(device) for x in tensors], upstream.to(device)
    interpreted = (backend, device) == INTERPRETER
    for name in ["channels_last" if tensors[0].shape[1] % 2 else "sliced"] if interpreted else COMING:
        first, *others = tensors
        given = [layouts(first)[name], *(layouts(x)[COMING[name]] if x.dim() == 4 else x for x in others)]
        given.append(layouts(upstream)[COMING[name]])
        before = [x.clone() for x in given]
        with fastseg.use_backend(backend):
            got = results(ours, given[:-1], given[-1])
        assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True)), f"{name}: an input was written to"
        for what, y, truth, usual, single in zip(("output", *names), got, *known, strict=False):
            assert y.dtype == dtype
            assert_accurate(f"{backend} on {device}, {name}: {what}", y, truth, usual, single, roundings)
        channels_last = name == "channels_last" and not given[0].is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert all(y.is_contiguous(memory_format=memory_format) for y in got[:2]), (
            "not in the memory format of the first"
        )
    if not interpreted:  # which runs one program after another: always the same
        with fastseg.use_backend(backend):
            again = results(ours, given[:-1], given[-1])
        assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True)), "two runs differ"


# The layout of the gradient that comes in, by that of x: another one.
COMING = {"contiguous": "transposed", "channels_last": "sliced", "sliced": "channels_last", "transposed": "contiguous"}


def arriving(x, upstream, expanded, interpreted):
    """(name, x, upstream) in every layout; in one for the slow interpreter."""
    given, coming = layouts(x), {} if expanded else layouts(upstream)
    chosen = ["channels_last" if x.shape[1] > x.shape[3] else "sliced"] if interpreted else list(given)
    for name in chosen:
        yield name, given[name], coming.get(COMING[name], upstream)


def check_form(op, arguments, backend, device):
    """A raw op returns the dtypes, shapes and strides of the reference, which is what torch.compile believes."""

    def form(name):
        with fastseg.use_backend(name):
            results = op(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments))
        results = (results,) if isinstance(results, torch.Tensor) else results
        # Strides of axes of length 1 mean nothing.
        return [
            (y.dtype, y.shape, [stride for length, stride in zip(y.shape, y.stride(), strict=True) if length > 1])
            for y in results
        ]

    assert form(backend) == form("reference")


def assert_accurate(what, result, truth, usual, single, roundings):
    """`result` against the float64 truth, given PyTorch's own result in the same dtype (`usual`) and in float32.

    The error, by the norm and at the worst place, is at most 1.5 times PyTorch's, plus the float32 roundings and one
    to the result's dtype. Half precision is held to more, as PyTorch may add up in it: every element is what float32
    gives, to within the same margin, rounded once.
    """
    result = result.cpu()
    wide, once = result.double(), 0 if result.dtype == torch.float32 else torch.finfo(result.dtype).eps / 2
    in_float32 = roundings * torch.finfo(torch.float32).eps / 2
    for error in (relative_error, largest_error):
        ours, theirs = error(wide, truth), error(usual.double(), truth)
        assert ours <= 1.5 * theirs + in_float32 + once, f"{what}: {error.__name__} {ours:.3g}, PyTorch's {theirs:.3g}"
    if once:
        inexact = (1.5 * largest_error(single.double(), truth) + in_float32) * (truth.abs().amax() or 1)
        allowed = inexact + rounding(truth.abs() + inexact, result.dtype)
        worst = ((wide - truth).abs() / allowed).amax()
        assert worst <= 1, f"{what}: off by {worst:.3g} times what float32 sums rounded once explain"


def rounding(x, dtype):
    """The most by which rounding x to a dtype changes it: half the gap between its neighbours, subnormals included."""
    info = torch.finfo(dtype)
    return x.abs().clamp_min(info.smallest_normal) * (info.eps / 2)


def relative_error(result, truth):
    """In the L2 norm. Absolute where the truth is all 0, as is the next."""
    return (result - truth).norm() / (truth.norm() or 1)


def largest_error(result, truth):
    return (result - truth).abs().amax() / (truth.abs().amax() or 1)


def bits_by_threads(run):
    """run() -> tensors, with 1, 2 and 3 threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results


def special(x):
    """Where x is NaN, inf and -inf, for torch.equal."""
    return torch.stack([x.isnan(), x.isposinf(), x.isneginf()])


def peak_memory(device, run):
    """How many bytes more than before the process, or the GPU, held at some time while run() ran."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    def kilobytes(name):
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS")
    run()
    return 1024 * (kilobytes("VmHWM") - before)
