"""Which kernel runs for which tensor. This file is the only place that decides.

An op has up to four implementations, all with the op's one schema:
    native     csrc/cpu/<op>.cpp and csrc/cuda/<op>.cu
    triton     kernels/<op>.py
    composed   the same idea out of stock PyTorch ops, where that helps
    reference  plain PyTorch in fastseg/ops/<op>.py: runs anywhere, slow, what the tests compare with
"""

import functools
import importlib
import importlib.util
import os
import warnings

import torch

from fastseg import extension

BACKENDS = ("native", "triton", "composed", "reference")

# First that can run the call wins. The GPU order is a guess until a bench has run on one: native starts sooner than
# Triton (no Python launcher, no compilation at first use).
ORDER = {"cpu": ("native", "composed", "reference"), "cuda": ("native", "triton", "composed", "reference")}
# (op, device) -> order, for an op that measured faster another way, with the bench that showed it.
ORDER_FOR = {}

_public = torch.library.Library("fastseg", "DEF")
_native = torch.library.Library("fastseg_native", "DEF")  # Python owns every schema; csrc/ only implements
_ops = {}


def register(schema, reference, *, composed=None, native=("cpu", "cuda"), triton=True, why_not=None):
    """Define op `fastseg::<name>` from its schema, tell the table what can run it, and return the op.

    The Triton implementation is the function of the op's name in kernels/<room>.py, where the room is the module that
    defines `reference`. `reference` also serves as the fake kernel: all implementations return what it returns, strides
    included. `why_not(backend, *args)` says why a backend cannot run one call (dtype, size), or returns None.
    """
    name = schema.split("(")[0]
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _public.define(schema, tags=tags)
    _native.define(schema.replace("SymInt", "int"))
    _ops[name] = {
        "room": reference.__module__.rsplit(".", 1)[-1],
        "functions": {"composed": composed, "reference": reference},
        "native": native,
        "triton": triton,
        "why_not": why_not or (lambda backend, *args: None),
    }
    for device in ORDER:
        _public.impl(name, functools.partial(_run, name, device), device.upper())
    torch.library.register_fake(f"fastseg::{name}", reference, lib=_public)
    return getattr(torch.ops.fastseg, name).default


def ops():
    """The names of all ops."""
    return tuple(_ops)


def room(name):
    """The stem that all files of an op share."""
    return _ops[name]["room"]


@functools.cache
def missing(name, backend, device):
    """Why this machine has no such kernel, or None. Settled once per process."""
    op = _ops[name]
    if backend not in BACKENDS:
        return f"there is no such backend (FASTSEG_BACKEND); wanted one of {', '.join(BACKENDS)}"
    if backend == "composed" and op["functions"]["composed"] is None:
        return "this op has no composed form"
    if backend == "triton" and not op["triton"]:
        return "this op has no Triton kernel"
    if backend == "native" and device not in op["native"]:
        return f"this op has no {device} kernel"
    if device == "cuda" and not torch.cuda.is_available():
        return "no GPU is visible to torch"
    if backend == "native":
        return _native_missing(name, device)
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton needs a GPU (or TRITON_INTERPRET=1, its slow interpreter)"
    return None


def _native_missing(name, device):
    info = extension.build_info()
    if info["why_not"]:
        return info["why_not"]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseg_native::{name}", device.upper()):
        return f"the compiled kernels were built without {device}"
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        if not any(extension.runs_on(arch, capability) for arch in info["archs"]):
            return f"built for {', '.join(info['archs'])}, but this GPU is sm_{capability[0]}{capability[1]}"
    return None


def backends(name, device):
    """The backends that this machine has for an op on "cpu" or "cuda": what tests and benches loop over."""
    return [b for b in BACKENDS if missing(name, b, device) is None]


@functools.cache
def _function(name, backend):
    if backend == "native":
        return getattr(torch.ops.fastseg_native, name).default
    if backend == "triton":
        return getattr(importlib.import_module(f"fastseg.kernels.{room(name)}"), name)
    return _ops[name]["functions"][backend]


def choose(name, device, *args):
    """(backend, reasons) for one call: the backend that runs it, or None, and why each one before it does not."""
    order = (use_backend.forced,) if use_backend.forced else ORDER_FOR.get((name, device), ORDER[device])
    reasons = {}
    for backend in order:
        reasons[backend] = missing(name, backend, device) or _ops[name]["why_not"](backend, *args)
        if reasons[backend] is None:
            return backend, reasons
    return None, reasons


def _run(name, device, *args):
    backend, reasons = choose(name, device, *args)
    if backend is None:
        every = {b: reasons.get(b) or missing(name, b, device) or "not asked for" for b in (*BACKENDS, *reasons)}
        listed = "\n".join(f"  {b}: {reason}" for b, reason in every.items())
        raise NotImplementedError(f"fastseg.{name}: nothing can run this call on {device}\n{listed}")
    if backend == "reference" and not use_backend.forced:
        _warn_slow(name, device)
    return _function(name, backend)(*args)


@functools.cache
def _warn_slow(name, device):
    """Once per process: an op that should have a kernel here runs the reference because this machine has none."""
    lacking = {b: missing(name, b, device) for b in ORDER[device][:-1]}
    if all(lacking.values()):
        listed = "; ".join(f"{b}: {reason}" for b, reason in lacking.items())
        warnings.warn(f"fastseg.{name} runs the slow reference on {device} ({listed})", stacklevel=3)


class use_backend:  # noqa: N801  (used like torch.no_grad)
    """Make every op use one backend, or raise where it cannot: `with fastseg.use_backend("triton"):`.

    Called without `with` it stays in force; None goes back to the table. FASTSEG_BACKEND sets it for a whole process.
    It holds for all threads, as autograd runs backward in threads of its own.
    """

    forced = os.environ.get("FASTSEG_BACKEND") or None

    def __init__(self, name):
        if name is not None and name not in BACKENDS:
            raise ValueError(f"fastseg: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        self.before, use_backend.forced = use_backend.forced, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        use_backend.forced = self.before
