"""segmentation_models_pytorch: PSPNet's decoder, and where logits are before a model upsamples them.

Its ASPP is torchvision's (patches/torchvision.py), and its upsampling an nn.UpsamplingBilinear2d (patches/torch_nn.py).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fastseg.nn.joined import joined, why_not_joining
from fastseg.nn.watched import is_plain
from fastseg.patches.layers import SEQUENTIAL, first_reason, pyramid_priors, why_not_bypass, why_not_pooling
from fastseg.patches.registry import Patch, low_logits, register

LIBRARY = "segmentation_models_pytorch"
PSPNET = f"{LIBRARY}.decoders.pspnet.decoder"
CONV_RELU = f"{LIBRARY}.base.modules.Conv2dReLU"


@register(f"{PSPNET}.PSPDecoder")
class PSPDecoder(Patch):
    """The priors come first in its convolution, and the features last; align_corners=True."""

    ops = ("pyramid_pool", "pyramid_conv2d")
    reads = frozenset({"psp", "conv", "dropout"})

    @staticmethod
    def why_not(module):
        return first_reason(_reasons(module))

    def forward(self, features: list[Tensor]) -> Tensor:
        if not torch.jit.is_scripting():
            return self.fastseg_call(features)
        return self.fastseg_stock(features)

    def fused(self, features):
        x = features[-1]
        priors = pyramid_priors(x, [block.pool for block in self.psp.blocks])
        conv, *layers = self.conv
        return self.dropout(joined(x, priors, conv, layers, align_corners=True, priors_first=True))


def _reasons(module):
    yield why_not_bypass("psp", module.psp, f"{PSPNET}.PSPModule")
    for i, block in enumerate(module.psp.blocks):
        yield why_not_bypass(f"psp.blocks.{i}", block, f"{PSPNET}.PSPBlock")
        yield why_not_bypass(f"psp.blocks.{i}.pool", block.pool, SEQUENTIAL)
        yield why_not_pooling(f"psp.blocks.{i}.pool.0", block.pool[0])
    yield why_not_bypass("conv", module.conv, CONV_RELU)
    yield why_not_joining("conv.0", module.conv[0])


@low_logits(f"{LIBRARY}.decoders.pspnet.model.PSPNet", f"{LIBRARY}.decoders.deeplabv3.model.DeepLabV3")
def logits(model, x, aux):
    head = model.segmentation_head
    if why_not_bypass("", head, f"{LIBRARY}.base.heads.SegmentationHead") is not None:
        return None
    conv, upsampling, activation = head
    if not (
        is_plain(upsampling, (nn.Upsample, nn.UpsamplingBilinear2d))
        and why_not_bypass("", activation, f"{LIBRARY}.base.modules.Activation") is None
        and is_plain(activation.activation, (nn.Identity,))
    ):
        return None
    model.check_input_shape(x)
    low = conv(model.decoder(model.encoder(x)))
    if [side * upsampling.scale_factor for side in low.shape[2:]] != list(x.shape[2:]):
        low = upsampling(low)
    return OrderedDict(out=low), bool(upsampling.align_corners)
