"""The networks that ours compete with, torchvision's and PSPNet as its paper draws it; with weights always the same."""

import torch
import torch.nn.functional as F

from fastseg import models
from fastseg.bench.vision import torchvision_segmentation

CLASSES = 21  # of VOC


class ConcatenatingPSPNet(torch.nn.Module):
    """The layers of our PSPNet with the pyramid pooled, upsampled and concatenated, and everything at full size."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        net, size = self.network, x.shape[2:]
        features = net.layer3(net.layer2(net.layer1(net.layer0(x))))
        x = net.layer4(features)
        priors = [
            branch(F.adaptive_avg_pool2d(x, bin)) for bin, branch in zip(net.ppm.bins, net.ppm.features, strict=True)
        ]
        x = torch.cat([x, *(self.upsampled(prior, x.shape[2:]) for prior in priors)], 1)
        convolution, *layers = net.cls
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=convolution.padding)
        for layer in layers:
            x = layer(x)
        logits = {"out": self.upsampled(x, size)}
        if net.aux is not None:
            logits["aux"] = self.upsampled(net.aux(features), size)
        return logits

    def upsampled(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.network.align_corners)


def stock(name, aux_loss):
    """Images -> {"out": logits at full size, "aux" with an auxiliary head}."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if name.startswith("pspnet"):
            return ConcatenatingPSPNet(getattr(models, name)(num_classes=CLASSES, aux_loss=aux_loss))
        build = getattr(torchvision_segmentation(), name)
        return build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=aux_loss)


def ours(name, aux_loss):
    """Our network with the same weights."""
    plain = stock(name, aux_loss)
    if isinstance(plain, ConcatenatingPSPNet):
        return plain.network
    network = getattr(models, name)(num_classes=CLASSES, aux_loss=aux_loss)
    network.load_state_dict(plain.state_dict())
    return network
