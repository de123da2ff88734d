"""PSPNet against the same network written out in plain PyTorch, with the same random weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg import models
from fastseg.inference import sliding
from fastseg.models.checkpoints import factory_arguments, load_weights, read_state_dict
from fastseg.models.preprocess import IMAGENET
from fastseg.models.pspnet import PSPNet
from fastseg.nn import AuxiliaryLoss, UpsampleCrossEntropyLoss

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = (1, 1, 2, 2)  # a second one shows which dilation the first has
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 269: (3, 30, 48, 8)}
CLASSES = 5
CASES = {
    "the authors'": {},
    "half-pixel": {"align_corners": False},
    "contracted, plain stem": {"contracted": True, "stem": (64,)},
    "thin stem": {"stem": (32, 32, 64), "align_corners": False},
    "maxima": {"mode": "max"},
    "other bins": {"bins": (1, (2, 3), 13), "mode": "max", "align_corners": False},
}


def build(**keywords):
    """A network of few blocks without dropout, as if trained a little: fresh BatchNorms hide mistakes."""
    torch.manual_seed(0)
    model = PSPNet(BLOCKS, num_classes=CLASSES, **keywords)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Dropout2d):
            module.p = 0
    images = torch.randn(2, 3, 65, 81)
    with torch.no_grad():
        for head, logits in zip((model.cls, model.aux), model.eval()(images, upsample=False).values(), strict=True):
            scale = 1 / logits.std((0, 2, 3))  # so that several classes win
            head[-1].weight.mul_(scale.view(-1, 1, 1, 1))
            head[-1].bias.sub_(logits.mean((0, 2, 3))).mul_(scale)
    return model


class WrittenOut:
    """The network as functions of a state dict, whose statistics training updates."""

    def __init__(self, state_dict, training, contracted=False, align_corners=True, bins=(1, 2, 3, 6), mode="avg", **_):
        self.all, self.training, self.contracted = state_dict, training, contracted
        self.align_corners, self.bins = align_corners, bins
        self.pool = F.adaptive_max_pool2d if mode == "max" else F.adaptive_avg_pool2d

    def conv(self, name, x, *how):
        return F.conv2d(x, self.all[f"{name}.weight"], self.all.get(f"{name}.bias"), *how)

    def bn(self, name, x):
        mean, variance, weight, bias = (
            self.all[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, self.training)

    def conv_bn_relu(self, conv, bn, x, *how):
        return F.relu(self.bn(bn, self.conv(conv, x, *how)))

    def block(self, name, x, stride, dilation):
        y = self.conv_bn_relu(f"{name}.conv1", f"{name}.bn1", x)
        y = self.conv_bn_relu(f"{name}.conv2", f"{name}.bn2", y, stride, dilation, dilation)
        y = self.bn(f"{name}.bn3", self.conv(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.all:
            x = self.bn(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
        return F.relu(x + y)

    def stem(self, x):
        if self.all["layer0.0.weight"].shape[2] == 7:
            x = self.conv_bn_relu("layer0.0", "layer0.1", x, 2, 3)
        else:
            for k in (0, 3, 6):
                x = self.conv_bn_relu(f"layer0.{k}", f"layer0.{k + 1}", x, 2 if k == 0 else 1, 1)
        return F.max_pool2d(x, 3, 2, 1)

    def resize(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

    def head(self, name, x):
        return self.conv(f"{name}.4", self.conv_bn_relu(f"{name}.0", f"{name}.1", x, 1, 1))

    def __call__(self, images):
        x = self.stem(images)
        x = self.block("layer1.0", x, 1, 1)
        x = self.block("layer2.0", x, 2, 1)
        x = self.block("layer3.0", x, 1, 1 if self.contracted else 2)
        x = features = self.block("layer3.1", x, 1, 2)
        x = self.block("layer4.0", x, 1, 2 if self.contracted else 4)
        x = self.block("layer4.1", x, 1, 4)
        pyramid = [x]
        for k, size in enumerate(self.bins):
            prior = self.conv_bn_relu(f"ppm.features.{k}.1", f"ppm.features.{k}.2", self.pool(x, size))
            pyramid.append(self.resize(prior, x.shape[2:]))
        low = {"out": self.head("cls", torch.cat(pyramid, 1)), "aux": self.head("aux", features)}
        return low, {name: self.resize(logits, images.shape[2:]) for name, logits in low.items()}


def copied(state_dict):
    return {name: tensor.clone() for name, tensor in state_dict.items()}


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_as_written_out(case, training):
    """Logits at both sizes, and the statistics that training leaves."""
    model = build(**CASES[case]).train(training)
    images = torch.randn(2, 3, 65, 81)
    written_out = WrittenOut(copied(model.state_dict()), training, **CASES[case])
    wanted_low, wanted = written_out(images)
    got_low = copy.deepcopy(model)(images, upsample=False)
    got = model(images)
    assert list(got) == list(got_low) == ["out", "aux"]
    for name in got:
        assert got[name].shape == (2, CLASSES, 65, 81)
        assert got_low[name].shape == (2, CLASSES, 9, 11)
        assert wanted[name].argmax(1).unique().numel() > 2
        for ours, theirs in ((got, wanted), (got_low, wanted_low)):
            assert (ours[name] - theirs[name]).abs().max() <= 1e-4 * theirs[name].abs().max()
    for name, tensor in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, written_out.all[name], rtol=1e-4, atol=1e-5, msg=name)
        if training and "num_batches" in name:
            assert tensor == 1, name


@pytest.mark.parametrize("case", ["the authors'", "other bins"])
def test_gradients(case):
    """In float64, of both heads, in training mode."""
    model = build(**CASES[case]).double().train()
    images, weights = torch.randn(2, 3, 33, 41, dtype=torch.float64), {}
    state_dict = copied(model.state_dict())
    for name, parameter in model.named_parameters():
        state_dict[name] = parameter
    _, wanted = WrittenOut(state_dict, True, **CASES[case])(images)
    weights = {name: torch.randn_like(logits) for name, logits in wanted.items()}
    grads = [
        torch.autograd.grad(sum((logits[name] * weights[name]).sum() for name in logits), list(model.parameters()))
        for logits in (copy.copy(model)(images), wanted)
    ]
    for (name, _), got, want in zip(model.named_parameters(), *grads, strict=True):
        assert want.any(), name
        assert (got - want).norm() <= 1e-9 * want.norm(), name


def names_and_shapes(blocks, classes):
    """The state dict of the authors' code, written out."""
    conv_bns = [("layer0.0", "layer0.1", (64, 3, 3, 3))]
    conv_bns += [("layer0.3", "layer0.4", (64, 64, 3, 3)), ("layer0.6", "layer0.7", (128, 64, 3, 3))]
    channels = 128
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for k in range(count):
            name = f"layer{stage}.{k}"
            shapes = ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            conv_bns += [(f"{name}.conv{i}", f"{name}.bn{i}", shape) for i, shape in enumerate(shapes, 1)]
            if k == 0:
                conv_bns.append((f"{name}.downsample.0", f"{name}.downsample.1", (4 * width, channels, 1, 1)))
            channels = 4 * width
    conv_bns += [(f"ppm.features.{k}.1", f"ppm.features.{k}.2", (512, 2048, 1, 1)) for k in range(4)]
    conv_bns += [("cls.0", "cls.1", (512, 4096, 3, 3)), ("aux.0", "aux.1", (256, 1024, 3, 3))]
    shapes = {}
    for conv, bn, shape in conv_bns:
        shapes[f"{conv}.weight"] = shape
        shapes |= {f"{bn}.{kind}": shape[:1] for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{bn}.num_batches_tracked"] = ()
    for name, width in (("cls", 512), ("aux", 256)):
        shapes |= {f"{name}.4.weight": (classes, width, 1, 1), f"{name}.4.bias": (classes,)}
    return shapes


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_the_authors(depth):
    with torch.device("meta"):
        model = models.get_model(f"pspnet_resnet{depth}", num_classes=150)
    got = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert got == names_and_shapes(DEPTHS[depth], 150)
    assert model.num_classes == 150
    assert model.preprocess == IMAGENET
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) - len("pool") - len(["stem", "stem", "cls", "cls", "aux", "aux"]) - 4 == depth - 1
    dropouts = [(type(module), module.p) for module in model.modules() if "Dropout" in type(module).__name__]
    assert dropouts == [(nn.Dropout2d, 0.1)] * 2


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_the_backbone_is_torchvisions_but_for_its_stem(depth):
    resnet = pytest.importorskip("torchvision.models.resnet")
    with torch.device("meta"):
        theirs = getattr(resnet, f"resnet{depth}")()
        plain, deep = (models.get_model(f"pspnet_resnet{depth}", stem=stem) for stem in ((64,), (64, 64, 128)))
    ours = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items() if name.startswith("layer")}
    assert theirs.items() <= ours.items()
    assert ours["layer0.0.weight"] == (64, 3, 7, 7)
    assert set(deep.state_dict()) - set(ours) == {
        f"layer0.{k}"
        for k in (
            "3.weight",
            "6.weight",
            *(
                f"{i}.{kind}"
                for i in (4, 7)
                for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            ),
        )
    }


def test_number_of_parameters():
    """Those of PSPNet-50 for ADE20K, counted by hand."""
    with torch.device("meta"):
        model = models.pspnet_resnet50(num_classes=150)
    resnet50 = 25_557_032 - 2049 * 1000  # without its last layer
    stem = (27 * 64 + 2 * 64) + (576 * 64 + 2 * 64) + (576 * 128 + 2 * 128) - (147 * 64 + 2 * 64)
    wider = 64 * 64 + 64 * 256  # the first block has 128 channels
    pyramid = 4 * (2048 * 512 + 2 * 512)
    head, aux = (9 * n * width + 2 * width + (width + 1) * 150 for n, width in ((4096, 512), (1024, 256)))
    assert sum(p.numel() for p in model.parameters()) == resnet50 + stem + wider + pyramid + head + aux


def test_a_new_network():
    """The backbone starts as torchvision's does, the rest as PyTorch's layers do."""
    model = PSPNet((1, 1, 1, 1))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
            std = (2 / fan_out) ** 0.5 if name.startswith("layer") else (1 / 3 / fan_in) ** 0.5
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1), name


@pytest.fixture(scope="module")
def small():
    return build().eval()


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [None, (131, 70), 40])
def test_predict(align_corners, size):
    model = build(align_corners=align_corners).eval()
    images = torch.randn(1, 3, 65, 97)
    full = F.interpolate(model.logits(images), size or (65, 97), mode="bilinear", align_corners=align_corners)
    best = full.topk(2, 1)
    ties = best.values[:, 0] - best.values[:, 1] < 1e-4
    model.aux.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    labels = model.predict(images, size)
    assert labels.dtype == torch.uint8
    assert labels.shape == ties.shape
    assert labels.unique().numel() > 2
    assert ((labels == best.indices[:, 0]) | ties).all()
    assert model.predict(images[:0], size).shape == (0, *labels.shape[1:])


@torch.no_grad()
def test_channels_last(small):
    images = torch.randn(1, 3, 57, 65)
    got = small.logits(images.contiguous(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, small.logits(images), rtol=0, atol=1e-4)


def test_training_mode_is_told(small):
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\) first"):
        copy.deepcopy(small).train().predict(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("align_corners", [True, False])
def test_small_logits_train_as_full_size_ones(align_corners):
    model = build(align_corners=align_corners).double().eval()
    images, target = torch.randn(2, 3, 33, 41, dtype=torch.float64), torch.randint(CLASSES + 1, (2, 33, 41))
    criterion = UpsampleCrossEntropyLoss(ignore_index=CLASSES, align_corners=model.align_corners)
    losses = (
        AuxiliaryLoss(criterion)(model(images, upsample=False), target),
        AuxiliaryLoss(nn.CrossEntropyLoss(ignore_index=CLASSES))(model(images), target),
    )
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for (name, _), got, want in zip(model.named_parameters(), *grads, strict=True):
        assert want.any() and (got - want).norm() <= 1e-9 * want.norm(), name


@torch.no_grad()
@pytest.mark.parametrize("case", ["the authors'", "other bins"])
def test_exported_with_dynamic_sizes(case):
    """At sizes whose maps no bin divides, and without fastseg's ops."""
    model = build(**CASES[case]).eval()
    sides = {2: torch.export.Dim("height", min=16, max=512), 3: torch.export.Dim("width", min=16, max=512)}
    program = torch.export.export(model, (torch.randn(1, 3, 65, 65),), dynamic_shapes={"x": sides})
    assert "fastseg::" not in str(program.graph) and "ops.fastseg" not in str(program.graph)
    for size in ((65, 65), (41, 89), (97, 33)):
        x = torch.randn(1, 3, *size)
        for name, logits in program.module()(x).items():
            torch.testing.assert_close(logits, model(x)[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are checked as the traced ones
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", ("the authors'", "other bins"))
def test_traced(case):
    """As PyTorch's own ops, right at sizes other than the traced one, and below its number of cells."""
    model = build(**CASES[case])
    traced = torch.jit.trace(model, torch.randn(1, 3, 65, 65), strict=False)
    assert "fastseg::" not in str(traced.inlined_graph)
    for shape in ((1, 3, 65, 65), (2, 3, 97, 33), (1, 3, 9, 17)):
        x = torch.randn(shape)
        for name, logits in traced(x).items():
            torch.testing.assert_close(logits, model(x)[name], rtol=1e-4, atol=1e-4)


def test_compiled(small):
    compiled, x = torch.compile(small, fullgraph=True, backend="aot_eager"), torch.randn(2, 3, 41, 57)
    for name, logits in compiled(x).items():
        torch.testing.assert_close(logits, small(x)[name], rtol=1e-4, atol=1e-4)
    parameters = list(small.parameters())
    got, wanted = (
        torch.autograd.grad(sum(logits.square().mean() for logits in model(x).values()), parameters)
        for model in (compiled, small)
    )
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


@torch.no_grad()
def test_copies_and_graphs(small):
    x = torch.randn(1, 3, 41, 57)
    for graph in (copy.deepcopy(small), torch.fx.symbolic_trace(small)):
        for name, logits in graph(x).items():
            torch.testing.assert_close(logits, small(x)[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_windows(small):
    """PSPNet's own way to label: one window of its crop is the network itself."""
    image = torch.randn(1, 3, 41, 41)
    probabilities = sliding(small, image, 41, flip=True, probabilities=True)
    flipped = small(image.flip(3))["out"].softmax(1).flip(3)
    torch.testing.assert_close(probabilities, (small(image)["out"].softmax(1) + flipped) / 2, rtol=1e-4, atol=1e-5)


class TestCheckpoints:
    @pytest.mark.parametrize("keywords", [{}, {"stem": (64,)}, {"aux_loss": False, "num_classes": 3}], ids=str)
    def test_the_authors_training_checkpoint(self, tmp_path, keywords):
        """With "module." before each name and an epoch beside them."""
        with torch.device("meta"):
            model = models.pspnet_resnet50(**keywords)
        state_dict = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        arguments = factory_arguments({name.removeprefix("module."): tensor for name, tensor in state_dict.items()})
        assert arguments == {"num_classes": 21, "aux_loss": True} | keywords

    def test_round_trip(self, small, tmp_path):
        state_dict = {f"module.{name}": tensor for name, tensor in small.state_dict().items()}
        torch.save({"epoch": 100, "state_dict": state_dict, "optimizer": {}}, tmp_path / "train_epoch_100.pth")
        read = read_state_dict(tmp_path / "train_epoch_100.pth")
        assert factory_arguments(read) == {"num_classes": CLASSES, "aux_loss": True}
        model = load_weights(PSPNet(BLOCKS, **factory_arguments(read)), read).eval()
        images = torch.randn(1, 3, 33, 33)
        assert torch.equal(model.predict(images), small.predict(images))

    def test_without_aux(self):
        with torch.device("meta"):
            model = models.pspnet_resnet50(aux_loss=False).eval()
            assert list(model(torch.zeros(1, 3, 65, 65))) == ["out"]
        assert not any(name.startswith("aux") for name in model.state_dict())
