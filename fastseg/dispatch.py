"""Which kernel runs for which tensor. This file is the only place that decides.

An op has up to four implementations, all with the op's one schema:
    native     csrc/cpu/<op>.cpp and csrc/cuda/<op>.cu
    triton     kernels/<op>.py
    composed   the same idea out of stock PyTorch ops, where that helps
    reference  plain PyTorch in fastseg/ops/<op>.py: runs anywhere, slow, what the tests compare with
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import threading
import warnings

import torch

from fastseg import extension

BACKENDS = ("native", "triton", "composed", "reference")

# First that can run the call wins. The GPU order is a guess until a bench has run on one: native starts sooner than
# Triton (no Python launcher, no compilation at first use).
ORDER = {"cpu": ("native", "composed", "reference"), "cuda": ("native", "triton", "composed", "reference")}
# (op, device) -> order, for an op that measured faster another way, with the bench that showed it.
_TRITON_FIRST = ("triton", "native", "composed", "reference")
ORDER_FOR = {
    # A guess as well: on sm_90 Triton's kernels use wgmma, which is faster than the mma.sync of native.
    # bench_atrous_conv2d and bench_atrous_pyramid will tell.
    ("atrous_conv2d", "cuda"): _TRITON_FIRST,
    ("atrous_conv2d_backward_input", "cuda"): _TRITON_FIRST,
    ("atrous_conv2d_backward_weight", "cuda"): _TRITON_FIRST,
    ("atrous_pyramid", "cuda"): _TRITON_FIRST,
}

_public = torch.library.Library("fastseg", "DEF")
_native = torch.library.Library("fastseg_native", "DEF")  # Python owns every schema; csrc/ only implements
_ops = {}
forced = os.environ.get("FASTSEG_BACKEND") or None  # the one backend that use_backend allows
_in_thread = threading.local()  # .preferred: by prefer_backend


def register(
    schema,
    reference,
    *,
    composed=None,
    native=("cpu", "cuda"),
    triton=True,
    compiled=None,
    kernels=None,
    why_not=None,
    slower=None,
    simplify=None,
):
    """Define op `fastseg::<name>` from its schema, tell the table what can run it, and return the op.

    The Triton implementation is the function of the op's name in kernels/<room>.py, where the room is the module that
    defines `reference`. `reference` also serves as the fake kernel: all implementations return what it returns, strides
    included. `why_not(backend, *args)` says why a backend cannot run one call (dtype, size), or returns None;
    `slower(*args)` why native and triton should not, as PyTorch's own kernel, composed or reference, is faster.
    `simplify(*args)` returns the arguments of a cheaper call with the same result, where the values allow one.
    `kernels` names the room whose GPU kernels the op runs on, where that is not its own.
    `compiled` is (schema, call) if the compiled kernel has a schema of its own: call(kernel, *args) calls it.
    """
    name = schema.split("(")[0]
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _public.define(schema, tags=tags)
    compiled_schema, call = compiled or (schema.replace("SymInt", "int"), lambda kernel, *args: kernel(*args))
    _native.define(compiled_schema)
    _ops[name] = {
        "room": reference.__module__.rsplit(".", 1)[-1],
        "kernels": kernels or reference.__module__.rsplit(".", 1)[-1],
        "functions": {"composed": composed, "reference": reference},
        "native": native,
        "triton": triton,
        "call": call,
        "why_not": why_not or (lambda backend, *args: None),
        "slower": slower or (lambda *args: None),
        "simplify": simplify or (lambda *args: args),
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


def kernel_room(name):
    """The stem of the files that hold an op's GPU kernels."""
    return _ops[name]["kernels"]


def not_written(name, backend, device):
    """Why an op has no such implementation on any machine, or None."""
    op = _ops[name]
    if backend not in BACKENDS:
        return f"there is no such backend (FASTSEG_BACKEND); wanted one of {', '.join(BACKENDS)}"
    if backend == "composed" and op["functions"]["composed"] is None:
        return "this op has no composed form"
    if backend == "triton" and not op["triton"]:
        return "this op has no Triton kernel"
    if backend == "native" and device not in op["native"]:
        return f"this op has no {device} kernel"
    return None


@functools.cache
def missing(name, backend, device):
    """Why this machine has no such kernel, or None. Settled once per process."""
    if reason := not_written(name, backend, device):
        return reason
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
    for gpu in range(torch.cuda.device_count() if device == "cuda" else 0):
        capability = torch.cuda.get_device_capability(gpu)
        if not any(extension.runs_on(arch, capability) for arch in info["archs"]):
            return f"built for {', '.join(info['archs'])}, but GPU {gpu} is sm_{capability[0]}{capability[1]}"
    return None


def backends(name, device):
    """The backends that this machine has for an op on a device such as "cpu" or "cuda:0"."""
    kind = torch.device(device).type
    if name not in _ops or kind not in ORDER:
        known = f"{', '.join(_ops)} on {' or '.join(ORDER)}"
        raise ValueError(f"fastseg.backends: wanted one of {known}, got {name!r} on {str(device)!r}")
    return [b for b in BACKENDS if missing(name, b, kind) is None]


@functools.cache
def _function(name, backend):
    if backend == "native":
        return functools.partial(_ops[name]["call"], getattr(torch.ops.fastseg_native, name).default)
    if backend == "triton":
        return getattr(importlib.import_module(f"fastseg.kernels.{kernel_room(name)}"), name)
    return _ops[name]["functions"][backend]


def choose(name, device, *args):
    """(backend, reasons) for one call: the backend that runs it, or None, and why each one before it does not."""
    order = (forced,) if forced else ORDER_FOR.get((name, device), ORDER[device])
    if preferred := not forced and getattr(_in_thread, "preferred", None):
        order = (preferred, *(backend for backend in order if backend != preferred))
    reasons = {}
    for backend in order:
        reasons[backend] = missing(name, backend, device) or _unfit(name, backend, *args)
        if reasons[backend] is None:
            return backend, reasons
    return None, reasons


def _unfit(name, backend, *args):
    """Why a backend that is there should not run a call, or None. One asked for runs it even if it is slower."""
    reason = _ops[name]["why_not"](backend, *args)
    if reason or backend in (forced, getattr(_in_thread, "preferred", None)) or backend not in ("native", "triton"):
        return reason
    return _ops[name]["slower"](*args)


def _run(name, device, *args):
    args = _ops[name]["simplify"](*args)
    backend, reasons = choose(name, device, *args)
    if backend is None:
        every = {b: reasons.get(b) or missing(name, b, device) or "not asked for" for b in (*BACKENDS, *reasons)}
        listed = "\n".join(f"  {b}: {reason}" for b, reason in every.items())
        raise NotImplementedError(f"fastseg.{name}: nothing can run this call on {device}\n{listed}")
    if backend == "reference" and not forced:
        lacking = [b for b in reasons if missing(name, b, device) and not not_written(name, b, device)]
        if any(_unfit(name, b, *args) is None for b in lacking):
            _warn_slow(name, device, "; ".join(f"{b}: {reasons[b]}" for b in lacking))
    if backend in ("composed", "reference"):  # whose PyTorch ops must not be cast: that was done for the whole op
        with torch.autocast(device, enabled=False):
            return _function(name, backend)(*args)
    return _function(name, backend)(*args)


@functools.cache
def _warn_slow(name, device, reasons):
    """Once per process: a kernel that could run this call is not on this machine."""
    warnings.warn(f"fastseg.{name} runs the slow reference on {device} ({reasons})", stacklevel=3)


@contextlib.contextmanager
def use_backend(name):
    """Make every op use one backend inside, or raise where it cannot: `with fastseg.use_backend("triton"):`.

    It also decorates functions. None goes back to the table. FASTSEG_BACKEND sets it for a whole process. It holds for
    all threads, as autograd runs backward in threads of its own. Use it around a compiled function, not inside one.
    """
    global forced
    if name is not None and name not in BACKENDS:
        raise ValueError(f"fastseg: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if torch.compiler.is_compiling():
        raise RuntimeError("fastseg: use_backend has no effect inside a compiled function; use it around the call")
    before, forced = forced, name
    try:
        yield
    finally:
        forced = before


@contextlib.contextmanager
def prefer_backend(name):
    """Make every op that this thread calls try one backend first, before those of the table."""
    before, _in_thread.preferred = getattr(_in_thread, "preferred", None), name
    try:
        yield
    finally:
        _in_thread.preferred = before
