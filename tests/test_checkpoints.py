"""Weights of other libraries: each library's network written out under its own names, with the same random weights.

The networks have few blocks and see a wide image, on which the largest rate still reaches a second pixel, and of sides
at which a pooling that rounds up has one row and column more.
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from fastseg import load_checkpoint, models
from fastseg.cli import main
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.fcn import FCN
from fastseg.models.preprocess import CAFFE, IMAGENET
from fastseg.models.pspnet import PSPNet
from fastseg.models.resnet import BLOCKS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (1, 1, 2, 3)  # blocks: a second one shows which dilation the first has, and three a multi-grid
CLASSES = 5
EXACT = 1e-10
# Dilations of the last two stages, by output stride: with the first block's contracted, and without.
CONTRACTED = {8: {3: (1, 2), 4: (2, 4, 4)}, 16: {3: (1, 1), 4: (1, 2, 2)}}
UNCONTRACTED = {8: {3: (2, 2), 4: (4, 4, 4)}, 16: {3: (1, 1), 4: (2, 2, 2)}}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """fcn_resnet9, pspnet_resnet9 and deeplabv3_resnet9."""
    monkeypatch.setitem(BLOCKS, 9, SMALL)
    for family, kind in (("fcn", FCN), ("pspnet", PSPNet), ("deeplabv3", DeepLabV3)):
        monkeypatch.setitem(
            models._FACTORIES, f"{family}_resnet9", lambda kind=kind, **keywords: kind(SMALL, **keywords)
        )


@pytest.fixture(scope="module")
def images():
    return torch.randn(1, 3, 15, 311, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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


def mmseg(head, dilations=CONTRACTED[8], output_stride=8, plain_stem=False):
    def forward(net, images):
        stem = (pairs("backbone.{conv1,bn1}"), [64]) if plain_stem else (deep_stem("backbone.stem"), [32, 32, 64])
        features, x = net.stages(
            net.stem(images, *stem), torchvision_blocks("backbone."), dilations, output_stride=output_stride
        )
        x = net.conv("decode_head.conv_seg", head(net, x), CLASSES, bias=True)
        aux = net.unit(pairs("auxiliary_head.convs.0.{conv,bn}")[0], features, 256, 3)
        return {"out": x, "aux": net.conv("auxiliary_head.conv_seg", aux, CLASSES, bias=True)}

    return forward


def mmseg_fcn(net, x):
    one, two, joined = pairs(*(f"decode_head.{name}.{{conv,bn}}" for name in ("convs.0", "convs.1", "conv_cat")))
    return net.unit(joined, torch.cat([x, net.unit(two, net.unit(one, x, 512, 3), 512, 3)], 1), 512, 3)


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
# library, family and form: the network, align_corners of its last interpolation, what the caller says
CASES = {
    "torchvision fcn": (torchvision_fcn, False, {}),
    "torchvision deeplabv3": (torchvision_deeplabv3, False, {}),
    "segmentation_models_pytorch deeplabv3": (lambda *a: smp_deeplabv3(*a, 8), True, {}),
    "segmentation_models_pytorch deeplabv3 16": (lambda *a: smp_deeplabv3(*a, 16), True, {"output_stride": 16}),
    "semseg pspnet": (semseg_pspnet, True, {}),
    "mmsegmentation fcn": (mmseg(mmseg_fcn), False, {"align_corners": False}),
    "mmsegmentation fcn b": (mmseg(mmseg_fcn, plain_stem=True), True, {"align_corners": True}),
    "mmsegmentation pspnet": (mmseg(mmseg_pspnet(False)), False, {"align_corners": False}),
    "mmsegmentation pspnet 769": (mmseg(mmseg_pspnet(True)), True, {"align_corners": True}),
    "mmsegmentation deeplabv3": (
        mmseg(mmseg_deeplabv3((12, 24, 36))),
        False,
        {"align_corners": False, "output_stride": 8},
    ),
    "mmsegmentation deeplabv3 mg124": (mmseg(mmseg_deeplabv3(RATES), {3: (1, 1), 4: (1, 2, 4)}, 16), False, GRID),
    "vainf deeplabv3": (lambda *a: vainf_deeplabv3(*a, 16), False, {}),
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


@pytest.fixture(scope="module")
def written_out(images):
    """case -> (state dict, logits at the features' resolution), each computed once."""
    known = {}

    def of(case):
        if case not in known:
            net = Layers()
            logits = CASES[case][0](net, images)
            known[case] = net.weights, logits
        return known[case]

    return of


def network_of(case):
    return f"{case.split()[1]}_resnet9"


def relative_error(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case, written_out, images):
    """Built by name, which takes the flags from the record; at the features' resolution and at the image's."""
    _, align_corners, said = CASES[case]
    weights, wanted = written_out(case)
    model = load_checkpoint(network_of(case), weights, **said).double().eval()
    got, low = model(images), model(images, upsample=False)
    assert list(low) == list(wanted)
    for name, logits in wanted.items():
        assert low[name].shape == logits.shape
        assert relative_error(low[name], logits) < EXACT
        assert relative_error(got[name], resized(logits, images, align_corners)) < EXACT
    assert model.preprocess == (CAFFE if case.startswith("kazuto") else IMAGENET)


WRONG = {
    "contracted": (False, "layer3.0.conv2.dilation: wanted (1, 1), got (2, 2)"),
    "output_stride": (16, "dilation"),
    "rates": (RATES, "convs.1.0.dilation: wanted (12, 12), got (6, 6)"),
    "multi_grid": ((1, 2, 4), "layer4.0.conv2.dilation: wanted (2, 2), got (4, 4)"),
    "stride_first": (True, "conv1.stride: wanted (1, 1), got (2, 2)"),
    "ceil_mode": (True, "ceil_mode: wanted False, got True"),
    "align_corners": (True, "align_corners: wanted False, got True"),
}


@torch.no_grad()
@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_flag_is_refused_and_would_change_the_logits(flag, written_out, images):
    weights, wanted = written_out("torchvision deeplabv3")
    value, complaint = WRONG[flag]
    model = DeepLabV3(SMALL, num_classes=CLASSES, **{flag: value}).double().eval()
    before = model.classifier[-1].bias.clone()
    with pytest.raises(ValueError) as error:
        load_checkpoint(model, weights)
    assert complaint in str(error.value)
    assert f"{flag}={DEFAULTS[flag]!r}" in str(error.value), "what the weights want"
    assert torch.equal(model.classifier[-1].bias, before), "loaded nonetheless"
    load_checkpoint(model, weights, source="fastseg")  # for weights that were trained in such a network
    got = model(images)["out"]
    assert relative_error(got, resized(wanted["out"], images)) > 0.01
    with pytest.raises(ValueError, match="the model is not torchvision's: .*wanted"):
        models.to_torchvision_state_dict(model)


DEFAULTS = {"contracted": True, "output_stride": 8, "rates": (12, 24, 36), "multi_grid": None}
DEFAULTS |= {"stride_first": False, "ceil_mode": False, "align_corners": False}


@torch.no_grad()
def test_a_model_that_agrees_takes_the_weights(written_out, images):
    weights, wanted = written_out("vainf deeplabv3 8")
    model = DeepLabV3(SMALL, num_classes=CLASSES, aux_loss=False, output_stride=16).set_output_stride(8).double()
    assert load_checkpoint(model, weights) is model
    assert model.training
    assert relative_error(model.eval()(images, upsample=False)["out"], wanted["out"]) < EXACT


def test_torchvision_back(written_out):
    weights, _ = written_out("torchvision fcn")
    model = load_checkpoint("fcn_resnet9", weights).double()
    back = models.to_torchvision_state_dict(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].float(), weights[name].float()) for name in weights if "batches" not in name)
    with pytest.raises(ValueError, match="torchvision has no PSPNet"):
        models.to_torchvision_state_dict(PSPNet(SMALL))


def test_wrappings_and_prefixes(written_out):
    weights, _ = written_out("torchvision fcn")
    for wrapper, prefix in (("state_dict", "module."), ("model_state", "_orig_mod.module."), ("model", "base.")):
        small = {prefix + name: tensor for name, tensor in halved(weights).items()}
        model = load_checkpoint("fcn_resnet9", {wrapper: small, "epoch": 3}, aux_loss=False)
        assert model.aux_classifier is None
        assert torch.equal(model.classifier[4].bias, weights["classifier.4.bias"].half().float())


def test_what_a_training_library_stores_beside_the_weights_is_ignored(tmp_path):
    class Buffer:
        def __init__(self):
            self.history = [1.0]

    Buffer.__module__, Buffer.__qualname__ = __name__, "Buffer"
    globals()["Buffer"] = Buffer
    path = tmp_path / "epoch.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": {"loss": Buffer()}}, path)
    del globals()["Buffer"]
    assert fastseg.models.checkpoints.read_state_dict(path)["a"].tolist() == [1, 1]


CONFIGURATION = """
model = dict(
    backbone=dict(dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4), strides=(
        1,
        2,
        2,
        1,
    )),
    decode_head=dict(align_corners=False, dilations=(1, 6, 12, 18), num_classes=5))
"""


def test_the_configuration_beside_the_weights_decides(written_out):
    weights, _ = written_out("mmsegmentation deeplabv3 mg124")
    for key in ("cfg", "config"):
        content = {"meta": {key: CONFIGURATION}, "state_dict": weights}
        assert load_checkpoint("deeplabv3_resnet9", content).output_stride == 16
        with pytest.raises(ValueError, match="has no deeplabv3_resnet9 of output_stride=8"):
            load_checkpoint("deeplabv3_resnet9", content, output_stride=8)
    plain = CONFIGURATION.replace("2,\n        1,", "1,\n        1,").replace("False", "True")
    with pytest.raises(ValueError, match=r"no deeplabv3 here of .*multi_grid=\(1, 2, 4\), rates=\(6, 12, 18\)"):
        load_checkpoint("deeplabv3_resnet9", {**content, "meta": {"config": plain}})
    plain = plain.replace("multi_grid=(1, 2, 4), ", "")
    with pytest.raises(ValueError, match=r"multi_grid=None, rates=\(6, 12, 18\)"):
        load_checkpoint("deeplabv3_resnet9", {**content, "meta": {"config": plain}})
    content["meta"]["config"] = plain.replace("6, 12, 18", "12, 24, 36")
    assert load_checkpoint("deeplabv3_resnet9", content).align_corners
    content["meta"]["config"] = CONFIGURATION.replace("        1,\n    )", "        2,\n    )")
    with pytest.raises(ValueError, match="no deeplabv3 here of output_stride=32"):
        load_checkpoint("deeplabv3_resnet9", content)


class TestErrors:
    def test_unsaid(self, written_out):
        with pytest.raises(ValueError, match="several forms .* say align_corners=False or align_corners=True"):
            load_checkpoint("pspnet_resnet9", written_out("mmsegmentation pspnet")[0])
        with pytest.raises(ValueError, match="say output_stride=16, .*or output_stride=8"):
            load_checkpoint("deeplabv3_resnet9", written_out("kazuto1011 deeplabv3")[0])

    def test_contradiction(self, written_out):
        with pytest.raises(ValueError, match="torchvision has no deeplabv3_resnet9 of contracted=False"):
            load_checkpoint("deeplabv3_resnet9", written_out("torchvision deeplabv3")[0], contracted=False)

    def test_another_network(self, written_out):
        weights, _ = written_out("torchvision fcn")
        with pytest.raises(ValueError, match="the weights are a fcn_resnet9 of torchvision, got 'fcn_resnet50'"):
            load_checkpoint("fcn_resnet50", weights)
        with pytest.raises(ValueError, match="They are a fcn_resnet9 of torchvision, the model is a PSPNet"):
            load_checkpoint(PSPNet(SMALL), weights)

    @pytest.mark.parametrize(
        ("keywords", "cause"),
        [
            ({"num_classes": 21}, "num_classes=5, the model 21"),
            ({"num_classes": 5, "aux_loss": False}, "aux_loss=True, the model False"),
            ({"num_classes": 5, "stem": (32, 32, 64)}, "stem=(64,), the model (32, 32, 64)"),
        ],
    )
    def test_likely_cause(self, written_out, keywords, cause):
        with pytest.raises(ValueError) as error:
            load_checkpoint(FCN(SMALL, **keywords), written_out("torchvision fcn")[0])
        assert cause in str(error.value)
        assert "These weights want fcn_resnet9(" in str(error.value)

    def test_misfits_bear_the_files_names(self, written_out):
        weights = dict(written_out("pytorchcv fcn")[0])
        del weights["backbone.4.unit1.body.conv2.conv.weight"]
        weights["extra.weight"] = weights["backbone.2.unit1.body.conv2.bn.bias"] = torch.zeros(3)
        with pytest.raises(ValueError) as error:
            load_checkpoint("fcn_resnet9", weights)
        assert "1 missing (backbone.4.unit1.body.conv2.conv.weight)" in str(error.value)
        assert "1 unexpected (extra.weight)" in str(error.value)
        assert "backbone.2.unit1.body.conv2.bn.bias: wanted (128,), got (3,)" in str(error.value)
        assert "incomplete" in str(error.value)

    def test_unknown(self, written_out):
        with pytest.raises(ValueError, match=r"unknown: none of torchvision, .*such names \(encoder.0.weight\)"):
            load_checkpoint("fcn_resnet50", {"encoder.0.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match="unknown: not kazuto1011"):
            load_checkpoint("fcn_resnet9", written_out("torchvision fcn")[0], source="kazuto1011")
        with pytest.raises(ValueError, match="source must be one of auto, fastseg, torchvision, .*got 'torchvison'"):
            load_checkpoint("fcn_resnet9", {}, source="torchvison")
        with pytest.raises(ValueError, match="must hold names and tensors, got nothing"):
            load_checkpoint("fcn_resnet9", {})

    def test_keywords_for_a_model_that_is_there(self):
        with pytest.raises(ValueError, match="got aux_loss=False"):
            load_checkpoint(nn.Identity(), {}, aux_loss=False)
        with pytest.raises(TypeError, match="a name of list_models or a module, got NoneType"):
            load_checkpoint(None, {"conv1.weight": torch.zeros(1)})

    def test_what_no_network_here_computes(self):
        names = ["encoder.conv1", "decoder.conv.0", "segmentation_head.0", "decoder.psp.blocks.1.pool.1.0"]
        weights = {f"{name}.weight": torch.zeros(1) for name in names}
        with pytest.raises(ValueError, match="a pspnet of segmentation_models_pytorch is not supported, as its"):
            load_checkpoint("pspnet_resnet50", weights)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = models.fcn8s_vgg16(num_classes=CLASSES, fc_channels=16).eval()
    for layer in (model.score_pool4, model.score_pool3):
        nn.init.normal_(layer.weight)
    return model


class TestSkipFCN:
    """Names are the authors', so what matters is the scale of skips that weights trained at once want."""

    @torch.no_grad()
    def test_staged_or_at_once_must_be_said(self, network):
        weights, x = network.state_dict(), torch.randn(1, 3, 33, 40)
        with pytest.raises(ValueError, match="at_once=False, or at_once=True"):
            load_checkpoint("fcn8s_vgg16", weights)
        staged = load_checkpoint("fcn8s_vgg16", weights, source="pytorch-fcn", at_once=False).eval()
        at_once = load_checkpoint("fcn8s_vgg16", weights, at_once=True).eval()
        wanted = network(x)["out"]
        assert torch.equal(staged(x)["out"], wanted)
        assert relative_error(at_once(x)["out"], wanted) > 0.01
        named = load_checkpoint("fcn8s_atonce_vgg16", weights).eval()
        assert torch.equal(named(x)["out"], at_once(x)["out"])
        assert staged.preprocess == CAFFE

    def test_converted(self, network, tmp_path):
        torch.save(network.state_dict(), tmp_path / "in.pth")
        converted = tmp_path / "out.pth"
        assert main(["convert", str(tmp_path / "in.pth"), str(converted)]) == 2, "whose network is not said"
        named = "--network", "fcn8s_vgg16", "--set", "at_once=False"
        assert main(["convert", str(tmp_path / "in.pth"), str(converted), *named]) == 0
        model = load_checkpoint("fcn8s_vgg16", converted)
        assert torch.equal(model.fc6.weight, network.fc6.weight)
        load_checkpoint("fcn8s_vgg16", converted, at_once=False)  # said again
        with pytest.raises(ValueError, match="are a fcn8s_vgg16 of caffe, got 'fcn8s_atonce_vgg16'"):
            load_checkpoint("fcn8s_vgg16", converted, at_once=True)
        assert main(["convert", str(converted), str(tmp_path / "again.pth"), "--set", "at_once=False"]) == 0
        for note in ({}, 3, {"library": "caffe", "network": "fcn8s_vgg16", "keywords": 3, "preprocess": 4}):
            with pytest.raises(ValueError, match="under 'fastseg' there must be library, network"):
                load_checkpoint("fcn8s_vgg16", {"fastseg": note, "state_dict": network.state_dict()})
        with pytest.raises(ValueError, match="steps: wanted .* 1\\).*, got .*0.01"):
            load_checkpoint(models.fcn8s_atonce_vgg16(num_classes=CLASSES, fc_channels=16), converted)

    def test_into_a_model(self, network):
        model = models.fcn8s_atonce_vgg16(num_classes=CLASSES, fc_channels=16)
        load_checkpoint(model, network.state_dict())
        assert torch.equal(model.score_fr.weight, network.score_fr.weight)
        with pytest.raises(ValueError, match="missing"):
            load_checkpoint(models.fcn_resnet50(), network.state_dict())


def halved(weights):
    return {name: tensor.half() for name, tensor in weights.items()}


class TestConvert:
    @pytest.fixture
    def run(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def run(*arguments):
            code = main(["convert", *map(str, arguments)])
            return code, *capsys.readouterr()

        return run

    @torch.no_grad()
    def test_a_file(self, run, written_out, images, tmp_path):
        """What was said once need not be said again."""
        weights, wanted = written_out("kazuto1011 deeplabv3")
        torch.save({"model_state": weights}, "in.pth")
        told = "--set", "output_stride=16", "--set", "multi_grid=(1, 2, 4)"
        code, out, err = run("in.pth", "new/out.pth", *told)
        assert (code, err) == (0, "")
        assert out == "in.pth -> new/out.pth: deeplabv3_resnet9 of kazuto1011, 5 classes\n"
        model = load_checkpoint("deeplabv3_resnet9", "new/out.pth").double().eval()
        assert model.preprocess == CAFFE
        assert relative_error(model(images, upsample=False)["out"], wanted["out"]) < EXACT
        with pytest.raises(ValueError, match="something else than kazuto1011's"):
            load_checkpoint(DeepLabV3(SMALL, num_classes=5, aux_loss=False, head="paper"), "new/out.pth")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.pth"]

    def test_a_bad_file_does_not_stop_the_others(self, run, written_out):
        torch.save(halved(written_out("torchvision fcn")[0]), "a.pth")
        torch.save(halved(written_out("pytorchcv fcn")[0]), "c.pth")
        with open("b.pth", "wb") as file:
            file.write(b"nothing of the kind")
        code, out, err = run("a.pth", "b.pth", "none.pth", "c.pth", "out")
        assert code == 2
        assert "[1/4] a.pth -> out/a.pth: fcn_resnet9 of torchvision, 5 classes" in out
        assert "[4/4] c.pth -> out/c.pth: fcn_resnet9 of pytorchcv, 5 classes" in out
        assert "[2/4] b.pth: read_state_dict: b.pth is not a file of weights" in err
        assert "2 of 4 not converted: b.pth, none.pth" in err.splitlines()[-1]

    def test_to_torchvision(self, run, written_out):
        weights = halved(written_out("torchvision fcn")[0])
        torch.save(weights, "in.pth")
        assert run("in.pth", "ours.pth")[0] == run("ours.pth", "back.pth", "--to", "torchvision")[0] == 0
        back = torch.load("back.pth", weights_only=True)
        assert back.keys() == weights.keys()
        assert torch.equal(back["backbone.conv1.weight"], weights["backbone.conv1.weight"].float())
        assert {int(back[name]) for name in back if name.endswith("num_batches_tracked")} == {0}

    def test_does_not_replace_files_unless_told(self, run, written_out):
        torch.save(halved(written_out("torchvision fcn")[0]), "in.pth")
        torch.save({"mine": torch.ones(1)}, "other.pth")  # meant as a second file of weights
        code, _, err = run("in.pth", "other.pth")
        assert code == 2 and "other.pth is there: another name, or --overwrite" in err
        assert list(torch.load("other.pth", weights_only=True)) == ["mine"]
        assert run("in.pth", "other.pth", "--overwrite")[0] == 0
        assert "fastseg" in torch.load("other.pth", weights_only=True)
        os.link("in.pth", "linked.pth")
        code, _, err = run("in.pth", "linked.pth", "--overwrite")
        assert code == 2 and "over itself" in err

    def test_what_it_refuses(self, run, written_out):
        torch.save(halved(written_out("mmsegmentation fcn")[0]), "in.pth")
        for arguments, complaint in (
            (["in.pth"], "last, where to write"),
            (["in.pth", "in.pth"], "over itself"),
            (["in.pth", "out.pth"], "several forms"),
            (["in.pth", "out.pth", "--set", "align_corners=no"], "wanted KEY=VALUE"),
            (["in.pth", "a/in.pth", "out"], "same name"),
            (["in.pth", "out.safetensors", "--set", "align_corners=False"], "name it .pth"),
            (["in.pth", "out.pth", "--network", "fcn_resnet50"], "fcn_resnet9 of mmsegmentation, got 'fcn_resnet50'"),
            (["in.pth", "out.pth", "--to", "torchvision", "--set", "align_corners=False"], "not torchvision's"),
        ):
            code, out, err = run(*arguments)
            assert (code, out) == (2, "")
            assert complaint in err


@torch.no_grad()
def test_torchvision_itself():
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    theirs = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3), layer.running_var.uniform_(0.5, 2)
    theirs = theirs.double().eval()
    model = load_checkpoint("deeplabv3_resnet50", theirs.state_dict()).double().eval()
    x = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    assert relative_error(model(x)["out"], theirs(x)["out"]) < EXACT
    theirs.load_state_dict(models.to_torchvision_state_dict(model))
