"""Hugging Face transformers: the pyramid of UperNet."""

from fastseg.nn.joined import joined, why_not_joining
from fastseg.patches.layers import first_reason, pyramid_priors, why_not_bypass, why_not_pooling
from fastseg.patches.registry import Patch, register

UPERNET = "transformers.models.upernet.modeling_upernet"


@register(f"{UPERNET}.UperNetHead")
class UperNetHead(Patch):
    """The features come first in the bottleneck, then the priors."""

    ops = ("pyramid_pool", "pyramid_conv2d")
    method = "psp_forward"
    reads = frozenset({"extend", "psp_modules", "torch", "cat", "bottleneck"})

    @staticmethod
    def why_not(module):
        return first_reason(_reasons(module))

    def fused(self, inputs):
        x, after = inputs[-1], self.bottleneck
        branches = [block.layers for block in self.psp_modules.blocks]
        priors = pyramid_priors(x, branches)
        layers = after.batch_norm, after.activation
        return joined(x, priors, after.conv, layers, self.psp_modules.align_corners)


def _reasons(module):
    yield why_not_bypass("psp_modules", module.psp_modules, f"{UPERNET}.UperNetPyramidPoolingModule")
    for i, block in enumerate(module.psp_modules.blocks):
        yield why_not_bypass(f"psp_modules.{i}", block, f"{UPERNET}.UperNetPyramidPoolingBlock")
        yield why_not_pooling(f"psp_modules.{i}.0", block.layers[0])
    yield why_not_bypass("bottleneck", module.bottleneck, f"{UPERNET}.UperNetConvModule")
    yield why_not_joining("bottleneck.conv", module.bottleneck.conv)
