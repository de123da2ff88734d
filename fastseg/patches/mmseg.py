"""mmsegmentation's PSPHead and ASPPHead. Its FCNHead, and all backbones, gain by their dilated convolutions."""

from collections import OrderedDict

from fastseg.nn.joined import joined, why_not_joining
from fastseg.patches.layers import SEQUENTIAL, aspp_maps, first_reason, pyramid_priors, why_not_bypass, why_not_pooling
from fastseg.patches.registry import Patch, low_logits, register

HEADS = "mmseg.models.decode_heads"
ASPP_READS = "_transform_inputs resize image_pool size align_corners extend aspp_modules torch cat bottleneck"
CONV_MODULE = "mmcv.cnn.bricks.conv_module.ConvModule"


def row_of(module):
    """The layers of a ConvModule in order: the convolution, and the norm and the activation it has."""
    norm = [module.norm] if module.with_norm else []
    return [module.conv, *norm, *([module.activate] if module.with_activation else [])]


def why_not_row(name, module):
    if reason := why_not_bypass(name, module, CONV_MODULE):
        return reason
    usual = module.order == ("conv", "norm", "act") and not module.with_explicit_padding
    return None if usual else f"{name} has another order or padding"


def _why_not_joined(name, module):
    return why_not_row(name, module) or why_not_joining(f"{name}.conv", module.conv)


@register(f"{HEADS}.psp_head.PSPHead")
class PSPHead(Patch):
    """The features come first in the bottleneck, then the priors."""

    ops = ("pyramid_pool", "pyramid_conv2d")
    method = "_forward_feature"
    reads = frozenset({"_transform_inputs", "extend", "psp_modules", "torch", "cat", "bottleneck"})

    @staticmethod
    def why_not(module):
        return first_reason(_psp_reasons(module))

    def fused(self, inputs):
        x = self._transform_inputs(inputs)
        conv, *layers = row_of(self.bottleneck)
        return joined(x, pyramid_priors(x, self.psp_modules), conv, layers, self.psp_modules.align_corners)


def _psp_reasons(module):
    yield why_not_bypass("psp_modules", module.psp_modules, f"{HEADS}.psp_head.PPM")
    for i, branch in enumerate(module.psp_modules):
        yield why_not_bypass(f"psp_modules.{i}", branch, SEQUENTIAL)
        yield why_not_pooling(f"psp_modules.{i}.0", branch[0])
    yield _why_not_joined("bottleneck", module.bottleneck)


@register(f"{HEADS}.aspp_head.ASPPHead")
class ASPPHead(Patch):
    """The image's mean comes first in the bottleneck, which is 3x3."""

    ops = ("atrous_pyramid", "pyramid_conv2d")
    method = "_forward_feature"
    reads = frozenset(ASPP_READS.split())

    @staticmethod
    def why_not(module):
        return first_reason(
            (
                why_not_bypass("aspp_modules", module.aspp_modules, f"{HEADS}.aspp_head.ASPPModule"),
                _why_not_joined("bottleneck", module.bottleneck),
            )
        )

    def fused(self, inputs):
        x = self._transform_inputs(inputs)
        rows = [tuple(row_of(each)) if why_not_row("", each) is None else None for each in self.aspp_modules]
        rows = [row if row is not None and len(row) == 3 else None for row in rows]
        maps, mean = aspp_maps(x, self.aspp_modules, rows), self.image_pool(x)
        conv, *layers = row_of(self.bottleneck)
        return joined(maps, [mean], conv, layers, self.align_corners, priors_first=True)


@low_logits("mmseg.models.segmentors.encoder_decoder.EncoderDecoder")
def logits(model, x, aux):
    features = model.extract_feat(x)
    result = OrderedDict(out=model.decode_head(features))
    if aux and model.with_auxiliary_head and not isinstance(model.auxiliary_head, list):
        heads = model.auxiliary_head if hasattr(model.auxiliary_head, "__len__") else [model.auxiliary_head]
        if len(heads) != 1:
            return None
        result["aux"] = heads[0](features)
    return result, model.align_corners
