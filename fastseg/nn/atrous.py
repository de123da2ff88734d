"""Atrous (dilated) convolution as a module."""

from torch import nn

from fastseg.ops import atrous_conv2d
from fastseg.ops.recording import is_recording


class AtrousConv2d(nn.Conv2d):
    """nn.Conv2d: (N, C, H, W) -> (N, O, H', W'), with the same arguments and state dict.

    A padding_mode other than "zeros" runs as in nn.Conv2d.
    """

    def forward(self, input):
        if self.padding_mode != "zeros" or is_recording(input):
            return super().forward(input)
        how = self.stride, self.padding, self.dilation, self.groups
        return atrous_conv2d(input, self.weight, self.bias, *how)

    def set_rate(self, rate):
        """Change the dilation of a module with an odd kernel, and its padding, which keeps H and W with stride 1."""
        self.dilation = (rate, rate)
        self.padding = tuple(rate * (k // 2) for k in self.kernel_size)
        self._reversed_padding_repeated_twice = [p for p in reversed(self.padding) for _ in range(2)]
