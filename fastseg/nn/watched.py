"""Modules that may be computed without being called."""

from torch.nn.modules.module import _has_any_global_hook


def is_plain(module, kinds):
    """Whether a module is exactly of one of these classes and nothing is to see its call: no hook and no forward of its
    own. What wraps, parametrises or subclasses a module gives it another class; `fastseg.patch` does not count."""
    if stock_class(module) not in kinds or "forward" in vars(module) or _has_any_global_hook():
        return False
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks)


def stock_class(module):
    """The class of a module, or what it was before `fastseg.patch`."""
    return vars(type(module)).get("stock_class", type(module))
