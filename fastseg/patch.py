"""Make a model that you already have faster, in place: its modules change their class, and nothing else.

Parameters, state dict, hooks, module tree and outputs stay as they are; `unpatch` restores the classes.
"""

import contextlib
from typing import NamedTuple

from fastseg import patches  # noqa: F401  (registers what it knows)
from fastseg.dispatch import BACKENDS
from fastseg.dispatch import ops as all_ops
from fastseg.nn.watched import stock_class
from fastseg.patches.registry import (
    MODES,
    Options,
    Patch,
    disabled,
    fast_class,
    is_fast,
    patch_of,
    qualified,
    register,
)
from fastseg.patches.registry import why_not as why_not_class

__all__ = ["is_patched", "patch", "patched", "register", "report", "unpatch"]


def patch(model, *, ops="auto", mode="auto", backend="auto", filter_fn=None, strict=False):
    """Make a model's modules faster, in place, and return the model.

    ops        names of fastseg.ops that may be used; "auto": all
    mode       "inference" or "training": only while the model is in this mode (model.eval(), .train()); "auto": in both
    backend    the backend of fastseg.dispatch to try first in eager forward passes, such as "triton"; "auto": none.
               Gradients and compiled models follow the table, and fastseg.use_backend goes before it
    filter_fn  filter_fn(module, path) -> bool: whether a module may be patched; None: all
    strict     raise ValueError, with nothing patched, if a module that is known is left alone

    It knows PyTorch's dilated convolutions, transposed convolutions and bilinear nn.Upsample in any model, and heads of
    torchvision, segmentation_models_pytorch, mmsegmentation, transformers, hszhao/semseg and VainF's DeepLabV3. Modules
    are left alone where that would change what others see: subclasses, hooks on a child that would be bypassed,
    parametrisations, wrapped or quantised children, other kinds of padding; also if hooks come later. `report` tells.

    Patched modules pickle, copy and replicate; torch.jit, torch.export and torch.onnx record the model's own
    operations. Patch before SyncBatchNorm conversion, DistributedDataParallel, FSDP and torch.compile, and after
    torch.ao.quantization and its fuse_modules, which look for PyTorch's classes alone. A pickled model needs fastseg
    where it is loaded: unpatch it for others. Patching again changes the options of what it finds, and undoes nothing.
    With FASTSEG_DISABLE=1 in the environment it does nothing.
    """
    allowed = _check(ops, mode, backend)
    if disabled():
        return model
    chosen, left = [], []
    for path, module in model.named_modules():
        reason = _why_not(module)
        if reason is _NOT_CONCERNED:
            continue
        if filter_fn is not None and not filter_fn(module, path):
            continue
        if not allowed.issuperset(getattr(patch_of(stock_class(module)), "ops", ())):
            continue
        if reason is None:
            chosen.append(module)
        elif not is_fast(module):
            left.append(f"{path or 'model'}: {reason}")
    if strict and left:
        raise ValueError("fastseg.patch: strict, and these cannot be patched:\n  " + "\n  ".join(left))
    options = Options(mode, backend)
    options = None if options == Patch.fastseg_options else options
    for module in chosen:
        _become(module, type(module) if is_fast(module) else fast_class(type(module)), options)
    return model


def _check(ops, mode, backend):
    if mode not in MODES:
        raise ValueError(f"fastseg.patch: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"fastseg.patch: backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    known = set(all_ops())
    if ops == "auto":
        return known
    ops = {ops} if isinstance(ops, str) else set(ops)
    if not ops <= known:
        unknown = ", ".join(sorted(ops - known))
        raise ValueError(f'fastseg.patch: ops must be "auto" or names of fastseg.ops, got {unknown}')
    return ops


_NOT_CONCERNED = "nothing to gain"


def _why_not(module):
    """Why a module may not be patched, or None; _NOT_CONCERNED where it is not known, or has nothing to gain."""
    kind = stock_class(module)
    known = next((each for each in kind.__mro__ if patch_of(each) is not None), None)
    if known is None or kind.__module__.startswith("fastseg.") or not _concerns(known, module):
        return _NOT_CONCERNED
    if known is not kind:
        if issubclass(kind, Patch):
            return "wrapped after it was patched"
        return f"{qualified(kind)} is a subclass of {qualified(known)} and may differ from it"
    if "forward" in vars(module):
        return "it has a forward of its own"
    return why_not_class(kind) or getattr(patch_of(kind), "why_not", Patch.why_not)(module)


def _concerns(known, module):
    return getattr(patch_of(known), "concerns", Patch.concerns)(module)


def unpatch(model):
    """Give all modules their own classes again, in place, and return the model."""
    for module in model.modules():
        if is_fast(module):
            _become(module, type(module).stock_class, None)
    return model


def _become(module, kind, options):
    if type(module) is not kind:
        module.__class__ = kind
    module.__dict__.pop("fastseg_options", None)
    if options is not None:
        module.__dict__["fastseg_options"] = options


@contextlib.contextmanager
def patched(model, **options):
    """`with fastseg.patched(model):` patches it inside, with the options of `patch`, and restores what was before.

    Modules that were given another class inside, such as by a parametrisation, keep that.
    """
    before = [(module, type(module), vars(module).get("fastseg_options")) for module in model.modules()]
    try:
        yield patch(model, **options)
    finally:
        for module, kind, options in before:
            if stock_class(module) is vars(kind).get("stock_class", kind):
                _become(module, kind, options)


def is_patched(model):
    """Whether any module of the model is patched."""
    return any(isinstance(module, Patch) for module in model.modules())


class Row(NamedTuple):
    path: str
    name: str  # of the class
    patched: bool
    note: str  # the ops that it uses, or why it is left alone


class Report(list):
    """Rows of (path, name, patched, note), which print as a table."""

    def __str__(self):
        rows = [(row.path, row.name, "patched" if row.patched else "left alone", row.note) for row in self]
        if not rows:
            return "nothing that fastseg.patch knows"
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def report(model):
    """What is patched in a model and what is left alone, with the reason: a list of rows that prints as a table.

    Modules in which there is nothing to gain, such as convolutions without dilation, are not listed.
    """
    rows = Report()
    for path, module in model.named_modules():
        reason = _why_not(module)
        if reason is _NOT_CONCERNED:
            continue
        fast = isinstance(module, Patch)
        if fast:
            ops = ", ".join(getattr(type(module), "ops", ())) or "registered"
            note = ops if reason is None else f"runs as before: {reason}" if is_fast(module) else f"{ops}; {reason}"
        else:
            note = reason or ("FASTSEG_DISABLE is set" if disabled() else "not asked for")
        rows.append(Row(path or "(the model)", stock_class(module).__name__, fast, note))
    return rows
