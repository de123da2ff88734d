"""Weights of other libraries in our networks: each library's network written out, with the same random weights."""

import re

import pytest
import torch
from library_networks import (
    CASES,
    CLASSES,
    D8,
    EXACT,
    IMAGES,
    RATES,
    SMALL,
    add_small_networks,
    halved,
    network_of,
    relative_error,
    resized,
    written_out,
)
from torch import nn

import fastseg
from fastseg import load_checkpoint, models
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.fcn import FCN
from fastseg.models.loading import numerics
from fastseg.models.preprocess import CAFFE, IMAGENET
from fastseg.models.pspnet import PSPNet

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.beside]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    add_small_networks(monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_librarys(case):
    """Built by name, which takes the flags from the record; at the features' resolution and at the image's."""
    _, align_corners, said = CASES[case]
    weights, wanted = written_out(case)
    model = load_checkpoint(network_of(case), weights, **said).double().eval()
    got, low = model(IMAGES), model(IMAGES, upsample=False)
    assert list(low) == list(wanted)
    for name, logits in wanted.items():
        assert low[name].shape == logits.shape
        assert relative_error(low[name], logits) < EXACT
        assert relative_error(got[name], resized(logits, IMAGES, align_corners)) < EXACT
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
def test_a_wrong_flag_is_refused_and_would_change_the_logits(flag):
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
    got = model(IMAGES)["out"]
    assert relative_error(got, resized(wanted["out"], IMAGES)) > 0.01
    with pytest.raises(ValueError, match="the model is not torchvision's: .*wanted"):
        models.to_torchvision_state_dict(model)


DEFAULTS = {"contracted": True, "output_stride": 8, "rates": (12, 24, 36), "multi_grid": None}
DEFAULTS |= {"stride_first": False, "ceil_mode": False, "align_corners": False}


@torch.no_grad()
def test_a_model_that_agrees_takes_the_weights():
    weights, wanted = written_out("vainf deeplabv3 8")
    model = DeepLabV3(SMALL, num_classes=CLASSES, aux_loss=False, output_stride=16).set_output_stride(8).double()
    assert load_checkpoint(model, weights) is model
    assert model.training
    assert relative_error(model.eval()(IMAGES, upsample=False)["out"], wanted["out"]) < EXACT


def test_torchvision_back():
    weights, _ = written_out("torchvision fcn")
    model = load_checkpoint("fcn_resnet9", weights).double()
    back = models.to_torchvision_state_dict(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].float(), weights[name].float()) for name in weights if "batches" not in name)
    with pytest.raises(ValueError, match="torchvision has no PSPNet"):
        models.to_torchvision_state_dict(PSPNet(SMALL))


def test_wrappings_and_prefixes():
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
    backbone=dict(type='ResNetV1c', dilations=(1, 1, 1, 2), strides=(
        1,
        2,
        2,
        1,
    ), style='pytorch', contract_dilation=True),
    decode_head=dict(type='Head', align_corners=False, num_classes=5),
    auxiliary_head=dict(type='FCNHead', align_corners=False))
train_pipeline = [dict(type='RandomCrop', crop_size=(512, 1024)), {'a b': None}]
"""
D16 = "dilations=(1, 1, 1, 2), strides=(\n        1,\n        2,\n        2,\n        1,\n    )"


def configured(*changes):
    """The configuration with other text here and there."""
    text = CONFIGURATION
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


AT_8 = (D16, "dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)")
D6 = ("type='Head'", "type='FCNHead', dilation=6"), ("type='FCNHead', a", "type='FCNHead', dilation=6, a")
MG124 = ("type='Head'", "type='ASPPHead'"), ("style=", "multi_grid=(1, 2, 4), style=")
RATES_AT_8 = ("type='Head'", "type='ASPPHead', dilations=(1, 12, 24, 36)")
CONFIGURED = {
    "mmsegmentation fcn d6": (D6, {"output_stride": 16, "head_dilation": 6}),
    "mmsegmentation fcn": ([AT_8], {"output_stride": 8}),
    "mmsegmentation pspnet 16": ([], {"output_stride": 16}),
    "mmsegmentation deeplabv3": ([AT_8, RATES_AT_8], {"output_stride": 8, "rates": (12, 24, 36)}),
    "mmsegmentation deeplabv3 mg124": (MG124, {"output_stride": 16, "multi_grid": (1, 2, 4)}),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CONFIGURED)
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_the_configuration_beside_the_weights_decides(case, key):
    weights, wanted = written_out(case)
    changes, keywords = CONFIGURED[case]
    content = {"meta": {key: configured(*changes)}, "state_dict": weights}
    model = load_checkpoint(network_of(case), content, **keywords).double().eval()  # said again
    assert relative_error(model(IMAGES, upsample=False)["out"], wanted["out"]) < EXACT
    with pytest.raises(ValueError, match=f"has no {network_of(case)} of output_stride=64"):
        load_checkpoint(network_of(case), content, output_stride=64)


def test_what_a_configuration_leaves_out():
    weights, _ = written_out("mmsegmentation pspnet")
    text = "model = dict(backbone=dict(), decode_head=dict())"
    model = load_checkpoint("pspnet_resnet9", {"meta": {"cfg": text}, "state_dict": weights})
    assert model.form["output_stride"] == 32 and not model.align_corners


def test_what_else_a_configuration_says_is_honoured():
    weights, _ = written_out("mmsegmentation pspnet")

    def load(*changes, name="pspnet_resnet9", weights=weights):
        return load_checkpoint(name, {"meta": {"cfg": configured(AT_8, *changes)}, "state_dict": weights})

    assert load().form == {**D8, "bins": (1, 2, 3, 6), "contracted": True, "mode": "avg"}
    bins = ("type='Head'", "type='PSPHead', pool_scales=[1, 2, 4, 8]")
    assert load(bins).ppm.bins == (1, 2, 4, 8)
    assert load(("align_corners=False, n", "align_corners=True, n")).align_corners
    assert load((", contract_dilation=True", "")).layer3[0].conv2.dilation == (2, 2)
    assert load().layer3[0].conv2.dilation == (1, 1)
    weights, name = written_out("mmsegmentation deeplabv3")[0], "deeplabv3_resnet9"
    model = load(("'pytorch'", "'caffe'"), RATES_AT_8, name=name, weights=weights)
    assert model.backbone.layer2[0].conv1.stride == (2, 2)


REFUSED = {
    "strides=(1, 2, 2, 2), dilations=(1, 1, 2, 4)": [(D16, "strides=(1, 2, 2, 2), dilations=(1, 1, 2, 4)")],  # D32
    "strides=(1, 2, 1, 1), dilations=(1, 1, 1, 2)": [(AT_8[0], AT_8[1].replace("2, 4", "1, 2"))],
    "fcn here of contracted=False": [(", contract_dilation=True", "")],
    "fcn here of stride_first=True": [("'pytorch'", "'caffe'")],
    "fcn here of multi_grid=(1, 2, 4)": [("style=", "multi_grid=(1, 2, 4), style=")],
    "fcn here of eps=0.001": [("style=", "norm_cfg=dict(type='BN', eps=1e-3), style=")],
    "act_cfg={'type': 'LeakyReLU'}": [("type='Head'", "type='Head', act_cfg=dict(type='LeakyReLU')")],
    "the file's configuration is damaged": [("style=", "multi_grid=2, style=")],
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_what_no_network_here_is_configured_as(complaint):
    content = {"meta": {"cfg": configured(*REFUSED[complaint])}, "state_dict": written_out("mmsegmentation fcn d6")[0]}
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_checkpoint("fcn_resnet9", content)


@pytest.mark.parametrize("text", ["model = dict(", "model = make()", "dataset = 3", "model = dict(backbone=[1])", 7])
def test_a_configuration_that_says_nothing(text):
    content = {"meta": {"cfg": text}, "state_dict": written_out("mmsegmentation pspnet")[0]}
    with pytest.raises(ValueError, match="say output_stride=8 or 16, align_corners=False or True"):
        load_checkpoint("pspnet_resnet9", content)


def test_the_files_name_decides_where_nothing_else_does(tmp_path):
    weights = halved(written_out("mmsegmentation pspnet")[0])

    def load(stem, content=weights, name="pspnet_resnet9", **keywords):
        torch.save(content, tmp_path / f"{stem}.pth")
        return load_checkpoint(name, tmp_path / f"{stem}.pth", **keywords)

    corners = {"align_corners": False}
    assert load("pspnet_r50-d16_512x1024", **corners).form["output_stride"] == 16
    assert load("pspnet_r50-d8", **corners).form["output_stride"] == 8
    assert load("pspnet_r50-d16", output_stride=8, **corners).form["output_stride"] == 8, "a keyword says more"
    configuration = {"meta": {"cfg": configured(AT_8)}, "state_dict": weights}
    assert load("pspnet_r50-d16", configuration).form["output_stride"] == 8, "and so does a configuration"
    for stem in ("pspnet_d6_r50", "pspnet_r50d8", "pspnet-d64", "d80"):
        with pytest.raises(ValueError, match="say output_stride"):
            load(stem, **corners)
    with pytest.raises(ValueError, match="say align_corners=False or True"):
        load("pspnet_r50-d8")
    with pytest.raises(ValueError, match="mmsegmentation has no pspnet_resnet9 of output_stride=32"):
        load("pspnet_r50-d32_512x1024", **corners)
    model = load("best_deeplabv3_resnet50_voc_os16", halved(written_out("vainf deeplabv3")[0]), "deeplabv3_resnet9")
    assert model.output_stride == 16


OWN = {
    "fcn": {"output_stride": 16, "head_dilation": 2},
    "pspnet": {"output_stride": 16, "align_corners": False, "bins": (1, 2), "mode": "max"},
    "deeplabv3": {"output_stride": 16, "multi_grid": [1, 2, 4], "image_pooling": False, "head": "paper"},
}


@pytest.mark.parametrize("family", OWN)
def test_what_was_trained_here_says_its_form(family, tmp_path):
    name, path = f"{family}_resnet9", tmp_path / "own.pth"
    model = models.get_model(name, num_classes=3, **OWN[family])
    torch.save({"model": nn.DataParallel(model).state_dict()}, path)
    loaded = load_checkpoint(name, path)
    assert numerics(loaded) == numerics(model) and loaded.form == model.form
    assert load_checkpoint(name, path, source="fastseg").form == model.form
    with pytest.raises(ValueError, match=f"fastseg has no {name} of output_stride=8"):
        load_checkpoint(name, path, output_stride=8)
    other = models.get_model(name, num_classes=3, **OWN[family] | {"output_stride": 8})
    with pytest.raises(ValueError, match="something else than fastseg's: .*wanted"):
        load_checkpoint(other, path)
    load_checkpoint(other, path, source="fastseg")
    assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_the_form_follows_the_output_stride():
    model = DeepLabV3(SMALL, output_stride=16).set_output_stride(8)
    loaded = load_checkpoint("deeplabv3_resnet9", model.state_dict())
    assert loaded.classifier[0].rates == (12, 24, 36) and loaded.output_stride == 8
    cascade = DeepLabV3(SMALL, form="cascade", output_stride=16)
    assert numerics(load_checkpoint("deeplabv3_resnet9", cascade.state_dict())) == numerics(cascade)


def test_what_is_set_later_is_said_too():
    """The images that weights were fine-tuned with, and the corners."""
    model = FCN(SMALL)
    model.preprocess, model.align_corners = CAFFE, True
    for source in ("auto", "fastseg"):
        loaded = load_checkpoint("fcn_resnet9", model.state_dict(), source)
        assert loaded.preprocess == CAFFE and loaded.align_corners
    model.preprocess = nn.Identity()
    assert load_checkpoint("fcn_resnet9", model.state_dict()).preprocess == IMAGENET


def test_within_another_module():
    def within(**keywords):
        return nn.ModuleDict({"net": FCN(SMALL, num_classes=3, **keywords), "more": nn.Conv2d(3, 3, 1)})

    weights = within(output_stride=16)
    weights.net.preprocess = CAFFE
    assert load_checkpoint(within(output_stride=16), weights.state_dict()).net.preprocess == CAFFE
    with pytest.raises(ValueError, match="something else than fastseg's: backbone.*dilation: wanted"):
        load_checkpoint(within(), nn.DataParallel(weights).state_dict())


def test_averaged():
    """By PyTorch, which counts the models beside their weights."""
    averaged = torch.optim.swa_utils.AveragedModel(FCN(SMALL, output_stride=16))
    loaded = load_checkpoint("fcn_resnet9", averaged.state_dict())
    assert numerics(loaded) == numerics(averaged.module)


def test_metadata_of_others():
    state_dict = FCN(SMALL).state_dict()
    state_dict._metadata[""]["fastseg"]["family"] = "unet"
    with pytest.raises(ValueError, match="family must be one of deeplabv3, fcn, pspnet, got 'unet'"):
        load_checkpoint("fcn_resnet9", state_dict)
    state_dict._metadata = None
    load_checkpoint("fcn_resnet9", state_dict)


class TestErrors:
    def test_unsaid(self):
        with pytest.raises(ValueError, match="several forms .* say output_stride=8 or 16, align_corners=False or True"):
            load_checkpoint("pspnet_resnet9", written_out("mmsegmentation pspnet")[0])
        with pytest.raises(
            ValueError, match=r"say output_stride=16 or 8, rates=\(6, 12, 18\) or \(12, 24, 36\), multi_grid="
        ):
            load_checkpoint("deeplabv3_resnet9", written_out("kazuto1011 deeplabv3")[0])

    def test_contradiction(self):
        with pytest.raises(ValueError, match="torchvision has no deeplabv3_resnet9 of contracted=False"):
            load_checkpoint("deeplabv3_resnet9", written_out("torchvision deeplabv3")[0], contracted=False)

    def test_another_network(self):
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
    def test_likely_cause(self, keywords, cause):
        with pytest.raises(ValueError) as error:
            load_checkpoint(FCN(SMALL, **keywords), written_out("torchvision fcn")[0])
        assert cause in str(error.value)
        assert "These weights want fcn_resnet9(" in str(error.value)

    def test_misfits_bear_the_files_names(self):
        weights = dict(written_out("pytorchcv fcn")[0])
        del weights["backbone.4.unit1.body.conv2.conv.weight"]
        weights["extra.weight"] = weights["backbone.2.unit1.body.conv2.bn.bias"] = torch.zeros(3)
        with pytest.raises(ValueError) as error:
            load_checkpoint("fcn_resnet9", weights)
        assert "1 missing (backbone.4.unit1.body.conv2.conv.weight)" in str(error.value)
        assert "1 unexpected (extra.weight)" in str(error.value)
        assert "backbone.2.unit1.body.conv2.bn.bias: wanted (128,), got (3,)" in str(error.value)
        assert "incomplete" in str(error.value)

    def test_unknown(self):
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

    def test_into_a_model(self, network):
        model = models.fcn8s_atonce_vgg16(num_classes=CLASSES, fc_channels=16)
        load_checkpoint(model, network.state_dict())
        assert torch.equal(model.score_fr.weight, network.score_fr.weight)
        with pytest.raises(ValueError, match="missing"):
            load_checkpoint(models.fcn_resnet50(), network.state_dict())


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
