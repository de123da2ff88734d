"""The passes of a differentiable op, and what all providers of a case are given in each of them.

    forward   inference: the output; no graph is recorded
    backward  the gradients, of a graph that is recorded in advance and kept; of the output nothing is kept
    both      a step of training from scratch: the graph, the output, the gradients
    input gradient, weight gradient
              as backward, of the first input alone or of the second; the others have None for a gradient
    training step
              of a network, a module in training mode that returns its loss: the loss, and the gradients of its
              parameters; what the optimiser then does is the same for all, and left out. It is judged by `checker`

Gradients are otherwise those of every floating-point input, for the bench's upstream gradient of the output. They are
returned, as to the layer before, and not added to what an earlier call left. What forward keeps for backward counts for
"both" alone, in time and in memory. An op may do in forward what another does in backward: then "backward" compares
nothing, and its bench leaves it out.
"""

import functools

import torch
from torch._functorch import config as compile_config
from torch.autograd.graph import get_gradient_edge

from fastseg.bench.verdict import worst

FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
INPUT_GRADIENT, WEIGHT_GRADIENT = "input gradient", "weight gradient"
TRAINING_STEP = "training step"
ALONE = {INPUT_GRADIENT: 0, WEIGHT_GRADIENT: 1}


def passes_of(bench):
    return getattr(bench, "PASSES", (FORWARD,))


def label(bench, case, which):
    """The name of one pass of a case, unique within the bench."""
    return f"{case.name}, {which}" if hasattr(bench, "PASSES") else case.name


def declared(bench, amount, case, *dtype, which):
    """What bytes, flops or memory say of one pass of a case; None where the bench has no such function."""
    if not hasattr(bench, amount):
        return None
    return getattr(bench, amount)(case, *dtype, *([which] if hasattr(bench, "PASSES") else []))


class Given:
    """One case on one device in one dtype. Tensors and truth are made when first asked for, and all providers share
    them: at full size a copy for each would not fit in memory."""

    def __init__(self, bench, case, device, dtype):
        self.bench, self.case, self.device, self.dtype = bench, case, device, dtype
        self._converted = {}

    @functools.cached_property
    def inputs(self):
        return self.bench.inputs(self.case, self.device, self.dtype)

    @functools.cached_property
    def upstream(self):
        """The gradient of the output; None for that of a scalar, 1."""
        if not hasattr(self.bench, "upstream"):
            return None
        return self.bench.upstream(self.case, self.device, self.dtype)

    @functools.cached_property
    def _judge_output(self):
        return self.bench.checker(self.case, self.inputs)

    @functools.cached_property
    def _judge_gradients(self):
        return self.bench.gradient_checker(self.case, self.inputs, self.upstream)

    def judge(self, which):
        """A function of a pass's result: its Verdict."""
        if which in (FORWARD, TRAINING_STEP):
            return self._judge_output
        if which == BACKWARD or which in ALONE:
            return self._judge_gradients
        of_output, of_gradients = self._judge_output, self._judge_gradients
        return lambda result: worst((of_output(result[0].detach()), of_gradients(result[1])))

    def call(self, function, which, memory_format):
        """A function of no arguments that does one pass of `function` once and returns what its judge wants."""
        inputs = [self._in_format(x, memory_format) for x in self.inputs]
        if which == FORWARD:
            return lambda: function(*inputs)
        if which == TRAINING_STEP:
            return functools.partial(_training_step, function, inputs, list(function.parameters()))
        upstream = None if self.upstream is None else self._in_format(self.upstream, memory_format)
        wanted = [x.is_floating_point() and k == ALONE.get(which, k) for k, x in enumerate(inputs)]
        inputs = [x.detach().requires_grad_(differentiable) for x, differentiable in zip(inputs, wanted, strict=True)]
        leaves = [x for x in inputs if x.requires_grad]
        if which == BOTH:
            return functools.partial(_both, function, inputs, leaves, upstream)
        # Compiled code reuses the memory of what forward keeps, unless told that backward runs more than once.
        with compile_config.patch(donated_buffer=False):
            output = function(*inputs)
        upstream = torch.ones_like(output) if upstream is None else upstream
        edge = get_gradient_edge(output)  # without the output's memory
        gradients = functools.partial(torch.autograd.grad, edge, leaves, upstream, retain_graph=True)
        if which not in ALONE:
            return gradients
        return lambda: tuple(gradients()[0] if differentiable else None for differentiable in wanted)

    def _in_format(self, x, memory_format):
        if x.dim() != 4:
            return x
        key = id(x), memory_format
        if key not in self._converted:
            self._converted[key] = x.contiguous(memory_format=memory_format)
        return self._converted[key]


def _training_step(network, inputs, parameters):
    loss = network(*inputs)
    return loss.detach(), torch.autograd.grad(loss, parameters)


def _both(function, inputs, leaves, upstream):
    output = function(*inputs)
    return output, torch.autograd.grad(output, leaves, upstream)
