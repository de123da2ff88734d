"""Other libraries' networks, each written out under its library's names, with random weights, and what they compute.

They have few blocks and see a wide image, on which the largest rate still reaches a second pixel, and of sides at which
a pooling that rounds up has one row and column more.
"""

import functools
import math

import torch
import torch.nn.functional as F

from fastseg import models
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.fcn import FCN
from fastseg.models.pspnet import PSPNet
from fastseg.models.resnet import BLOCKS

SMALL = (1, 1, 2, 3)  # blocks: a second one shows which dilation the first has, and three a multi-grid
CLASSES = 5
EXACT = 1e-10
# Dilations of the last two stages, by output stride: with the first block's contracted, and without.
CONTRACTED = {8: {3: (1, 2), 4: (2, 4, 4)}, 16: {3: (1, 1), 4: (1, 2, 2)}}
UNCONTRACTED = {8: {3: (2, 2), 4: (4, 4, 4)}, 16: {3: (1, 1), 4: (2, 2, 2)}}
IMAGES = torch.randn(1, 3, 15, 311, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def add_small_networks(monkeypatch):
    """fcn_resnet9, pspnet_resnet9 and deeplabv3_resnet9."""
    monkeypatch.setitem(BLOCKS, 9, SMALL)
    for kind in (FCN, PSPNet, DeepLabV3):
        name = f"{kind.family}_resnet9"
        monkeypatch.setitem(models._FACTORIES, name, lambda kind=kind, **keywords: kind(SMALL, **keywords))


class Layers:
    """Layers by name, whose weights are made when they are first called."""

    numbers = torch.randn(1000003, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def __init__(self):
        self.weights = {}

    def weight(self, name, make):
        if name not in self.weights:
            self.weights[name] = make().float().double()  # what a network in float32 holds
        return self.weights[name]

    def random(self, *shape):
        """Different for each weight, and cheap: the same numbers again and again, from another one on."""
        size = math.prod(shape)
        numbers = self.numbers[997 * len(self.weights) :]
        return numbers.repeat(1 + size // len(numbers))[:size].view(shape)

    def conv(self, name, x, width, size=1, stride=1, dilation=1, bias=False):
        shape = (width, x.shape[1], size, size)
        weight = self.weight(f"{name}.weight", lambda: self.random(*shape) * (2 / (shape[1] * size**2)) ** 0.5)
        bias = self.weight(f"{name}.bias", lambda: self.random(width)) if bias else None
        return F.conv2d(x, weight, bias, stride, dilation * (size // 2), dilation)

    def bn(self, name, x):
        mean = self.weight(f"{name}.running_mean", lambda: 0.3 * self.random(x.shape[1]))
        variance = self.weight(f"{name}.running_var", lambda: 0.5 + self.random(x.shape[1]) ** 2)
        weight = self.weight(f"{name}.weight", lambda: 1 + 0.2 * self.random(x.shape[1]))
        bias = self.weight(f"{name}.bias", lambda: 0.2 * self.random(x.shape[1]))
        self.weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, variance, weight, bias)

    def unit(self, names, x, width, size=1, **how):
        conv, bn = names
        return F.relu(self.bn(bn, self.conv(conv, x, width, size, **how)))

    def stem(self, x, names, widths, ceil_mode=False):
        for k, (pair, width) in enumerate(zip(names, widths, strict=True)):
            x = self.unit(pair, x, width, 7 if len(widths) == 1 else 3, stride=1 if k else 2)
        return F.max_pool2d(x, 3, 2, 1, ceil_mode=ceil_mode)

    def stages(self, x, names, dilations, output_stride=8, stride_first=False):
        """names(stage, block) are four pairs: of the three convolutions and of the shortcut."""
        for stage, count in enumerate(SMALL, start=1):
            for block in range(count):
                one, two, three, shortcut = names(stage, block)
                stride = 2 if block == 0 and stage > 1 and 2 ** (stage + 1) <= output_stride else 1
                dilation = dilations[stage][block] if stage > 2 else 1
                strides = (stride, 1) if stride_first else (1, stride)
                width = 32 * 2**stage
                y = self.unit(one, x, width, stride=strides[0])
                y = self.unit(two, y, width, 3, stride=strides[1], dilation=dilation)
                y = self.bn(three[1], self.conv(three[0], y, 4 * width))
                if block == 0:
                    x = self.bn(shortcut[1], self.conv(shortcut[0], x, 4 * width, stride=stride))
                x = F.relu(x + y)
            if stage == 3:
                features = x
        return features, x

    def aspp(self, x, names, rates, width=256):
        """The results of the 1x1 and the three atrous convolutions, and the mean; names are five pairs."""
        maps = [self.unit(names[0], x, width)]
        maps += [self.unit(pair, x, width, 3, dilation=rate) for pair, rate in zip(names[1:4], rates, strict=True)]
        mean = self.unit(names[4], x.mean((2, 3), keepdim=True), width)
        return maps, mean.expand(-1, -1, *x.shape[2:])

    def pyramid(self, x, names, align_corners):
        maps = [x]
        for pair, cells in zip(names, (1, 2, 3, 6), strict=True):
            maps.append(resized(self.unit(pair, F.adaptive_avg_pool2d(x, cells), 512), x, align_corners))
        return torch.cat(maps, 1)


def resized(x, like, align_corners=False):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


def pairs(*patterns):
    """("a.{0,1}", ...) as in a shell -> (("a.0", "a.1"), ...)."""
    split = [(pattern[: pattern.index("{")], *pattern[pattern.index("{") + 1 :].split("}")) for pattern in patterns]
    return [tuple(before + part + after for part in both.split(",")) for before, both, after in split]


def torchvision_blocks(prefix):
    def names(stage, block):
        here = f"{prefix}layer{stage}.{block}"
        return pairs(*(f"{here}.{{conv{n},bn{n}}}" for n in (1, 2, 3)), f"{here}.downsample.{{0,1}}")

    return names


def deep_stem(prefix):
    return pairs(*(f"{prefix}.{{{k},{k + 1}}}" for k in (0, 3, 6)))


def torchvision_fcn(net, images):
    x = net.stem(images, pairs("backbone.{conv1,bn1}"), [64])
    features, x = net.stages(x, torchvision_blocks("backbone."), CONTRACTED[8])
    x = net.conv("classifier.4", net.unit(("classifier.0", "classifier.1"), x, 512, 3), CLASSES, bias=True)
    aux = net.unit(("aux_classifier.0", "aux_classifier.1"), features, 256, 3)
    return {"out": x, "aux": net.conv("aux_classifier.4", aux, CLASSES, bias=True)}


def torchvision_aspp(net, prefix, x, rates):
    convs = [f"{prefix}.convs.{k}.{{0,1}}" for k in range(4)] + [f"{prefix}.convs.4.{{1,2}}"]
    maps, mean = net.aspp(x, pairs(*convs), rates)
    return net.unit((f"{prefix}.project.0", f"{prefix}.project.1"), torch.cat([*maps, mean], 1), 256)


def torchvision_deeplabv3(net, images):
    x = net.stem(images, pairs("backbone.{conv1,bn1}"), [64])
    features, x = net.stages(x, torchvision_blocks("backbone."), CONTRACTED[8])
    x = torchvision_aspp(net, "classifier.0", x, (12, 24, 36))
    x = net.conv("classifier.4", net.unit(("classifier.1", "classifier.2"), x, 256, 3), CLASSES, bias=True)
    aux = net.unit(("aux_classifier.0", "aux_classifier.1"), features, 256, 3)
    return {"out": x, "aux": net.conv("aux_classifier.4", aux, CLASSES, bias=True)}


def vainf_deeplabv3(net, images, output_stride):
    x = net.stem(images, pairs("backbone.{conv1,bn1}"), [64])
    _, x = net.stages(x, torchvision_blocks("backbone."), CONTRACTED[output_stride], output_stride)
    head = "classifier.classifier"
    x = torchvision_aspp(net, f"{head}.0", x, (6, 12, 18) if output_stride == 16 else (12, 24, 36))
    return {"out": net.conv(f"{head}.4", net.unit((f"{head}.1", f"{head}.2"), x, 256, 3), CLASSES, bias=True)}


def smp_deeplabv3(net, images, output_stride):
    x = net.stem(images, pairs("encoder.{conv1,bn1}"), [64])
    _, x = net.stages(x, torchvision_blocks("encoder."), UNCONTRACTED[output_stride], output_stride)
    x = torchvision_aspp(net, "decoder.aspp", x, (12, 24, 36))
    x = net.unit(("decoder.conv", "decoder.bn"), x, 256, 3)
    return {"out": net.conv("segmentation_head.0", x, CLASSES, bias=True)}


def semseg_pspnet(net, images):
    x = net.stem(images, deep_stem("layer0"), [64, 64, 128])
    features, x = net.stages(x, torchvision_blocks(""), UNCONTRACTED[8])
    x = net.pyramid(x, pairs(*(f"ppm.features.{k}.{{1,2}}" for k in range(4))), True)
    x = net.conv("cls.4", net.unit(("cls.0", "cls.1"), x, 512, 3), CLASSES, bias=True)
    aux = net.unit(("aux.0", "aux.1"), features, 256, 3)
    return {"out": x, "aux": net.conv("aux.4", aux, CLASSES, bias=True)}


def mmseg(head, dilations=None, output_stride=8, plain_stem=False, head_dilation=1):
    def forward(net, images):
        stem = (pairs("backbone.{conv1,bn1}"), [64]) if plain_stem else (deep_stem("backbone.stem"), [32, 32, 64])
        features, x = net.stages(
            net.stem(images, *stem),
            torchvision_blocks("backbone."),
            dilations or CONTRACTED[output_stride],
            output_stride,
        )
        x = net.conv("decode_head.conv_seg", head(net, x), CLASSES, bias=True)
        aux = net.unit(pairs("auxiliary_head.convs.0.{conv,bn}")[0], features, 256, 3, dilation=head_dilation)
        return {"out": x, "aux": net.conv("auxiliary_head.conv_seg", aux, CLASSES, bias=True)}

    return forward


def mmseg_fcn(dilation):
    def head(net, x):
        one, two, joined = pairs(*(f"decode_head.{name}.{{conv,bn}}" for name in ("convs.0", "convs.1", "conv_cat")))
        y = net.unit(two, net.unit(one, x, 512, 3, dilation=dilation), 512, 3, dilation=dilation)
        return net.unit(joined, torch.cat([x, y], 1), 512, 3)

    return head


def mmseg_pspnet(align_corners):
    def head(net, x):
        x = net.pyramid(x, pairs(*(f"decode_head.psp_modules.{k}.1.{{conv,bn}}" for k in range(4))), align_corners)
        return net.unit(pairs("decode_head.bottleneck.{conv,bn}")[0], x, 512, 3)

    return head


def mmseg_deeplabv3(rates):
    def head(net, x):
        names = [*(f"aspp_modules.{k}" for k in range(4)), "image_pool.1"]
        maps, mean = net.aspp(x, pairs(*(f"decode_head.{name}.{{conv,bn}}" for name in names)), rates, 512)
        return net.unit(pairs("decode_head.bottleneck.{conv,bn}")[0], torch.cat([mean, *maps], 1), 512, 3)

    return head


def kazuto_deeplabv3(output_stride, multi_grid, rates):
    """Of the base network, without the pyramid of images around it."""

    def names(stage, block):
        here = f"layer{stage + 1}.block{block + 1}"
        return pairs(*(f"{here}.{part}.{{conv,bn}}" for part in ("reduce", "conv3x3", "increase", "shortcut")))

    def forward(net, images):
        dilations = UNCONTRACTED[output_stride] | {4: [16 // output_stride * 2 * factor for factor in multi_grid]}
        x = net.stem(images, pairs("layer1.conv1.{conv,bn}"), [64], ceil_mode=True)
        _, x = net.stages(x, names, dilations, output_stride, stride_first=True)
        stages = [*(f"aspp.stages.c{k}" for k in range(4)), "aspp.stages.imagepool.conv"]
        maps, mean = net.aspp(x, pairs(*(f"{name}.{{conv,bn}}" for name in stages)), rates)
        x = net.unit(("fc1.conv", "fc1.bn"), torch.cat([*maps, mean], 1), 256)
        return {"out": net.conv("fc2", x, CLASSES, bias=True)}

    return forward


def pytorchcv(head, width):
    def names(stage, block):
        here = f"backbone.{stage}.unit{block + 1}"
        body = [f"{here}.body.conv{n}.{{conv,bn}}" for n in (1, 2, 3)]
        return pairs(*body, f"{here}.identity_conv.{{conv,bn}}")

    def forward(net, images):
        stem = pairs(*(f"backbone.0.conv{k}.{{conv,bn}}" for k in (1, 2, 3)))
        features, x = net.stages(net.stem(images, stem, [64, 64, 128]), names, CONTRACTED[8])
        x = net.unit(pairs("final_block.conv1.{conv,bn}")[0], head(net, x), width, 3)
        aux = net.unit(pairs("aux_block.conv1.{conv,bn}")[0], features, 256, 3)
        return {
            "out": net.conv("final_block.conv2", x, CLASSES, bias=True),
            "aux": net.conv("aux_block.conv2", aux, CLASSES, bias=True),
        }

    return forward


def pytorchcv_pspnet(net, x):
    return net.pyramid(x, pairs(*(f"pool.branches.branch{k}.conv.{{conv,bn}}" for k in (2, 3, 4, 5))), True)


def pytorchcv_deeplabv3(net, x):
    branches = [*(f"pool.branches.branch{k}" for k in (1, 2, 3, 4)), "pool.branches.branch5.conv"]
    maps, mean = net.aspp(x, pairs(*(f"{name}.{{conv,bn}}" for name in branches)), (12, 24, 36))
    return net.unit(("pool.conv.conv", "pool.conv.bn"), torch.cat([*maps, mean], 1), 256)


GRID = {"output_stride": 16, "multi_grid": (1, 2, 4)}
RATES = (6, 12, 18)
D8, CORNERS = {"output_stride": 8, "align_corners": False}, {"align_corners": True}
# library, family and form: the network, align_corners of its last interpolation, what the caller says
CASES = {
    "torchvision fcn": (torchvision_fcn, False, {}),
    "torchvision deeplabv3": (torchvision_deeplabv3, False, {}),
    "segmentation_models_pytorch deeplabv3": (lambda *a: smp_deeplabv3(*a, 8), True, {"output_stride": 8}),
    "segmentation_models_pytorch deeplabv3 16": (lambda *a: smp_deeplabv3(*a, 16), True, {"output_stride": 16}),
    "semseg pspnet": (semseg_pspnet, True, {}),
    "mmsegmentation fcn": (mmseg(mmseg_fcn(1)), False, D8),
    "mmsegmentation fcn b": (mmseg(mmseg_fcn(1), plain_stem=True), True, D8 | CORNERS),
    "mmsegmentation fcn d6": (
        mmseg(mmseg_fcn(6), output_stride=16, head_dilation=6),
        False,
        D8 | {"output_stride": 16},
    ),
    "mmsegmentation pspnet": (mmseg(mmseg_pspnet(False)), False, D8),
    "mmsegmentation pspnet 769": (mmseg(mmseg_pspnet(True)), True, D8 | CORNERS),
    "mmsegmentation pspnet 16": (mmseg(mmseg_pspnet(False), output_stride=16), False, D8 | {"output_stride": 16}),
    "mmsegmentation deeplabv3": (mmseg(mmseg_deeplabv3((12, 24, 36))), False, D8),
    "mmsegmentation deeplabv3 mg124": (
        mmseg(mmseg_deeplabv3(RATES), {3: (1, 1), 4: (1, 2, 4)}, 16),
        False,
        {"align_corners": False, "output_stride": 16},
    ),
    "vainf deeplabv3": (lambda *a: vainf_deeplabv3(*a, 16), False, {"output_stride": 16}),
    "vainf deeplabv3 8": (lambda *a: vainf_deeplabv3(*a, 8), False, {"output_stride": 8}),
    "kazuto1011 deeplabv3": (kazuto_deeplabv3(16, (1, 2, 4), RATES), False, GRID),
    "kazuto1011 deeplabv3 8": (
        kazuto_deeplabv3(8, (1, 1, 1), (12, 24, 36)),
        False,
        {"output_stride": 8, "multi_grid": (1, 1, 1), "rates": (12, 24, 36)},
    ),
    "pytorchcv fcn": (pytorchcv(lambda net, x: x, 512), True, {}),
    "pytorchcv pspnet": (pytorchcv(pytorchcv_pspnet, 512), True, {}),
    "pytorchcv deeplabv3": (pytorchcv(pytorchcv_deeplabv3, 256), True, {}),
}


@functools.cache
def written_out(case):
    """(state dict, logits at the features' resolution)."""
    net = Layers()
    logits = CASES[case][0](net, IMAGES)
    return net.weights, logits


def network_of(case):
    return f"{case.split()[1]}_resnet9"


def relative_error(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def halved(weights):
    return {name: tensor.half() for name, tensor in weights.items()}
