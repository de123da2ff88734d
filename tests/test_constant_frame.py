"""The maps of VGG-16's stages without the frame, against whole ones, and when it stays. Labels: test_fcn.py."""

import copy

import pytest
import torch
from torch import nn

from fastseg import models
from fastseg.models import fcn_vgg16
from fastseg.models.constant_frame import framed_maps, may_leave_out_the_frame

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_maps_without_the_frame(monkeypatch):
    """Of images of every size modulo the stride, and of parts of a network that was made narrow, in float64."""
    monkeypatch.setattr(fcn_vgg16, "STAGES", tuple((8, count) for _, count in fcn_vgg16.STAGES))
    torch.manual_seed(0)
    layers = {name: layer.double() for name, layer in fcn_vgg16.vgg16(fc_channels=4).layers.items()}
    for name in list(layers)[list(layers).index("pool4") + 1 :]:
        del layers[name]
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, 0, 0.3)
    for height in (1, *range(64, 80)):
        images = torch.randn(2, 3, height, 100 - height, dtype=torch.float64)
        images[0, 0, 0, 0] = float("nan")
        want, x = {}, images
        for name, layer in layers.items():
            x = want[name] = layer(x).clone()
        assert want["pool4"][1].std() > 0.01
        got = framed_maps(layers, images, {"pool3", "pool4"})
        assert got.keys() == {"pool3", "pool4"}
        for name, y in got.items():
            torch.testing.assert_close(y, want[name], rtol=1e-10, atol=1e-12, equal_nan=True)
    assert framed_maps(layers, images[:0], {"pool4"})["pool4"].shape == want["pool4"][:0].shape


def test_what_the_frame_may_not_be_left_out_of():
    """Layers that others would replace, change or watch."""
    changes = {
        "no padding by 100": lambda m: setattr(m.conv1_1, "padding", (81, 81)),
        "padding": lambda m: setattr(m.conv2_1, "padding", (2, 2)),
        "padding mode": lambda m: setattr(m.conv2_1, "padding_mode", "reflect"),
        "dilation": lambda m: setattr(m.conv3_1, "dilation", (2, 2)),
        "stride": lambda m: setattr(m.conv3_1, "stride", (2, 2)),
        "kernel": lambda m: setattr(m.conv3_1, "kernel_size", (5, 5)),
        "groups": lambda m: setattr(m.conv3_1, "groups", 2),
        "nested": lambda m: setattr(m, "conv2_1", nn.Sequential(m.conv2_1)),
        "pooling downwards": lambda m: setattr(m.pool2, "ceil_mode", False),
        "pooling by 3": lambda m: setattr(m.pool2, "kernel_size", 3),
        "no pooling": lambda m: setattr(m, "pool4", nn.ReLU()),
        "own forward": lambda m: setattr(m.conv4_1, "forward", lambda x: x),
        "hook": lambda m: m.conv4_3.register_forward_hook(lambda module, inputs, y: y * 2),
    }
    with torch.device("meta"):
        network = models.fcn8s_vgg16(num_classes=1, fc_channels=1)
        end = network.classifier_layers.index("pool4") + 1

        def may(network):
            return may_leave_out_the_frame([getattr(network, name) for name in network.classifier_layers[:end]])

        assert may(network) and not may_leave_out_the_frame([])
        for what, change in changes.items():
            changed = copy.deepcopy(network)
            change(changed)
            assert not may(changed), what
