"""fastseg.fold: the same outputs without batch normalisation, and reasons where it must stay."""

import copy
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import fastseg
from fastseg import models
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.fcn import FCNHead
from fastseg.models.pspnet import PSPNet
from fastseg.models.resnet import ResNet
from fastseg.nn import AtrousConv2d
from fastseg.nn.folded import FoldedBottleneck, FoldedConv2d

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.beside]

BLOCKS = (1, 1, 1, 2)


def varied(model):
    """As if trained a little, in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.3, 0.6)
                nn.init.normal_(module.bias, 0, 0.1)
    for name, module in model.named_modules():
        if name.startswith("score"):  # FCNs begin with zeros
            nn.init.normal_(module.weight, 0, 0.1)
    return model.eval()


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def folded_in_silence(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fastseg.fold(model)


NETWORKS = {
    "DeepLabv3": lambda: DeepLabV3(BLOCKS, num_classes=5),
    "DeepLabv3 in mmseg's form": lambda: DeepLabV3(BLOCKS, num_classes=5, head="mmseg"),
    "DeepLabv3 without mean": lambda: DeepLabV3(BLOCKS, num_classes=5, image_pooling=False, head="paper"),
    "DeepLabv3 in cascade": lambda: DeepLabV3(BLOCKS, num_classes=5, form="cascade", output_stride=16),
    "FCN": lambda: models.Segmenter(ResNet(BLOCKS), FCNHead(2048, 5), FCNHead(1024, 5)),
    "PSPNet": lambda: PSPNet(BLOCKS, num_classes=5),
    "FCN-8s on GoogLeNet": lambda: models.fcn8s_googlenet(num_classes=5, source="torchvision"),
}


def logits_of(model, images):
    outputs = model(images, upsample=False) if isinstance(model, models.Segmenter) else model(images)
    return outputs if isinstance(outputs, dict) else {"out": outputs}


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_networks(network):
    torch.manual_seed(0)
    model = varied(NETWORKS[network]()).double()
    before, wanting = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    images = torch.randn(2, 3, 33, 49, dtype=torch.float64)
    folded = folded_in_silence(model)
    assert norms(model) and not norms(folded)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    for got, want in zip(logits_of(folded, images).values(), logits_of(model, images).values(), strict=True):
        assert want.std() > 0
        assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    assert torch.equal(folded.predict(images), model.predict(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert wanting == [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize("network", ("DeepLabv3", "PSPNet"))
@torch.no_grad()
def test_float32_is_rounded_once(network):
    """Against float64 hardly further off than the network itself is: every weight is rounded once more."""
    torch.manual_seed(0)
    model = varied(NETWORKS[network]())
    images = torch.randn(1, 3, 65, 65)
    truth, usual = model.double().logits(images.double()), model.float().logits(images)
    got = folded_in_silence(model).logits(images)
    rounding = torch.finfo(torch.float32).eps * truth.norm()
    assert (got - truth).norm() <= 1.5 * (usual - truth).norm() + rounding


@pytest.mark.parametrize("name", ("deeplabv3_resnet50", "fcn_resnet50"))
@torch.no_grad()
def test_torchvisions(name):
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    torch.manual_seed(0)
    model = varied(getattr(segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)).double()
    images = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    folded = folded_in_silence(model)
    assert not norms(folded)
    assert sum(isinstance(module, FoldedBottleneck) for module in folded.modules()) == 16
    for got, want in zip(folded(images).values(), model(images).values(), strict=True):
        assert (got - want).abs().max() <= 1e-12 * want.abs().max()


@torch.no_grad()
def test_torchvisions_classifier():
    resnet = pytest.importorskip("torchvision.models.resnet")
    model = varied(resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])).double()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    folded = folded_in_silence(model)
    assert not norms(folded)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", ("conv1", "bn1", "relu"))
@torch.no_grad()
def test_what_torchvisions_backbone_returns_stays(layer):
    resnet = pytest.importorskip("torchvision.models.resnet")
    from torchvision.models._utils import IntermediateLayerGetter

    body = varied(resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])).double()
    model = IntermediateLayerGetter(body, {layer: "low", "layer1": "out"}).eval()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        folded = fastseg.fold(model)
    assert ["the network returns what is between them" in str(w.message) for w in warned] == [True] * (layer != "relu")
    for got, want in zip(folded(x).values(), model(x).values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


PAIRS = {
    "with ReLU": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "without": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sigmoid()),
    "atrous, groups": lambda: nn.Sequential(AtrousConv2d(3, 6, 3, 2, 2, 2, 3), nn.BatchNorm2d(6)),
    "not affine": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "frozen": lambda: fastseg.freeze_bn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
    "of all processes": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)),
    "two": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU()
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_pairs(pair):
    model = varied(PAIRS[pair]()).double()
    folded = folded_in_silence(model)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert not norms(folded) and len(folded) == len(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@torch.no_grad()
def test_half_precision_keeps_the_scale(dtype):
    torch.manual_seed(0)
    model = varied(nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())).to(dtype)
    folded, x = folded_in_silence(model), torch.randn(2, 16, 9, 9).to(dtype)
    assert torch.equal(folded[0].weight, model[0].weight)
    assert folded[0].scale.dtype == dtype
    truth = copy.deepcopy(model).double()(x.double())
    got, usual = folded(x).double(), model(x).double()
    assert (got - truth).norm() <= 1.5 * (usual - truth).norm()
    network = varied(DeepLabV3((1, 1, 1, 1), num_classes=5)).to(dtype)
    images = torch.randn(1, 3, 33, 33).to(dtype)
    logits, usual = folded_in_silence(network).logits(images).float(), network.logits(images).float()
    assert (logits - usual).norm() <= 0.1 * usual.norm()


@torch.no_grad()
def test_a_folded_network_changes_its_stride():
    model = varied(NETWORKS["DeepLabv3"]())
    folded, images = fastseg.fold(model).set_output_stride(16), torch.randn(1, 3, 33, 49)
    torch.testing.assert_close(folded.logits(images), model.set_output_stride(16).logits(images), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_folded_network_is_recorded_saved_and_compiled(tmp_path):
    model = varied(DeepLabV3((1, 1, 1, 1), num_classes=3, aux_loss=False))
    folded, x = fastseg.fold(model), torch.randn(1, 3, 33, 33)
    torch.save(folded, tmp_path / "folded.pt")
    others = {
        "saved": torch.load(tmp_path / "folded.pt", weights_only=False),
        "traced": torch.jit.trace(folded, x, strict=False),
        "symbolic": torch.fx.symbolic_trace(folded),
        "exported": torch.export.export(folded, (x,)).module(),
        "compiled": torch.compile(folded, backend="aot_eager", fullgraph=True),
    }
    assert "fastseg::" not in str(others["traced"].inlined_graph)
    for name, other in others.items():
        torch.testing.assert_close(other(x)["out"], model(x)["out"], rtol=1e-3, atol=1e-4, msg=name)


def test_gradients_of_the_input():
    model = varied(NETWORKS["FCN"]()).double()
    x = torch.randn(1, 3, 17, 17, dtype=torch.float64, requires_grad=True)
    of_folded, of_model = (torch.autograd.grad(f(x)["out"].sum(), x)[0] for f in (fastseg.fold(model), model))
    torch.testing.assert_close(of_folded, of_model)


def hooked(k):
    def build():
        model = PAIRS["with ReLU"]()
        model[k].register_forward_hook(lambda *_: None)
        return model

    return build


def shared():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))


def taught():
    """A container whose forward was replaced by one that also adds what lies between its layers."""
    model = PAIRS["with ReLU"]()
    model.forward = types.MethodType(lambda self, x: self[1](self[0](x)).relu() + self[0](x), model)
    return model


class Watchful(nn.Conv2d):
    pass


# what is built, and why it stays as it is
LEFT = {
    "hook on the convolution": (hooked(0), "0: hooks.* see the call of Conv2d"),
    "hook on the BatchNorm": (hooked(1), "0: hooks.* see the call of BatchNorm2d"),
    "hook on the ReLU": (hooked(2), "0: hooks.* see the call of ReLU"),
    "forward of the container": (taught, "model: its forward is not that of its class"),
    "shared": (shared, "Conv2d is used in several places"),
    "subclass": (lambda: nn.Sequential(Watchful(3, 4, 1), nn.BatchNorm2d(4)), "0: Watchful is not Conv2d"),
    "parametrised": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
        "ParametrizedConv2d is not Conv2d",
    ),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "no fixed statistics",
    ),
    "padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
        "padding_mode is 'reflect'",
    ),
}


@pytest.mark.parametrize("case", LEFT)
@torch.no_grad()
def test_reasons(case):
    build, reason = LEFT[case]
    model = build().eval()
    with pytest.warns(UserWarning, match=f"left as they are.*{reason}"):
        folded = fastseg.fold(model)
    assert norms(folded) == norms(model)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(folded(x), model(x))


@torch.no_grad()
def test_a_hook_within_a_block_keeps_the_block():
    model, seen = varied(NETWORKS["FCN"]()), []
    model.backbone.layer4[0].conv2.register_forward_hook(lambda *call: seen.append(call))
    model.backbone.layer4[1].register_forward_hook(lambda *call: seen.append(call))  # stays without harm
    with pytest.warns(UserWarning, match=r"fold: 1 left .*backbone\.layer4\.0: hooks"):
        folded = fastseg.fold(model)
    assert not isinstance(folded.backbone.layer4[0], FoldedBottleneck)
    assert isinstance(folded.backbone.layer4[1], FoldedBottleneck)
    x = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(folded.logits(x), model.logits(x), rtol=1e-3, atol=1e-5)
    assert len(seen) == 4


def test_wrong_arguments():
    with pytest.raises(RuntimeError, match=r"training mode; call model\.eval\(\) first"):
        fastseg.fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(TypeError, match="model must be a module, got dict"):
        fastseg.fold({})


@torch.no_grad()
def test_what_a_folded_convolution_adds():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    weight, bias = conv.weight.clone(), conv.bias.clone()
    folded = FoldedConv2d.of(conv, weight, torch.tensor([1.0, 2, 3, 4]), bias, relu=True)
    x, residual = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    wanted = (
        F.conv2d(x, weight, padding=1) * torch.tensor([1.0, 2, 3, 4])[:, None, None] + bias[:, None, None] + residual
    )
    torch.testing.assert_close(folded(x, residual), wanted.relu())
    traced = torch.jit.trace(folded, (x, residual))
    torch.testing.assert_close(traced(x, residual), wanted.relu())
    assert "scaled=True, relu=True" in repr(folded)
