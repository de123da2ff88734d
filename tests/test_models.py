"""Networks against torchvision's, with shared random weights."""

import argparse
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg import models
from fastseg.models.checkpoints import factory_arguments, load_weights, read_state_dict
from fastseg.models.deeplabv3 import DeepLabHead
from fastseg.models.fcn import FCNHead
from fastseg.models.resnet import ResNet
from fastseg.nn import AuxiliaryLoss, UpsampleCrossEntropyLoss
from fastseg.nn.conv_bn import conv_bn

segmentation = pytest.importorskip("torchvision.models.segmentation")
resnet = pytest.importorskip("torchvision.models.resnet")

SIZE = (65, 97)


pytestmark = pytest.mark.usefixtures("one_thread")


def torchvision_model(name, **keywords):
    return getattr(segmentation, name)(weights=None, weights_backbone=None, aux_loss=True, **keywords)


def vary_batch_norms(model):
    """As if trained a little: fresh statistics and affines hide mistakes and let activations explode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))  # (N, 3, H, W)


@pytest.fixture(scope="module", params=["fcn_resnet50", "deeplabv3_resnet50"])
def pair(request, images):
    """(ours, torchvision's) with the same weights, in eval mode, and logits that make several classes win."""
    torch.manual_seed(0)
    theirs = vary_batch_norms(torchvision_model(request.param)).eval()
    with torch.no_grad():
        for head, logits in zip((theirs.classifier, theirs.aux_classifier), theirs(images).values(), strict=True):
            scale = 1 / logits.std((0, 2, 3))
            head[-1].weight.mul_(scale.view(-1, 1, 1, 1))
            head[-1].bias.sub_(logits.mean((0, 2, 3))).mul_(scale)
    ours = models.get_model(request.param).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def logits(pair, images):
    """Low-resolution logits of our network."""
    with torch.no_grad():
        return pair[0].logits(images)  # (N, C, h, w)


@torch.no_grad()
def test_outputs_are_torchvisions(pair, images):
    ours, theirs = (model(images) for model in pair)
    assert list(ours) == list(theirs) == ["out", "aux"]
    for name in ours:
        assert ours[name].shape == (1, 21, *SIZE)
        assert theirs[name].argmax(1).unique().numel() > 5  # the comparison is about something
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_torchvision_takes_our_weights(pair):
    ours, theirs = pair
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"])
@pytest.mark.parametrize("classes", [21, 150])
def test_same_layers_as_torchvision(name, classes):
    def layers(model):
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.MaxPool2d)
        named = {key: repr(module) for key, module in model.named_modules() if isinstance(module, kinds)}
        return {key: text.removeprefix("Atrous") for key, text in named.items()}

    with torch.device("meta"):
        ours, theirs = (
            models.get_model(name, num_classes=classes),
            torchvision_model(name, num_classes=classes),
        )
    assert layers(ours) == layers(theirs)
    shapes = [[(key, value.shape) for key, value in m.state_dict().items()] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_default_initialisation_is_torchvisions():
    ours, theirs = ResNet((1, 1, 1, 1)), resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])
    theirs = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        if mine.dim() == 4:
            assert mine.std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name
        else:
            assert torch.equal(mine, theirs[name]), name


@torch.no_grad()
@pytest.mark.parametrize("size", [None, (131, 70), 40])
def test_predict(pair, images, logits, size):
    labels = pair[0].predict(images, size)
    full = F.interpolate(logits, size or SIZE, mode="bilinear", align_corners=False)  # (N, C, H, W)
    best = full.topk(2, 1)
    ties = best.values[:, 0] - best.values[:, 1] < 1e-5
    assert labels.dtype == torch.uint8
    assert labels.shape == ties.shape
    assert labels.unique().numel() > 5
    assert ((labels == best.indices[:, 0]) | ties).all()


@torch.no_grad()
def test_channels_last(pair, images, logits):
    ours, _ = pair
    try:
        ours.to(memory_format=torch.channels_last)
        got = ours.logits(images.contiguous(memory_format=torch.channels_last))
    finally:
        ours.to(memory_format=torch.contiguous_format)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-4)


def test_predict_and_logits_leave_aux_alone(pair, images):
    ours, _ = pair
    handle = ours.aux_classifier.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    try:
        labels = ours.predict(images[:1, :, :33, :33])
    finally:
        handle.remove()
    assert not labels.requires_grad


@pytest.mark.parametrize("head", [FCNHead, DeepLabHead])
def test_training(head):
    model = models.Segmenter(ResNet((1, 1, 1, 1)), head(2048, 5), FCNHead(1024, 5)).train()
    images, target = torch.randn(2, 3, 17, 25), torch.randint(5, (2, 17, 25))
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\) first"):
        model.predict(images)
    outputs = model(images)
    (F.cross_entropy(outputs["out"], target) + 0.5 * F.cross_entropy(outputs["aux"], target)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.fixture(scope="module")
def small():
    """A network of few layers that behaves the same at every call."""
    torch.manual_seed(0)
    return vary_batch_norms(models.Segmenter(ResNet((1, 1, 1, 1)), FCNHead(2048, 5), FCNHead(1024, 5))).eval()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_small_logits_train_as_full_size_ones(small, dtype, tolerance):
    model = copy.deepcopy(small).to(dtype)
    images, target = torch.randn(2, 3, 33, 41, dtype=dtype), torch.randint(6, (2, 33, 41))
    options = {"weight": torch.rand(5, dtype=dtype), "ignore_index": 5}

    outputs = model(images, upsample=False)
    assert [(name, y.shape) for name, y in outputs.items()] == [("out", (2, 5, 5, 6)), ("aux", (2, 5, 5, 6))]
    loss = AuxiliaryLoss(UpsampleCrossEntropyLoss(**options))(outputs, target)
    full = AuxiliaryLoss(nn.CrossEntropyLoss(**options))(model(images), target)
    torch.testing.assert_close(loss, full, rtol=tolerance, atol=0)

    parameters = dict(model.named_parameters())
    grads = [torch.autograd.grad(value, list(parameters.values())) for value in (loss, full)]
    for name, got, want in zip(parameters, *grads, strict=True):
        assert (got - want).norm() <= tolerance * want.norm(), name


def record_by_tracing(model, x):
    traced = torch.jit.trace(model, x, strict=False)
    return traced, str(traced.inlined_graph)


def record_by_fx(model, x):
    traced = torch.fx.symbolic_trace(model)
    return traced, str(traced.graph)


def record_by_export(model, x):
    sides = {2: torch.export.Dim("height", min=16, max=128), 3: torch.export.Dim("width", min=16, max=128)}
    program = torch.export.export(model, (x,), dynamic_shapes={"x": sides})
    return program.module(), str(program.graph)


@torch.no_grad()
@pytest.mark.parametrize("record", [record_by_tracing, record_by_fx, record_by_export])
def test_a_recorded_network_runs_without_fastseg(small, record):
    model, graph = record(small, torch.randn(1, 3, 33, 33))
    assert "conv" in graph
    assert "fastseg::" not in graph and "ops.fastseg" not in graph
    x = torch.randn(1, 3, 41, 25)
    for name, logits in model(x).items():
        torch.testing.assert_close(logits, small(x)[name])


def test_without_aux():
    with torch.device("meta"):
        model = models.fcn_resnet50(aux_loss=False)
        assert list(model(torch.zeros(1, 3, 17, 17))) == ["out"]
    assert not any(key.startswith("aux_classifier") for key in model.state_dict())
    assert factory_arguments(model.state_dict()) == {"num_classes": 21, "aux_loss": False}


def test_no_images(pair):
    ours, _ = pair
    assert ours.predict(torch.zeros(0, 3, 33, 49)).shape == (0, 33, 49)


def test_unknown_name():
    with pytest.raises(ValueError, match="one of fcn_resnet50, .*got 'unet'"):
        models.get_model("unet")


class TestCheckpoints:
    """On a network of two layers: what matters is names and shapes."""

    @pytest.fixture
    def model(self):
        return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))

    @pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_read_torch(self, model, tmp_path, wrap, prefix):

        state_dict = {prefix + key: value for key, value in model.state_dict().items()}
        content = {wrap: state_dict, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if wrap else state_dict
        torch.save(content, tmp_path / "weights.pth")
        self.check_equal(read_state_dict(tmp_path / "weights.pth"), model.state_dict())

    def test_read_safetensors(self, model, tmp_path):
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), tmp_path / "w.safetensors")
        self.check_equal(read_state_dict(tmp_path / "w.safetensors"), model.state_dict())

    @staticmethod
    def check_equal(got, want):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in want)

    @pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 99])
    def test_broken_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a .*file"):
            read_state_dict(tmp_path / name)

    @pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
    def test_no_file(self, tmp_path, name):
        with pytest.raises(FileNotFoundError):
            read_state_dict(tmp_path / name)

    @pytest.mark.parametrize(("content", "got"), [({}, "nothing"), ([1], "list"), ({"epoch": 3}, "int under 'epoch'")])
    def test_no_weights_in_file(self, tmp_path, content, got):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=f"names and tensors, got {got}"):
            read_state_dict(tmp_path / "weights.pth")

    def test_code_in_a_file_does_not_run(self, tmp_path):
        class Code:
            def __reduce__(self):
                return (tmp_path.joinpath("ran").touch, ())

        torch.save({"state_dict": Code()}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="not a file of weights"):
            read_state_dict(tmp_path / "weights.pth")
        assert not (tmp_path / "ran").exists()

    def test_all_misfits_are_named_and_nothing_is_loaded(self, model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        wrong = {key: value + 1 for key, value in before.items() if key != "1.running_var"}
        wrong |= {"0.weight": torch.zeros(4, 9, 1, 1)} | {f"new{k}": torch.zeros(1) for k in range(5)}
        with pytest.raises(ValueError) as error:
            load_weights(model, wrong)
        message = str(error.value)
        assert "1 missing (1.running_var)" in message
        assert "5 unexpected (new0; new1; new2; ...)" in message
        assert "1 of wrong shape (0.weight: wanted (4, 3, 1, 1), got (4, 9, 1, 1))" in message
        self.check_equal(model.state_dict(), before)

    def test_half_precision_and_old_files_load(self, model):
        state_dict = {key: value.half() for key, value in model.state_dict().items() if value.is_floating_point()}
        state_dict["1.bias"] = torch.arange(4).half()
        assert load_weights(model, state_dict) is model
        assert model[1].bias.tolist() == [0, 1, 2, 3]
        assert model[1].bias.dtype == torch.float32

    def test_factory_arguments(self):
        last, hidden = torch.zeros(150, 512, 1, 1), torch.zeros(512, 2048, 3, 3)
        # "10" sorts before "4" in a file that orders its names
        state_dict = {
            "aux_classifier.4.bias": last,
            "classifier.10.weight": last,
            "classifier.4.weight": hidden,
        }
        assert factory_arguments(state_dict) == {"num_classes": 150, "aux_loss": True}
        assert factory_arguments({"fc.weight": hidden}) == {"aux_loss": False}


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_folding_is_as_accurate_as_two_steps(dtype):
    """Against float64, within 1.5 of the error of the unfolded layers in the same dtype."""
    conv, bn = torch.nn.Conv2d(16, 32, 1, bias=False), torch.nn.BatchNorm2d(32).eval()
    bn.running_mean.normal_(), bn.running_var.uniform_(0.3, 3), torch.nn.init.normal_(bn.weight, 1, 0.2)
    conv, bn, x = conv.to(dtype), bn.to(dtype), torch.randn(4, 16, 9, 9).to(dtype)
    with torch.no_grad():
        folded, two_steps = conv_bn(conv, bn, x), bn(conv(x))
        truth = bn.double()(conv.double()(x.double()))

    def error(y):
        return ((y - truth).norm() / truth.norm()).item()

    assert not torch.equal(folded, two_steps), "nothing was folded"
    assert error(folded) <= 1.5 * error(two_steps)


def test_what_watches_a_layer_still_sees_its_call():
    conv, bn, x = torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4).eval(), torch.randn(1, 3, 5, 5)
    seen = []

    def see(*call):
        seen.append(call)

    with torch.no_grad():
        for register in (bn.register_forward_hook, torch.nn.modules.module.register_module_forward_hook):
            handle = register(see)
            conv_bn(conv, bn, x)
            handle.remove()
            assert seen
            seen.clear()
        own = conv.forward
        conv.forward = lambda x: see(x) or own(x)
        conv_bn(conv, bn, x)
        assert seen
        del conv.forward
        mixed = conv.bfloat16()
        assert conv_bn(mixed, bn, x.bfloat16()).shape == (1, 4, 5, 5)  # BatchNorm kept in float32


def test_logits_export_with_a_dynamic_batch():
    model = models.fcn_resnet50(num_classes=3, aux_loss=False).eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.logits(x)

    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(Logits(), (torch.randn(2, 3, 33, 33),), dynamic_shapes={"x": {0: batch}})
        x = torch.randn(5, 3, 33, 33)
        torch.testing.assert_close(exported.module()(x), model.logits(x), rtol=1e-3, atol=1e-4)


def test_a_number_for_a_name_is_one_error(tmp_path):
    torch.save({1: torch.ones(2)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="must hold names and tensors, got int 1 for a name"):
        read_state_dict(tmp_path / "odd.pth")


def test_a_scalar_for_the_last_layer_is_left_to_load_weights():
    assert factory_arguments({"classifier.4.weight": torch.tensor(1.0)}) == {"aux_loss": False}
