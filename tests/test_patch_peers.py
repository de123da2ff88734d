"""fastseg.patch, predict and loss on models of the libraries that are installed, against themselves."""

import copy
import functools
import sys
import types
import warnings

import pytest
import semseg_model
import torch
import torch.nn.functional as F
from small_deeplabv3 import needs_onnx, network, trained_a_little
from torch import nn
from torchvision.models import segmentation

import fastseg

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4
LIBRARIES = {"smp": "segmentation_models_pytorch", "mmseg": "mmseg", "transformers": "transformers"}


def torchvision_model(name):
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)


def smp_model(name, **keywords):
    import segmentation_models_pytorch as smp

    return getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES, **keywords)


def mmseg_head(name, **keywords):
    """A head of mmsegmentation, which asks for compiled operations of mmcv that no head calls."""
    extension = types.ModuleType("mmcv._ext")
    extension.__getattr__ = lambda name: lambda *arguments, **keywords: None
    extension.__file__ = "mmcv/_ext.so"
    sys.modules.setdefault("mmcv._ext", extension)
    from mmseg.models import decode_heads

    how = {"in_channels": 12, "channels": 8, "num_classes": CLASSES, "norm_cfg": {"type": "BN"}, **keywords}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 3, stride=8, padding=1)
            self.head = getattr(decode_heads, name)(**how)

        def forward(self, x):
            return self.head([self.stem(x)])

    return Network()


def upernet():
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, layer_type="basic", out_features=stages
    )
    how = {"hidden_size": 16, "num_labels": CLASSES, "auxiliary_in_channels": 16, "auxiliary_channels": 8}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **how))


def vainf(name):
    """torchvision's network in the form of VainF/DeepLabV3Plus-Pytorch, under its names."""
    model = torchvision_model(name)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = model.classifier

        def forward(self, feature):
            return self.classifier(feature["out"])

    class DeepLabV3(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.classifier = model.backbone, Head()

        def forward(self, x):
            input_shape = x.shape[-2:]
            x = self.classifier(self.backbone(x))
            return F.interpolate(x, size=input_shape, mode="bilinear", align_corners=False)

    class ASPP(nn.Module):
        def forward(self, x):
            return self.project(torch.cat([branch(x) for branch in self.convs], 1))

    for kind in (DeepLabV3, ASPP):
        kind.__module__, kind.__qualname__ = "network._deeplab", kind.__name__
    pyramid, network = ASPP(), DeepLabV3()
    pyramid.convs, pyramid.project = model.classifier[0].convs, model.classifier[0].project
    network.classifier.classifier[0] = pyramid
    return network


# (needs, build, side of the images, what must be patched)
MODELS = {
    "torchvision fcn": (None, lambda: torchvision_model("fcn_resnet50"), 33, {"FCN", "Conv2d"}),
    "torchvision deeplabv3": (
        None,
        lambda: torchvision_model("deeplabv3_resnet50"),
        33,
        {"DeepLabV3", "ASPP", "Conv2d"},
    ),
    "torchvision, small": (None, network, 48, {"DeepLabV3", "ASPP", "Conv2d"}),
    "torchvision deeplabv3 mobilenet": (
        None,
        lambda: torchvision_model("deeplabv3_mobilenet_v3_large"),
        33,
        {"DeepLabV3", "ASPP", "Conv2d"},
    ),
    "semseg": (None, semseg_model.PSPNet, 33, {"PSPNet", "Conv2d"}),
    "semseg, zoom factor 2": (None, lambda: semseg_model.PSPNet(zoom_factor=2, bins=(1, 4)), 33, {"PSPNet", "Conv2d"}),
    "vainf": (None, lambda: vainf("deeplabv3_mobilenet_v3_large"), 33, {"DeepLabV3", "ASPP", "Conv2d"}),
    "smp PSPNet": ("smp", lambda: smp_model("PSPNet"), 72, {"PSPDecoder", "Upsample"}),
    "smp PSPNet, output stride 8": (
        "smp",
        lambda: smp_model("PSPNet", encoder_depth=5, output_stride=8, activation="softmax2d", decoder_use_norm=False),
        72,
        {"PSPDecoder", "Upsample", "Conv2d"},
    ),
    "smp DeepLabV3": ("smp", lambda: smp_model("DeepLabV3"), 32, {"ASPP", "Upsample", "Conv2d"}),
    "smp DeepLabV3, separable": (
        "smp",
        lambda: smp_model("DeepLabV3", decoder_aspp_separable=True, encoder_output_stride=16),
        32,
        {"ASPP", "Upsample", "Conv2d"},
    ),
    "mmseg PSPHead": ("mmseg", lambda: mmseg_head("PSPHead"), 65, {"PSPHead"}),
    "mmseg PSPHead, 769": ("mmseg", lambda: mmseg_head("PSPHead", align_corners=True), 65, {"PSPHead"}),
    "mmseg ASPPHead": ("mmseg", lambda: mmseg_head("ASPPHead"), 65, {"ASPPHead", "Conv2d"}),
    "mmseg ASPPHead, no norm": ("mmseg", lambda: mmseg_head("ASPPHead", norm_cfg=None), 65, {"ASPPHead", "Conv2d"}),
    "mmseg FCNHead, D6": ("mmseg", lambda: mmseg_head("FCNHead", dilation=6), 65, {"Conv2d"}),
    "transformers UperNet": ("transformers", upernet, 64, {"UperNetHead"}),
}


@functools.cache
def built(name):
    torch.manual_seed(0)
    return trained_a_little(MODELS[name][1]()).eval()


def fresh(name):
    """(model, images) of a case; skips where its library is not installed."""
    library, _, side, _ = MODELS[name]
    if library is not None:
        pytest.importorskip(LIBRARIES[library])
    torch.manual_seed(1)
    return copy.deepcopy(built(name)), torch.randn(2, 3, side, side + 16)


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return list(output.values() if isinstance(output, dict) else output)


def largest_error(output, truth):
    pairs = zip(tensors(output), tensors(truth), strict=True)
    return max(((a.double() - b.double()).abs().amax() / b.abs().amax()).item() for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_same_outputs(name):
    model, x = fresh(name)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    usual, truth = model(x), model.double()(x.double())
    fastseg.patch(model)
    wanted = MODELS[name][3]
    got = {type(module).stock_class.__name__ for module in model.modules() if hasattr(module, "stock_class")}
    assert got == wanted
    assert largest_error(model(x.double()), truth) <= 1e-10
    assert largest_error(model.float()(x), truth) <= 1.5 * largest_error(usual, truth) + 2**-23
    assert list(model.state_dict()) == keys
    fastseg.unpatch(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("name", ["smp PSPNet", "mmseg ASPPHead", "mmseg PSPHead"])
def test_same_gradients_in_training(name):
    model, x = fresh(name)
    gradients = []
    for each in (copy.deepcopy(model), fastseg.patch(model)):
        outputs = tensors(each.double().train()(x.double()))
        sum(y.square().mean() for y in outputs).backward()
        gradients.append({key: parameter.grad for key, parameter in each.named_parameters()})
    for key, truth in gradients[0].items():
        if truth is not None:
            assert (gradients[1][key] - truth).abs().amax() <= 1e-9 * gradients[0][key].abs().amax() + 1e-14, key


@pytest.mark.parametrize("zoom_factor", [8, 4])
def test_semseg_training(zoom_factor):
    """Labels and two losses."""
    torch.manual_seed(0)
    model = trained_a_little(semseg_model.PSPNet(zoom_factor=zoom_factor)).double().train()
    x = torch.randn(2, 3, 33, 41, dtype=torch.float64)
    y = torch.randint(5, (2, 4 * zoom_factor + 1, 5 * zoom_factor + 1))
    y[:, :5] = 255
    labels, *losses = copy.deepcopy(model)(x, y)
    ours, *got = fastseg.patch(model)(x, y)
    assert torch.equal(ours, labels) and ours.dtype == labels.dtype
    torch.testing.assert_close(got, losses, rtol=1e-10, atol=0)


def dynamic():
    return ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)


# What the libraries' own models pass.
EXPORTS = {
    "torch.export": lambda model, x: torch.export.export(model, (x,), dynamic_shapes=dynamic()).module(),
    "script": lambda model, x: torch.jit.script(model),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
}
PASSED = [
    ("semseg", "torch.export"),
    ("mmseg ASPPHead", "torch.export"),
    ("transformers UperNet", "torch.export"),
    *((name, exporter) for name in ("smp PSPNet", "smp DeepLabV3") for exporter in ("torch.export", "script")),
    ("vainf", "torch.export"),
    ("vainf", "fx"),
]


@pytest.mark.parametrize("name, exporter", PASSED)
@torch.no_grad()
def test_exports(name, exporter):
    model, x = fresh(name)
    more = F.interpolate(x, [side + 32 for side in x.shape[2:]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporters are old
        EXPORTS[exporter](model, x)
        run = EXPORTS[exporter](fastseg.patch(copy.deepcopy(model)), x)
    for images in (x,) if name == "semseg" else (x, more):  # whose own code makes a graph of one size
        output, expected = run(images), model(images)
        expected, output = (getattr(each, "logits", each) for each in (expected, output))
        assert largest_error(output, expected) <= 1e-5


@needs_onnx
@pytest.mark.parametrize("name", ["smp PSPNet", "mmseg ASPPHead"])
@torch.no_grad()
def test_onnx(name, tmp_path):
    import onnxruntime

    model, x = fresh(name)
    path, expected = tmp_path / "model.onnx", model(x)
    torch.onnx.export(fastseg.patch(model), (x,), path, input_names=["x"], dynamo=True)
    got = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    assert largest_error([torch.from_numpy(y) for y in got], expected) <= 1e-5


def full_size(output, x, align_corners):
    """The main logits of a model's output, at the size of the images."""
    output = output["out"] if isinstance(output, dict) and "out" in output else getattr(output, "logits", output)
    return F.interpolate(output, x.shape[-2:], mode="bilinear", align_corners=align_corners)


# Those of which the low-resolution logits are known.
TAILS = ["torchvision fcn", "torchvision, small", "semseg", "vainf", "smp PSPNet", "smp DeepLabV3"]
OTHERS = ["mmseg ASPPHead", "transformers UperNet", "smp PSPNet, output stride 8", "semseg, zoom factor 2"]


@pytest.mark.parametrize("name", TAILS + OTHERS)
@torch.no_grad()
def test_predict(name, monkeypatch):
    model, x = fresh(name)
    align_corners = name.startswith(("semseg", "smp"))
    logits = full_size(model(x), x, align_corners)
    sizes = []
    argmax = fastseg.tail.upsample_argmax
    monkeypatch.setattr(
        fastseg.tail, "upsample_argmax", lambda *given: sizes.append(given[0].shape[-1]) or argmax(*given)
    )
    for each in (model, fastseg.patch(copy.deepcopy(model))):
        labels = fastseg.predict(each, x, **({"align_corners": True} if name == OTHERS[-1] else {}))
        assert labels.shape == (2, *x.shape[-2:]) and labels.dtype == torch.uint8
        chosen = logits.gather(1, labels.long()[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(1), rtol=1e-4, atol=1e-4)  # but for ties
    small = name in TAILS or name in ("mmseg ASPPHead", "semseg, zoom factor 2")
    assert [size < x.shape[-1] for size in sizes] == [small] * 2


@torch.no_grad()
def test_predict_at_another_size_and_its_errors():
    model, x = fresh("torchvision fcn")
    logits = model.classifier(model.backbone(x)["out"])
    expected = fastseg.ops.upsample_argmax(logits, (31, 35))
    assert torch.equal(fastseg.predict(model, x, (31, 35)), expected)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    assert fastseg.predict(model, x).shape == (2, 33, 49) and seen  # who listens to the model hears it
    with pytest.raises(RuntimeError, match="training mode"):
        fastseg.predict(model.train(), x)
    with pytest.raises(ValueError, match="two classes"):
        fastseg.predict(nn.Conv2d(3, 1, 1).eval(), x)
    with pytest.raises(TypeError, match="wanted logits"):
        fastseg.loss([x], torch.zeros(2, 33, 49).long())


@pytest.mark.parametrize("name", ["torchvision, small", "semseg", "smp PSPNet", "transformers UperNet"])
def test_loss(name):
    model, x = fresh(name)
    model, x = model.double(), x.double()
    target = torch.randint(CLASSES, (2, *x.shape[-2:]))
    target[:, :3] = 255
    align_corners = name.startswith(("semseg", "smp"))
    output = model(x)
    expected = F.cross_entropy(full_size(output, x, align_corners), target, ignore_index=255)
    if isinstance(output, dict) and "aux" in output:
        expected = expected + 0.4 * F.cross_entropy(output["aux"], target, ignore_index=255)
    if name == "semseg":  # which returns no auxiliary logits while labelling
        expected = expected + 0.4 * F.cross_entropy(auxiliary_logits(model, x), target, ignore_index=255)
    for each in (model, fastseg.patch(copy.deepcopy(model))):
        loss = fastseg.loss(each, target, x, ignore_index=255)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        loss.backward()
        gradient = next(parameter.grad for parameter in each.parameters() if parameter.grad is not None)
        assert gradient.isfinite().all() and gradient.any()
    if name != "semseg":
        of_output = fastseg.loss(output, target, ignore_index=255, align_corners=align_corners)
        torch.testing.assert_close(of_output.double(), expected, rtol=1e-6, atol=0)


def auxiliary_logits(model, x):
    features = model.layer3(model.layer2(model.layer1(model.layer0(x))))
    return F.interpolate(model.aux(features), x.shape[-2:], mode="bilinear", align_corners=True)


def test_arguments_of_loss():
    target = torch.zeros(1, 8, 8).long()
    with pytest.raises(TypeError, match="a model needs images"):
        fastseg.loss(nn.Conv2d(3, 2, 1), target)
    with pytest.raises(TypeError, match="images are for a model"):
        fastseg.loss(torch.zeros(1, 2, 4, 4), target, torch.zeros(1, 3, 8, 8))
