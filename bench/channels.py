"""Judges of large convolutions by some of their channels: all of them in float64 take minutes on a CPU."""

import functools

import torch

from fastseg.bench.values import value_judge
from fastseg.bench.verdict import worst

CHECKED = 16  # every so many channels


def output_judge(peer, inputs, weights):
    """A judge of peer(*inputs), (N, O, h, w). weights: which of the inputs have O outputs in front, or a share of them;
    the others are (N, ...)."""

    def judge_in(memory_format):
        @functools.cache
        def output(i, dtype):
            few = [x[::CHECKED] if k in weights else x[i : i + 1] for k, x in enumerate(inputs)]
            return peer(*(x.to(dtype, memory_format=memory_format) for x in few))[0]

        return value_judge(len(inputs[0]), lambda i: output(i, torch.float64), lambda i: output(i, inputs[0].dtype))

    judge = in_either_format(judge_in)
    return lambda y: judge(y[:, ::CHECKED])


def gradient_judge(peer, inputs, upstream):
    """A judge of the gradients of inputs and weights, all (..., C, k, k); None for one is right.

    The gradients of some channels, and of their weights, are those of a convolution of these channels alone.
    """

    def judge_in(memory_format):
        @functools.cache
        def gradients(dtype):
            few = [x.detach()[:, ::CHECKED].to(dtype, memory_format=memory_format).requires_grad_() for x in inputs]
            return torch.autograd.grad(peer(*few), few, upstream.to(dtype, memory_format=memory_format))

        def judge_of(k):
            def of(dtype):
                return lambda i: gradients(dtype)[k][i]

            return value_judge(len(inputs[k]), of(torch.float64), of(inputs[k].dtype))

        judges = [judge_of(k) for k in range(len(inputs))]

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
