"""Networks without batch normalisation, to label with.

    relu(bn(conv(x)) + residual) = relu(s (W * x) + b' + residual)

with s and b' as in fastseg/nn/conv_bn.py: a convolution (FoldedConv2d) with what follows it in its kernel's epilogue.
"""

import copy
import warnings
from collections import Counter

import torch
from torch import nn

from fastseg.models.pspnet import PyramidHead
from fastseg.models.resnet import Bottleneck, ResNet
from fastseg.nn import ASPP, PyramidConv2d
from fastseg.nn.conv_bn import CONVOLUTIONS, ConvBNSequential, scale_and_shift
from fastseg.nn.folded import FoldedBottleneck, FoldedConv2d
from fastseg.nn.freezing import FrozenBatchNorm2d, FrozenSyncBatchNorm
from fastseg.nn.watched import is_plain, stock_class

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenSyncBatchNorm)
WIDE = (torch.float32, torch.float64)
SHOWN = 5  # names in the warning
OWN_FORWARD = "its forward is not that of its class"
# What runs its children one after the other; torchvision's by name, as it need not be installed.
IN_ORDER = (nn.Sequential.forward, ConvBNSequential.forward, PyramidHead.forward)
TORCHVISION_IN_ORDER = (
    "torchvision.models._utils.IntermediateLayerGetter",
    "torchvision.models.segmentation.deeplabv3.ASPPPooling",
)
TORCHVISION_RESNET = "torchvision.models.resnet.ResNet"
TORCHVISION_BOTTLENECK = "torchvision.models.resnet.Bottleneck"


def fold(model):
    """A copy of a model in eval mode, to label with: each convolution takes in the BatchNorm after it, the ReLU after
    that and, in a ResNet's bottleneck, the sum with the shortcut. The model itself stays as it is.

    Found are neighbours in an nn.Sequential and what the networks of fastseg.models, torchvision's ResNets and their
    heads consist of. Where the weights are float32 or float64 the scale goes into them, computed in float64 and rounded
    once; in half precision it stays a factor of the sums, so convert first and then fold. Parameters of the copy
    require no gradient, and its state dict has fewer names.

    A pair is left as it is where something is to see the layers' calls (hooks, parametrisations, subclasses), where
    they are used in several places, or have no fixed statistics: one warning names these and the reasons. Raises
    TypeError for what is no module, RuntimeError in training mode.

    That a forward reaches into a container, for a convolution's own result or its weight, cannot be seen: after folding
    it finds what the BatchNorm and the ReLU would have given. Compare outputs once where a model may do that.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be a module, got {type(model).__name__}")
    if model.training:
        raise RuntimeError("fold: the model is in training mode; call model.eval() first")
    model = copy.deepcopy(model).requires_grad_(False)
    folding = _Folding(model)
    for name, module in list(model.named_modules()):
        folding.visit(name, module)
    folding.warn()
    return model


class _Folding:
    def __init__(self, model):
        self.uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self.left = {}  # name: reason

    def visit(self, name, module):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if type(module) is Bottleneck or kind == TORCHVISION_BOTTLENECK:
            self.bottleneck(name, module)
        elif type(module) is ASPP:
            self.pair(name, module.project, "0", "1", None, scaled=False)
        elif type(module) is ResNet or kind == TORCHVISION_RESNET:
            self.pair(name, module, "conv1", "bn1", "relu")
        elif getattr(type(module), "forward", None) in IN_ORDER or kind in TORCHVISION_IN_ORDER:
            self.neighbours(name, module)

    def neighbours(self, name, module):
        names = list(module._modules)
        for i, (first, second) in enumerate(zip(names, names[1:], strict=False)):
            if isinstance(module._modules[first], nn.Conv2d) and _is_norm(module._modules[second]):
                if "forward" in vars(module):
                    self.left[name or "model"] = OWN_FORWARD
                    return
                third = names[i + 2] if i + 2 < len(names) and _is_relu(module._modules[names[i + 2]]) else None
                self.pair(name, module, first, second, third)

    def bottleneck(self, name, module):
        pairs = [(getattr(module, f"conv{k}"), getattr(module, f"bn{k}")) for k in (1, 2, 3)]
        reasons = [self.reason(conv, norm, module.relu) for conv, norm in pairs]
        if "forward" in vars(module):
            reasons.append(OWN_FORWARD)
        if any(reasons):
            self.left[name or "model"] = next(filter(None, reasons))
            return
        for k, (conv, norm) in enumerate(pairs, start=1):
            _folded(conv, norm, relu=True)
            setattr(module, f"bn{k}", nn.Identity())
        module.relu = nn.Identity()
        module.__class__ = FoldedBottleneck

    def pair(self, name, parent, first, second, third, scaled=True):
        """Fold the children of these names, of which the third is a ReLU or None."""
        conv, norm = parent._modules[first], parent._modules[second]
        relu = None if third is None else parent._modules[third]
        if isinstance(conv, FoldedConv2d) or not _is_norm(norm):
            return  # of a container that was seen before
        reason = self.reason(conv, norm, relu)
        if {first, second} & set(getattr(parent, "return_layers", ())):
            reason = "the network returns what is between them"
        if reason:
            self.left[f"{name}.{first}".lstrip(".")] = reason
            return
        if scaled and type(conv) is not PyramidConv2d:
            _folded(conv, norm, relu=relu is not None)
            if third is not None:
                parent._modules[third] = nn.Identity()
        else:
            _scaled(conv, norm)
        parent._modules[second] = nn.Identity()

    def reason(self, conv, norm, relu):
        """Why a convolution and its batch normalisation must stay as they are, or None."""
        kinds = (*CONVOLUTIONS, PyramidConv2d)
        for module, known in ((conv, kinds), (norm, NORMS), (relu, (nn.ReLU,))):
            if module is None:
                continue
            if stock_class(module) not in known:
                return f"{type(module).__name__} is not {known[0].__name__}"
            if not is_plain(module, known):
                return f"hooks, or a forward of its own, are to see the call of {type(module).__name__}"
            if self.uses[module] > 1:
                return f"{type(module).__name__} is used in several places"
        if norm.training or norm.running_mean is None:
            return f"{type(norm).__name__} has no fixed statistics, or is in training mode"
        if conv.padding_mode != "zeros":
            return f"padding_mode is {conv.padding_mode!r}"
        if type(conv) is PyramidConv2d and conv.weight.dtype not in WIDE:
            return f"pyramid_conv2d has no scale, which {conv.weight.dtype} weights would need"
        return None

    def warn(self):
        if self.left:
            more = "; ..." if len(self.left) > SHOWN else ""
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.left.items())[:SHOWN]) + more
            warnings.warn(f"fold: {len(self.left)} left as they are ({listed})", stacklevel=3)


def _is_norm(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_relu(module):
    return isinstance(module, nn.ReLU)


def _folded(conv, norm, relu):
    dtype = conv.weight.dtype
    scale, shift = scale_and_shift(conv, norm, torch.float64)
    if dtype not in WIDE:
        FoldedConv2d.of(conv, conv.weight, scale.to(dtype), shift.to(dtype), relu)
        return
    weight = _times(conv.weight, scale)
    FoldedConv2d.of(conv, weight, None, shift.to(dtype), relu)


def _scaled(conv, norm):
    """As _folded, into a convolution that stays of its class."""
    scale, shift = scale_and_shift(conv, norm, torch.float64)
    conv.weight = nn.Parameter(_times(conv.weight, scale), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)


def _times(weight, scale):
    """scale[o] weight[o, ...] in the weight's dtype and memory format."""
    result = torch.empty_like(weight)
    for of_result, of_weight, factor in zip(result, weight, scale, strict=True):  # a copy in float64 is twice as large
        of_result.copy_(of_weight.double() * factor)
    return result
