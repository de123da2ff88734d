"""AtrousConv2d and ASPP against PyTorch's and torchvision's own: values, gradients, statistics, graphs, hooks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from fastseg import nn as fnn
from fastseg.nn import ASPP, AtrousConv2d
from fastseg.nn.conv_bn import ConvBNSequential

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS = {
    "rate 2": (8, 6, 3, 1, 2, 2),
    "rate beyond the image": (8, 6, 3, 1, 12, 12),
    "strided": (8, 6, 3, 2, 1, 1),
    "1x1": (8, 6, 1),
    "groups, oblong": (8, 6, (3, 5), (1, 2), (1, 4), (1, 2), 2),
    "same": (8, 6, 3, 1, "same", 3),
    "reflected": (8, 6, 3, 1, 2, 2, 1, True, "reflect"),
}


def grads(module, x, upstream=None):
    """(output, gradients of x and of the parameters)"""
    x = x.clone().requires_grad_()
    y = module(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], upstream)]


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_convolution(case, dtype):
    theirs = nn.Conv2d(*CONVOLUTIONS[case]).to(dtype)
    ours = AtrousConv2d(*CONVOLUTIONS[case]).to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == "Atrous" + repr(theirs)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 9, 11, dtype=dtype).contiguous(memory_format=layout)
        for got, want in zip(grads(ours, x), grads(theirs, x), strict=True):
            torch.testing.assert_close(got, want)


def test_convolution_of_one_image_and_without_bias():
    ours = AtrousConv2d(4, 5, 3, padding=2, dilation=2, bias=False)
    x = torch.randn(4, 7, 7)
    torch.testing.assert_close(ours(x), F.conv2d(x, ours.weight, None, 1, 2, 2))


def test_set_rate():
    conv = AtrousConv2d(4, 5, (3, 5), padding=(1, 2))
    weight, x = conv.weight, torch.randn(1, 4, 12, 12)
    conv.set_rate(3)
    assert conv.weight is weight
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, conv.bias, 1, (3, 6), 3))
    conv.padding_mode = "circular"
    alike = nn.Conv2d(4, 5, (3, 5), padding=(3, 6), dilation=3, padding_mode="circular")
    alike.load_state_dict(conv.state_dict())
    torch.testing.assert_close(conv(x), alike(x))


class Naive(nn.Module):
    """ASPP as torchvision and mmseg have it, from our state dict."""

    def __init__(self, ours):
        super().__init__()
        self.convs, self.project = copy.deepcopy(ours.convs), copy.deepcopy(ours.project)
        for sequential in (*self.convs, self.project):
            sequential.forward = lambda x, layers=sequential: nn.Sequential.forward(layers, x)
        self.how = ours.image_pooling, ours.pool_first

    def forward(self, x):
        image_pooling, pool_first = self.how
        maps = [conv(x) for conv in self.convs]
        if image_pooling:
            mean = F.interpolate(maps.pop(), x.shape[2:], mode="bilinear")
            maps = [mean, *maps] if pool_first else [*maps, mean]
        return self.project(torch.cat(maps, 1))


FORMS = {
    "torchvision": {},
    "other rates": {"rates": (1, 2, 5, 24)},
    "mmseg": {"kernel_size": 3, "pool_first": True, "dropout": 0},
    "paper, no mean": {"image_pooling": False},
    "no rates": {"rates": ()},
}


def pair(form, dtype=torch.float64, training=False):
    """(ours, the naive one) of one state, as if trained a little, without dropout."""
    ours = ASPP(8, **{"out_channels": 6, "rates": (2, 4, 6), **FORMS[form]}).to(dtype)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                nn.init.normal_(values)
            for values in (module.running_var, module.weight.data):
                nn.init.uniform_(values, 0.5, 2)
        if isinstance(module, nn.Dropout):
            module.p = 0
    return ours.train(training), Naive(ours).train(training)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", (1, 3))
@torch.no_grad()
def test_aspp_labels(form, batch):
    ours, theirs = pair(form)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, 8, 9, 13, dtype=torch.float64).contiguous(memory_format=layout)
        got = ours(x)
        assert got.is_contiguous(memory_format=layout)
        torch.testing.assert_close(got, theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_aspp_gradients_and_statistics(form, training):
    ours, theirs = pair(form, training=training)
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    for got, want in zip(grads(ours, x), grads(theirs, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for (name, got), want in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=name)


def test_aspp_is_torchvisions():
    deeplabv3 = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    theirs = deeplabv3.ASPP(8, [2, 4, 6], 6).eval()
    ours = ASPP(8, (2, 4, 6), 6).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 8, 9, 13)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    ours.train(), theirs.train()
    torch.manual_seed(5)
    got = ours(x)
    torch.manual_seed(5)
    torch.testing.assert_close(got, theirs(x), rtol=1e-3, atol=1e-4)  # the same dropout, too


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@torch.no_grad()
def test_half_precision_is_as_accurate_as_step_by_step(dtype):
    ours, theirs = (module.to(dtype) for module in pair("torchvision", torch.float32))
    x = torch.randn(4, 8, 17, 17).to(dtype)
    truth = copy.deepcopy(theirs).double()
    for sequential in (*truth.convs, truth.project):
        sequential.forward = lambda x, layers=sequential: nn.Sequential.forward(layers, x)
    got, usual, truth = ours(x).double(), theirs(x).double(), truth(x.double())
    assert (got - truth).norm() <= 1.5 * (usual - truth).norm()


def test_set_rates():
    ours, _ = pair("torchvision")
    before = list(ours.parameters())
    assert ours.rates == (2, 4, 6)
    ours.set_rates(torch.tensor([4, 8, 12]).numpy())  # of any kind of int
    assert ours.rates == (4, 8, 12)
    assert all(a is b for a, b in zip(ours.parameters(), before, strict=True))
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), Naive(ours).eval()(x))
    for wrong, what in (((4, 8), "must be 3 in place"), ((4, 8, 0), "ints from 1"), ((4, 8, 1.5), "ints from 1")):
        with pytest.raises(ValueError, match=what):
            ours.set_rates(wrong)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        ASPP(8, kernel_size=2)


def test_one_image_in_training():
    ours, _ = pair("torchvision", training=True)
    x = torch.randn(1, 8, 9, 13, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"ASPP: .* one image.* two images or more.*convs\[4\].*convert_sync_batchnorm"
    ):
        ours(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # another cause: none of our advice
        ours.convs[-1].eval()
        ours(x[..., :1, :1])
    assert ours(x).shape == (1, 6, 9, 13)
    assert fastseg.freeze_bn(pair("torchvision", training=True)[0]).train()(x).shape == (1, 6, 9, 13)
    assert pair("paper, no mean", training=True)[0](x).shape == (1, 6, 9, 13)


@torch.no_grad()
def test_no_images():
    assert pair("torchvision")[0](torch.zeros(0, 8, 9, 13, dtype=torch.float64)).shape == (0, 6, 9, 13)


def test_what_watches_a_layer_still_sees_its_call():
    """Every layer below an ASPP, by a hook and by a forward of its own, in eval mode and in training."""
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    names = [name for name, module in pair("torchvision")[0].named_modules() if name not in ("", "convs")]
    for name in names:
        for training in (False, True):
            ours, theirs = pair("torchvision", training=training)
            seen = []
            layer = ours.get_submodule(name)
            layer.register_forward_hook(lambda *call, seen=seen: seen.append(call[0]))
            with torch.set_grad_enabled(training):
                torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-11)
            assert seen == [layer], name
    ours, theirs = pair("torchvision", training=True)
    handle = ours.project[0].register_full_backward_hook(lambda *call: seen.append("backward"))
    seen.clear()
    ours(x).sum().backward()
    assert seen == ["backward"]
    handle.remove()
    own = ours.project[0].forward
    ours.project[0].forward = lambda x: seen.append("own") or own(x)
    ours(x)
    assert seen[-1] == "own"


OTHER_LAYERS = {  # what replaces which layer of an ASPP: it still runs, if not as one operation
    "depthwise": ("convs.1.0", lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2, groups=2)),
    "two rates": ("convs.1.0", lambda: nn.Conv2d(8, 6, (3, 5), padding=2, dilation=(2, 1))),
    "3x3 in place of 1x1": ("convs.0.0", lambda: nn.Conv2d(8, 6, 3, padding=4, dilation=4)),
    "a layer less": ("convs.1", lambda: ConvBNSequential(nn.Conv2d(8, 6, 1), nn.ReLU())),
    "norm of groups": ("convs.1.1", lambda: nn.GroupNorm(2, 6)),
    "dilated projection": ("project.0", lambda: nn.Conv2d(30, 6, 3, padding=2, dilation=2)),
    "grouped projection": ("project.0", lambda: nn.Conv2d(30, 6, 1, groups=2)),
    "projection padded by name": ("project.0", lambda: nn.Conv2d(30, 6, 3, padding="same")),
}


@pytest.mark.parametrize("case", OTHER_LAYERS)
@torch.no_grad()
def test_other_layers(case):
    ours, _ = pair("torchvision")
    name, layer = OTHER_LAYERS[case]
    ours.set_submodule(name, layer().double())
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    want = Naive(ours)(x)
    for got in (ours(x), fastseg.fold(ours.eval())(x)):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_autocast():
    ours, theirs = pair("torchvision", torch.float32)
    x = torch.randn(2, 8, 9, 13)
    with torch.autocast("cpu", torch.bfloat16):
        got, usual = ours(x), theirs(x)
    assert got.dtype == usual.dtype
    torch.testing.assert_close(got.float(), usual.float(), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_compiled(training):
    ours, theirs = pair("torchvision", training=training)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    for got, want in zip(grads(compiled, x), grads(theirs, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), theirs(x))


@pytest.mark.parametrize("form", ("torchvision", "mmseg"))
@torch.no_grad()
def test_recorded_graphs_run_without_fastseg(form):
    ours, theirs = pair(form)
    x, other = torch.randn(2, 8, 9, 13, dtype=torch.float64), torch.randn(2, 8, 15, 11, dtype=torch.float64)
    sides = {"x": {2: torch.export.Dim("h", min=4, max=64), 3: torch.export.Dim("w", min=4, max=64)}}
    traced, symbolic = torch.jit.trace(ours, x), torch.fx.symbolic_trace(ours)
    exported = torch.export.export(ours, (x,), dynamic_shapes=sides)
    for graph in (traced.inlined_graph, symbolic.graph, exported.graph):
        assert "conv" in str(graph) and "fastseg::" not in str(graph) and "ops.fastseg" not in str(graph)
    for recorded in (traced, symbolic, exported.module()):
        torch.testing.assert_close(recorded(other), theirs(other))


def test_pickled(tmp_path):
    ours, _ = pair("torchvision")
    torch.save(ours, tmp_path / "aspp.pt")
    x = torch.randn(2, 8, 9, 13, dtype=torch.float64)
    loaded = torch.load(tmp_path / "aspp.pt", weights_only=False)
    assert type(loaded) is fnn.ASPP
    assert torch.equal(loaded(x), ours(x))
