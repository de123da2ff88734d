"""Which classes become faster, by qualified name, and the classes they become.

A patch is a class with a method `fused`, what the module should do instead of its forward. `fast_class` mixes it into a
subclass of the module's class, which has the same name and the same attributes: a module changes its class and nothing
else. The peer's package is not imported; its class comes with the module.
"""

import functools
import os
import types
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import dispatch
from fastseg.ops.recording import is_recording

PATCHES = {}  # "package.module.Class": class with the method `fused`
LOGITS = {}  # "package.module.Class": function, see `low_logits`
MODES = ("auto", "inference", "training")


class Options(NamedTuple):
    mode: str = "auto"
    backend: str = "auto"


class Patch:
    """What a patched module has beside its own class. A patch may set or define

    ops                what it calls of fastseg.ops
    method             the method that it replaces
    base               a subclass of the module's class to derive from
    reads              names in the code of the method that it replaces: one that reads others is another version of it,
                       and left alone
    may_read           more names, of some versions
    concerns(module)   False where there is nothing to gain, which is not worth a line in the report
    why_not(module)    the reason why this module is left alone, or None; also asked before every call
    fused(*arguments)  the faster method
    """

    ops = ()
    method = "forward"
    base = None
    reads = None
    may_read = frozenset()
    fastseg_options = Options()

    @staticmethod
    def concerns(module):
        return True

    @staticmethod
    def why_not(module):
        return None

    def forward(self, *arguments, **keywords):
        return self.fastseg_call(*arguments, **keywords)

    def fastseg_call(self, *arguments, **keywords):
        """The faster method where it applies, else the module's own."""
        mode, backend = self.fastseg_options
        in_mode = mode == "auto" or self.training == (mode == "training")
        if not in_mode or _wants_stock(*arguments, *keywords.values()) or self.why_not(self) is not None:
            return self.fastseg_stock(*arguments, **keywords)
        if backend == "auto" or torch.compiler.is_compiling():
            return self.fused(*arguments, **keywords)
        with dispatch.prefer_backend(backend):
            return self.fused(*arguments, **keywords)

    def _get_name(self):
        return f"fastseg.{type(self).__name__}"

    def __reduce_ex__(self, protocol):
        """Pickled as a module of its own class that is patched when it is loaded."""
        if not is_fast(self):  # but a class that derives from the patched one
            return super().__reduce_ex__(protocol)
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return (_loaded, (self.stock_class,), *state)


class TensorPatch(Patch):
    """A patch of forward(x: Tensor) -> Tensor. torch.jit.script compiles the module's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self.fastseg_call(x)
        return self.fastseg_stock(x)


def register(*names):
    """Decorates a class with a method `fused`: `fastseg.patch` uses it for modules of exactly these classes.

    names  qualified, such as "torchvision.models.segmentation.deeplabv3.ASPP"

    The class may also define `why_not(module)`, a static method with the reason to leave a module alone or None, and
    what else stands in fastseg.patches.registry.Patch. In `fused`, self is the module and self.fastseg_stock its own
    method, which is called instead for integers and complex numbers, and where torch.func or forward-mode AD transforms
    the call. TorchScript cannot compile `fused`: see TensorPatch there.
    """
    for name in names:
        if not isinstance(name, str) or "." not in name:
            raise TypeError(f'fastseg.register: wanted qualified names such as "package.module.Class", got {name!r}')

    def add(patch):
        if not callable(getattr(patch, "fused", None)):
            raise TypeError(f"fastseg.register: wanted a class with a method `fused`, got {patch!r}")
        PATCHES.update(dict.fromkeys(names, patch))
        fast_class.cache_clear()
        return patch

    return add


def low_logits(*names):
    """Decorates f(model, x, aux) -> (OrderedDict of logits (N, C, h, w): "out", and "aux" if asked for and there;
    align_corners of their interpolation to x), or None where this model is made otherwise.

    It is for fastseg.predict and loss, of models of exactly these classes, patched or not.
    """

    def add(function):
        LOGITS.update(dict.fromkeys(names, function))
        return function

    return add


def qualified(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def is_fast(module):
    """Whether a module's class was made here, and not derived from one that was."""
    return "stock_class" in vars(type(module))


def patch_of(kind):
    """The patch registered for exactly this class, or None."""
    return PATCHES.get(qualified(kind))


def disabled():
    return os.environ.get("FASTSEG_DISABLE", "0") not in ("", "0")


@functools.cache
def fast_class(kind):
    """The subclass that modules of this class change to."""
    patch = PATCHES[qualified(kind)]
    method = getattr(patch, "method", "forward")
    mixins = (patch,) if issubclass(patch, Patch) else (patch, Patch)
    content = {
        "__module__": kind.__module__,  # as torch.fx and others tell PyTorch's own modules by it
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "stock_class": kind,
        "fastseg_stock": _renamed(getattr(kind, method), "fastseg_stock"),
    }
    if method != "forward":
        content["forward"] = kind.forward
        content[method] = Patch.fastseg_call
    elif getattr(patch, "forward", Patch.forward) is Patch.forward:
        content["forward"] = _with_signature_of(kind.forward)
    base = getattr(patch, "base", None) or kind
    return types.new_class(kind.__name__, (*mixins, base), {}, lambda names: names.update(content))


def _with_signature_of(function):
    """Patch.forward, as torch.export and torch.fx see it: dynamic shapes are given by a forward's arguments."""

    @functools.wraps(function)
    def forward(self, *arguments, **keywords):
        return self.fastseg_call(*arguments, **keywords)

    return forward


def _renamed(function, name):
    """A copy of a method: torch.jit.script compiles it by its name."""
    if not isinstance(function, types.FunctionType):
        return function
    parts = function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    copy = functools.update_wrapper(types.FunctionType(*parts), function, ("__module__", "__annotations__"), ())
    copy.__kwdefaults__ = function.__kwdefaults__
    del copy.__wrapped__  # which names another version of itself to torch.jit
    return copy


def why_not(kind):
    """Why no module of a class that has a patch is patched, or None."""
    patch = patch_of(kind)
    reads = getattr(patch, "reads", None)
    method = getattr(patch, "method", "forward")
    if reads is None:
        return None
    unlike = (_names(getattr(kind, method).__code__) ^ reads) - getattr(patch, "may_read", Patch.may_read)
    return f"its {method} is not the one that is known: {', '.join(sorted(unlike))}" if unlike else None


def _names(code):
    """Of globals and attributes, in comprehensions too."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _loaded(kind):
    """An empty module: patched, unless there is no such patch here."""
    kind = kind if disabled() or patch_of(kind) is None else fast_class(kind)
    return kind.__new__(kind)


def _wants_stock(x, *others):
    """Whether a call is for PyTorch's operations: others record it, or compute with numbers that ours do not know."""
    while isinstance(x, (tuple, list)) and x:
        x = x[-1]
    return is_recording(x) or not x.is_floating_point() or _is_transformed()


# Nothing public tells whether a transform is under way: torch.func.debug_unwrap knows only of one tensor, and it may be
# any parameter that is transformed. A PyTorch without these names runs on, with ours for the transforms that they have.
_functorch_level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", lambda: None)


def _is_transformed():
    """Ours have no forward-mode derivative, and under vmap some have no rule and others a slow one."""
    if torch.compiler.is_compiling():
        return False
    return getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0 or _functorch_level() is not None
