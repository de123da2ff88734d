"""What `fastseg.fold` makes of convolutions and blocks: modules without batch normalisation."""

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.nn.atrous import AtrousConv2d
from fastseg.ops import atrous_conv2d
from fastseg.ops.recording import is_recording


class FoldedConv2d(AtrousConv2d):
    """A convolution with the batch normalisation after it, (N, C, H, W) -> (N, O, H', W'): the scale is in its weight,
    or in `scale`, the shift is its bias. Then a residual may be added, and a ReLU. Made by `fastseg.fold`."""

    @classmethod
    def of(cls, conv, weight, scale, bias, relu):
        """Turns a module of class nn.Conv2d or AtrousConv2d into one of this class."""
        conv.__class__ = cls
        conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        conv.register_buffer("scale", scale)  # (O,), or None
        conv.relu = relu
        return conv

    def forward(self, input, residual=None):
        how = self.stride, self.padding, self.dilation, self.groups
        if not is_recording(input):
            after = {"scale": self.scale, "residual": residual, "relu": self.relu}
            return atrous_conv2d(input, self.weight, self.bias, *how, **after)
        if self.scale is None:
            output = F.conv2d(input, self.weight, self.bias, *how)
        else:
            output = F.conv2d(input, self.weight, None, *how)
            output = torch.addcmul(self.bias[:, None, None], output, self.scale[:, None, None])
        output = output if residual is None else output + residual
        return F.relu(output) if self.relu else output

    def extra_repr(self):
        return f"{super().extra_repr()}, scaled={self.scale is not None}, relu={self.relu}"


class FoldedBottleneck(nn.Module):
    """A ResNet's bottleneck of three FoldedConv2d, the last of which adds the shortcut. Made by `fastseg.fold`."""

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)
