"""Who competes: stock PyTorch, eager and compiled, and each fastseg backend; all in both memory formats."""

import contextlib
from dataclasses import dataclass

import torch

import fastseg
from fastseg.bench.passes import TRAINING_STEP

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Provider:
    name: str
    layout: str
    peer: bool
    compiled: bool = False
    backend: str | None = None  # None leaves the choice to the dispatch table

    def prepare(self, given, which):
        """A function of no arguments that does the pass once; layouts are converted here. Call it while active()."""
        layout = LAYOUTS[self.layout]
        function = (given.bench.peer if self.peer else given.bench.ours)(given.case)
        if isinstance(function, torch.nn.Module):
            trains = which == TRAINING_STEP
            function = function.train(trains).requires_grad_(trains)
            function = function.to(given.device, given.dtype, memory_format=layout)
        if self.compiled:
            function = torch.compile(function, dynamic=False)
        return given.call(function, which, layout)

    def active(self):
        """Holds around prepare and each call; entered outside the timing."""
        return fastseg.use_backend(self.backend) if self.backend else contextlib.nullcontext()


def providers(bench, device, compiles=True):
    """Every provider of a bench on "cpu" or "cuda"."""
    found = []
    for layout in LAYOUTS:
        found.append(Provider("eager", layout, peer=True))
        if compiles:
            found.append(Provider("torch.compile", layout, peer=True, compiled=True))
        found += [
            Provider(f"fastseg {b}".strip(), layout, peer=False, backend=b or None) for b in _backends(bench, device)
        ]
    return sorted(found, key=lambda provider: not provider.peer)  # stable: both layouts of the peers first


def _backends(bench, device):
    """What dispatch chooses, as a user gets it; and each backend alone, where there are several."""
    if not hasattr(bench, "OP"):
        return ("",)
    slow = ("reference", "triton") if device == "cpu" else ("reference",)  # Triton on a CPU is its interpreter
    found = [backend for backend in fastseg.backends(bench.OP, device) if backend not in slow]
    return ("", *found) if len(found) > 1 else ("",)
