"""fastseg.patch on a small torchvision DeepLabV3 and on PyTorch's own modules: what it changes and what it leaves."""

import copy

import pytest
import torch
from small_deeplabv3 import SIZE, check_same, logits_and_gradients, network
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

import fastseg
from fastseg.nn import AtrousConv2d, Deconv2d
from fastseg.patches.registry import PATCHES, fast_class

pytestmark = pytest.mark.usefixtures("one_thread")

PATCHED = {
    "": DeepLabV3,
    "backbone.layer3.0": nn.Conv2d,
    "backbone.layer4.0": nn.Conv2d,
    "classifier.0": type(network().classifier[0]),
    "classifier.0.convs.1.0": nn.Conv2d,
    "classifier.0.convs.2.0": nn.Conv2d,
    "classifier.0.convs.3.0": nn.Conv2d,
}


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(2)
    return torch.randn(2, 3, *SIZE)


@pytest.fixture(scope="module")
def stock(images):
    with torch.no_grad():
        return network()(images)


@pytest.fixture
def model():
    return fastseg.patch(network(), strict=True)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_values_and_gradients(model, images, training):
    model.train(training), (stock := network()).train(training)
    ours, theirs = (logits_and_gradients(each, images, torch.float64) for each in (model, stock))
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        assert (ours[name] - truth).abs().amax() <= 1e-10 * truth.abs().amax(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_errors_are_pytorchs(model, images, dtype):
    x = images.to(dtype)  # the same numbers for all
    weights = {name: w.to(dtype).float() for name, w in network().state_dict().items()}
    runs = []
    for module, kind in ((model, dtype), (network(), torch.float64), (network(), dtype)):
        module.load_state_dict(weights)
        runs.append(module.to(kind)(x.to(kind)))
    for name in runs[0]:
        ours, truth, usual = (run[name] for run in runs)
        off = [(y.double() - truth).abs() for y in (ours, usual)]
        once = torch.finfo(dtype).eps / 2 * truth.abs().amax()
        assert off[0].norm() <= 1.5 * off[1].norm() and off[0].amax() <= 1.5 * off[1].amax() + once, name


@torch.no_grad()
def test_one_object_changes_its_classes_and_back(images, stock):
    model = network()
    state, parameters, text = model.state_dict(), list(model.parameters()), repr(model)
    contents = {path: dict(vars(module)) for path, module in model.named_modules()}
    assert fastseg.patch(model, strict=True) is model and fastseg.is_patched(model)
    assert {p: m.stock_class for p, m in model.named_modules() if hasattr(m, "stock_class")} == PATCHED
    assert fastseg.patch(model) is model and isinstance(model, DeepLabV3) and type(model).__name__ == "DeepLabV3"
    assert list(model.state_dict()) == list(state) and all(
        map(torch.equal, model.state_dict().values(), state.values())
    )
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert "fastseg.ASPP" in repr(model)
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == contents
    check_same(model(images), stock)
    assert fastseg.unpatch(model) is model and not fastseg.is_patched(model) and repr(model) == text
    assert all(type(module) is PATCHED.get(path, type(module)) for path, module in model.named_modules())
    assert all(torch.equal(logits, stock[name]) for name, logits in model(images).items())


def test_report(model):
    model.classifier[0].project[0].register_forward_hook(lambda *_: None)
    model.backbone["layer3"][0] = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=2)
    rows = {row.path: row for row in fastseg.report(model)}
    assert rows["(the model)"] == ("(the model)", "DeepLabV3", True, "upsample_bilinear")
    assert rows["backbone.layer4.0"].note == "atrous_conv2d"
    assert rows["backbone.layer3.0"][1:] == ("Conv2d", False, "2 groups")
    assert "runs as before: project.0" in rows["classifier.0"].note
    assert "left alone  2 groups" in str(fastseg.report(model))
    assert str(fastseg.report(nn.ReLU())) == "nothing that fastseg.patch knows"


class MyConv2d(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def parametrised():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, dilation=2))


def with_a_forward():
    conv = nn.Conv2d(4, 4, 3, dilation=2)
    conv.forward = conv.forward
    return conv


LEFT_ALONE = {
    "a subclass": (lambda: MyConv2d(4, 4, 3, dilation=2), "is a subclass of torch.nn.modules.conv.Conv2d"),
    "a parametrisation": (parametrised, "is a subclass of"),
    "a forward of its own": (with_a_forward, "it has a forward of its own"),
    "other padding": (lambda: nn.Conv2d(4, 4, 3, dilation=2, padding=2, padding_mode="reflect"), "padding_mode"),
    "groups": (lambda: nn.Conv2d(4, 4, 3, dilation=2, groups=4), "4 groups"),
    "a scale that is not whole": (lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"), "is not whole"),
}


@pytest.mark.parametrize("build, reason", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_left_alone(build, reason):
    model = nn.Sequential(build(), nn.Conv2d(4, 4, 3, dilation=2))
    x = torch.randn(1, 4, 9, 9)
    first, kind = model[0](x), type(model[0])
    with pytest.raises(ValueError, match="strict"):
        fastseg.patch(model, strict=True)
    assert not fastseg.is_patched(model)
    fastseg.patch(model)
    assert type(model[0]) is kind and fastseg.is_patched(model[1])
    assert reason in fastseg.report(model)[0].note
    assert torch.equal(model[0](x), first)


@torch.no_grad()
def test_nothing_to_gain():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, dilation=4), nn.Upsample(scale_factor=2), nn.ReLU())
    assert not fastseg.is_patched(fastseg.patch(model, strict=True)) and fastseg.report(model) == []


CHILDREN = {
    "branch": "convs.1",
    "projection": "project",
    "its convolution": "convs.1.0",
    "pooling": "convs.4",
    "project": "project.0",
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
@torch.no_grad()
def test_hooks_on_children_are_seen(model, images, stock, child):
    seen = []
    module = model.classifier[0].get_submodule(child)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    check_same(model(images), stock)
    assert seen == [module]
    handle.remove()
    check_same(model(images), stock)
    assert len(seen) == 1


@torch.no_grad()
def test_children_of_other_kinds(model, images):
    """Wrapped, say by LoRA, after the patch."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    other = network()
    for each in (model, other):
        for parent in (each.classifier[0].project, each.classifier[0].convs[2], each.classifier[0].convs[4]):
            index = 1 if parent[0].__class__ is nn.AdaptiveAvgPool2d else 0
            parent[index] = Wrapped(parent[index])
    check_same(model(images), other(images))


def test_another_version_is_left_alone():
    kind = type("FCN", (nn.Module,), {"forward": lambda self, x: self.classifier(self.features(x))})
    kind.__module__, kind.__qualname__ = "torchvision.models.segmentation.fcn", "FCN"
    model = kind()
    assert not fastseg.is_patched(fastseg.patch(model))
    assert "is not the one that is known: F, OrderedDict" in fastseg.report(model)[0].note


@torch.no_grad()
def test_ops_and_filter(images, stock):
    model = fastseg.patch(network(), ops="upsample_bilinear")
    assert [row.path for row in fastseg.report(model) if row.patched] == ["(the model)"]
    model = fastseg.patch(network(), filter_fn=lambda module, path: path.startswith("classifier"))
    assert all(row.patched == row.path.startswith("classifier") for row in fastseg.report(model))
    check_same(model(images), stock)
    with pytest.raises(ValueError, match="ops must be"):
        fastseg.patch(network(), ops=["conv2d"])


def calls_of(monkeypatch):
    calls = []
    fused = PATCHES["torchvision.models.segmentation.deeplabv3.ASPP"].fused
    kind = PATCHES["torchvision.models.segmentation.deeplabv3.ASPP"]
    monkeypatch.setattr(kind, "fused", lambda self, x: calls.append(self.training) or fused(self, x))
    return calls


def test_mode(monkeypatch, images):
    calls = calls_of(monkeypatch)
    for mode, wanted in {"auto": [False, True], "inference": [False], "training": [True]}.items():
        model = fastseg.patch(network(), mode=mode)
        model(images), model.train()(images)
        assert calls == wanted
        calls.clear()
    assert fastseg.patch(model) is model and "fastseg_options" not in vars(model)  # the options of the last patch
    with pytest.raises(ValueError, match="mode must be"):
        fastseg.patch(model, mode="eval")


@torch.no_grad()
def test_backend(images, stock):
    with torch.profiler.profile() as profile:
        check_same(fastseg.patch(network(), backend="reference")(images), stock)
    names = {event.name for event in profile.events()}
    assert "fastseg::upsample_bilinear" in names and not any(name.startswith("fastseg_native") for name in names)
    assert fastseg.dispatch.choose("upsample_bilinear", "cpu", images, SIZE, False, False)[0] != "reference"
    with pytest.raises(ValueError, match="backend must be"):
        fastseg.patch(network(), backend="fast")


def test_patched_is_undone(images):
    model = fastseg.patch(network(), filter_fn=lambda module, path: path == "", mode="inference")
    before = {path: (type(module), dict(vars(module))) for path, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), fastseg.patched(model) as same:
        assert same is model and len([row for row in fastseg.report(model) if row.patched]) == len(PATCHED)
        raise ZeroDivisionError
    assert {path: (type(module), dict(vars(module))) for path, module in model.named_modules()} == before


def test_disabled(monkeypatch):
    monkeypatch.setenv("FASTSEG_DISABLE", "1")
    model = fastseg.patch(network(), strict=True)
    assert not fastseg.is_patched(model) and fastseg.report(model)[0].note == "FASTSEG_DISABLE is set"
    monkeypatch.setenv("FASTSEG_DISABLE", "0")
    assert fastseg.is_patched(fastseg.patch(model))


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = 2

    def forward(self, x):
        return x * self.factor


def test_register(monkeypatch):
    monkeypatch.setitem(PATCHES, f"{__name__}.Doubling", None)  # so that it is taken out again

    @fastseg.register(f"{__name__}.Doubling")
    class Faster:
        @staticmethod
        def why_not(module):
            return None if module.factor == 2 else f"factor {module.factor}"

        def fused(self, x):
            return x + x

    model = nn.Sequential(Doubling(), Doubling())
    model[1].factor = 3
    fastseg.patch(model)
    assert [row.patched for row in fastseg.report(model)] == [True, False]
    assert fastseg.report(model)[1].note == "factor 3"
    x = torch.ones(3)
    assert model(x).tolist() == [6] * 3
    program = torch.export.export(model[0], (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))  # as of its own forward
    assert program.module()(torch.ones(5)).tolist() == [2] * 5
    assert torch.fx.symbolic_trace(model[0])(x).tolist() == [2] * 3
    with pytest.raises(TypeError, match="fused"):
        fastseg.register("package.Class")(object)
    with pytest.raises(TypeError, match="qualified names"):
        fastseg.register(Doubling)
    fast_class.cache_clear()


# PyTorch's own modules.


@pytest.mark.parametrize("scale", [{"scale_factor": 4}, {"scale_factor": (2, 3.0)}, {"size": (17, 5)}], ids=str)
@pytest.mark.parametrize("align_corners", [False, True, None])
def test_upsample(scale, align_corners):
    model = nn.Sequential(nn.Upsample(**scale, mode="bilinear", align_corners=align_corners))
    x = torch.randn(2, 3, 5, 7)
    expected = model(x)
    torch.testing.assert_close(fastseg.patch(model, strict=True)(x), expected)
    assert fastseg.is_patched(model)


def test_deconvolution_and_convolution_without_a_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2, padding="same"), nn.ConvTranspose2d(4, 2, 4, stride=2))
    x = torch.randn(3, 9, 11)
    expected = model(x)
    fastseg.patch(model, strict=True)
    assert isinstance(model[0], AtrousConv2d) and isinstance(model[1], Deconv2d)
    torch.testing.assert_close(model(x), expected)
    sized = model[1](model[0](x), output_size=(21, 24))
    torch.testing.assert_close(sized, fastseg.unpatch(model)[1](model[0](x), output_size=(21, 24)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.complex64], ids=str)
def test_numbers_without_kernels_go_to_pytorch(dtype):
    layers = [nn.Upsample(scale_factor=2, mode="bilinear")]
    if dtype.is_complex:
        layers = [nn.Conv2d(3, 4, 3, dilation=2, dtype=dtype), nn.ConvTranspose2d(4, 2, 4, dtype=dtype)]
    model = nn.Sequential(*layers)
    x = (100 * torch.rand(1, 3, 9, 9)).to(dtype)
    expected = model(x)
    assert torch.equal(fastseg.patch(model, strict=True)(x), expected)


def test_arguments_keep_their_names():
    x = torch.randn(1, 2, 5, 5)
    for module in (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 2, 3, dilation=2)):
        expected = module(input=x)
        torch.testing.assert_close(fastseg.patch(module, strict=True)(input=x), expected)


def test_a_class_that_derives_from_a_patched_one_is_kept():
    conv = fastseg.patch(nn.Conv2d(2, 2, 3, dilation=2))
    conv.__class__ = type("Summed", (type(conv),), {"forward": lambda self, x: x.sum()})
    other = copy.deepcopy(conv)
    assert type(other) is type(conv) and other(torch.zeros(1, 2, 9, 9)).dim() == 0


def test_patched_keeps_a_parametrisation_that_came_inside():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2))
    x = torch.randn(1, 2, 9, 9)
    expected = model(x)
    with fastseg.patched(model):
        nn.utils.parametrizations.weight_norm(model[0])
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_batch_norm_without_statistics(images):
    stock = network()
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    expected = stock(images)
    torch.testing.assert_close(fastseg.patch(stock)(images), expected)


@torch.no_grad()
def test_labels_of_another_version(images):
    """Of the same name, with other logits: of these we know nothing."""
    model = network()

    class DeepLabV3(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.classifier = model.backbone, model.classifier
            self.aux_classifier = None

        def forward(self, x):
            return -model(x)["out"]

    DeepLabV3.__module__, DeepLabV3.__qualname__ = type(model).__module__, "DeepLabV3"
    labels = fastseg.predict(DeepLabV3().eval(), images)
    assert (labels == model(images)["out"].argmin(1)).float().mean() > 0.99
