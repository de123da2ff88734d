"""Judges of large convolutions by some of their channels: all of them in float64 take minutes on a CPU.

What PyTorch's own are off by is that of the whole convolution: with few channels it may add up in another order.
"""

import functools

import torch

from fastseg.bench.values import value_judge
from fastseg.bench.verdict import worst

CHECKED = 16  # every so many channels


def output_judge(peer, inputs, weights):
    """A judge of peer(*inputs), (N, O, h, w). weights: which of the inputs have O outputs in front, or a share of them;
    the others are (N, ...)."""

    def output(i, step, dtype, memory_format=torch.contiguous_format):
        some = [x[::step] if k in weights else x[i : i + 1] for k, x in enumerate(inputs)]
        return peer(*(x.to(dtype, memory_format=memory_format) for x in some))[0]

    @functools.cache
    def exact(i):
        return output(i, CHECKED, torch.float64)

    def judge_in(memory_format):
        @functools.cache
        def own(i):
            return output(i, 1, inputs[0].dtype, memory_format)[::CHECKED].clone()

        return value_judge(len(inputs[0]), exact, own)

    judge = in_either_format(judge_in)
    return lambda y: judge(y[:, ::CHECKED])


def gradient_judge(peer, inputs, upstream):
    """A judge of the gradients of inputs and weights, all (..., C, k, k); None for one is right.

    The gradients of some channels, and of their weights, are those of a convolution of these channels alone.
    """

    def gradients(step, dtype, memory_format=torch.contiguous_format):
        some = [x.detach()[:, ::step].to(dtype, memory_format=memory_format).requires_grad_() for x in inputs]
        found = torch.autograd.grad(peer(*some), some, upstream.to(dtype, memory_format=memory_format))
        return [x[:, :: CHECKED // step].clone() for x in found]

    exact = functools.cache(lambda: gradients(CHECKED, torch.float64))

    def judge_in(memory_format):
        own = gradients(1, inputs[0].dtype, memory_format)
        judges = [value_judge(len(x), exact()[k].__getitem__, own[k].__getitem__) for k, x in enumerate(inputs)]

        def judge(got):
            return worst(judge(x[:, ::CHECKED]) for judge, x in zip(judges, got, strict=True) if x is not None)

        return judge

    return in_either_format(judge_in)


def in_either_format(judge_in):
    """In one memory format or the other PyTorch is as far off: on a CPU the two differ fourfold, either way round."""
    judges = [judge_in(memory_format) for memory_format in (torch.contiguous_format, torch.channels_last)]

    def judge(result):
        verdicts = [judge(result) for judge in judges]
        return next((verdict for verdict in verdicts if not verdict.wrong), verdicts[-1])

    return judge
