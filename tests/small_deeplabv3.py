"""A small DeepLabV3 of torchvision's classes, and how outputs are compared."""

import copy
import importlib.util
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCNHead

SIZE = (48, 72)


def layer(channels, outputs, **keywords):
    return nn.Sequential(nn.Conv2d(channels, outputs, 3, bias=False, **keywords), nn.BatchNorm2d(outputs), nn.ReLU())


def trained_a_little(model):
    """Fresh BatchNorms hide mistakes, and so does dropout."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return model


def network():
    torch.manual_seed(0)
    layers = OrderedDict(
        stem=layer(3, 8, stride=8, padding=1),
        layer3=layer(8, 16, padding=2, dilation=2),
        layer4=layer(16, 24, padding=4, dilation=4),
    )
    backbone = IntermediateLayerGetter(nn.Sequential(layers), {"layer3": "aux", "layer4": "out"})
    return trained_a_little(DeepLabV3(backbone, DeepLabHead(24, 5), FCNHead(16, 5))).eval()


def check_same(output, stock):
    assert list(output) == list(stock)
    for name, logits in stock.items():
        torch.testing.assert_close(output[name], logits, rtol=1e-5, atol=1e-6)


def logits_and_gradients(model, x, dtype):
    model = copy.deepcopy(model).to(dtype)
    output = model(x.to(dtype))
    sum(logits.square().mean() for logits in output.values()).backward()
    return {**output, **{name: parameter.grad for name, parameter in model.named_parameters()}}


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
