"""DeepLabv3: strides and dilations on built networks, grids, forms, heads, and torchvision's results."""

import copy

import pytest
import torch
from torch import nn

from fastseg import models
from fastseg.models.checkpoints import factory_arguments, load_weights
from fastseg.models.deeplabv3 import DeepLabHead, DeepLabV3
from fastseg.models.resnet import ResNet
from fastseg.nn import ASPP, AtrousConv2d

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = (1, 1, 2, 3)
SIZE = (65, 81)


def vary_batch_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def small(**keywords):
    torch.manual_seed(0)
    return vary_batch_norms(DeepLabV3(BLOCKS, num_classes=5, **keywords)).eval()


def geometry(model):
    """{block: (stride, dilation) of its 3x3 convolution}"""
    found = {}
    for name, module in model.backbone.named_modules():
        if name.endswith("conv2"):
            assert module.padding == module.dilation  # which keeps the size
            stride, dilation = module.stride[0], module.dilation[0]
            if f"{name[:-6]}.downsample.0" in dict(model.backbone.named_modules()):
                assert model.backbone.get_submodule(f"{name[:-6]}.downsample.0").stride == (stride, stride)
            found[name.removeprefix("layer").removesuffix(".conv2")] = (stride, dilation)
    return found


def last_stages(model, first=3):
    return [how for name, how in geometry(model).items() if int(name[0]) >= first]


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's network at output stride 8 and 16, of the same weights."""
    deeplabv3 = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    resnet = pytest.importorskip("torchvision.models.resnet")
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCNHead

    found = {}
    torch.manual_seed(0)
    for output_stride, dilated in ((8, [False, True, True]), (16, [False, False, True])):
        body = resnet.resnet50(weights=None, replace_stride_with_dilation=dilated)
        layers = IntermediateLayerGetter(body, {"layer4": "out", "layer3": "aux"})
        head = deeplabv3.DeepLabHead(2048, 21, [96 * k // output_stride for k in (1, 2, 3)])
        model = deeplabv3.DeepLabV3(layers, head, FCNHead(1024, 21)).eval()
        if found:
            model.load_state_dict(found[8].state_dict())
        found[output_stride] = vary_batch_norms(model) if not found else model
    return found


@torch.no_grad()
def test_both_strides_are_torchvisions(torchvisions):
    ours = models.deeplabv3_resnet50().eval()
    ours.load_state_dict(torchvisions[8].state_dict(), strict=True)
    built = models.deeplabv3_resnet50(output_stride=16).eval()
    built.load_state_dict(torchvisions[16].state_dict(), strict=True)
    images = torch.randn(1, 3, *SIZE)
    for output_stride in (8, 16, 8):  # and back
        ours.set_output_stride(output_stride)
        got, want = ours(images), torchvisions[output_stride](images)
        for name in ("out", "aux"):
            scale = want[name].abs().max()
            assert (got[name] - want[name]).abs().max() <= 1e-5 * scale
        if output_stride == 16:
            other = built(images)["out"]
            assert (other - want["out"]).abs().max() <= 1e-5 * want["out"].abs().max()


@torch.no_grad()
def test_every_stride():
    model = small()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    images = torch.randn(1, 3, *SIZE)
    for output_stride, rates in ((8, (12, 24, 36)), (32, (3, 6, 9)), (16, (6, 12, 18)), (8, (12, 24, 36))):
        assert model.set_output_stride(output_stride) is model
        assert model.output_stride == output_stride and model.classifier[0].rates == rates
        sides = tuple(-(-side // output_stride) for side in SIZE)
        assert model.logits(images).shape == (1, 5, *sides)
        assert model.predict(images).shape == (1, *SIZE)
        assert model.backbone(images)["aux"].shape[2:] == tuple(-(-side // min(output_stride, 16)) for side in SIZE)
        alike = small(output_stride=output_stride)
        assert geometry(alike) == geometry(model) and alike.classifier[0].rates == rates
        torch.testing.assert_close(model.logits(images), alike.logits(images))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1]), name


def test_dilations_as_declared():
    with torch.device("meta"):
        model = DeepLabV3(BLOCKS)
        assert last_stages(model, 1) == [(1, 1), (2, 1), (1, 1), (1, 2), (1, 2), (1, 4), (1, 4)]
        assert last_stages(DeepLabV3(BLOCKS, contracted=False)) == [(1, 2), (1, 2), (1, 4), (1, 4), (1, 4)]
        model.set_output_stride(16)
        assert last_stages(model) == [(2, 1), (1, 1), (1, 1), (1, 2), (1, 2)]
        model.set_output_stride(32)
        assert last_stages(model) == [(2, 1), (1, 1), (2, 1), (1, 1), (1, 1)]


def test_multi_grid():
    """(1, 2, 4) at output stride 16 is 2, 4, 8 in the fourth stage: arXiv 1706.05587, section 3.2.1."""
    with torch.device("meta"):
        model = DeepLabV3(BLOCKS, output_stride=16, multi_grid=(1, 2, 4))
        assert last_stages(model, 4) == [(1, 2), (1, 4), (1, 8)]
        model.set_output_stride(8)
        assert last_stages(model) == [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16)]
        model.set_output_stride(32)
        assert last_stages(model, 4) == [(2, 1), (1, 2), (1, 4)]
        absolute = DeepLabV3(BLOCKS, multi_grid=(1, 2, 4), absolute_grid=True)
        for output_stride in (8, 16):
            absolute.set_output_stride(output_stride)
            assert last_stages(absolute, 4) == [(1, 1), (1, 2), (1, 4)]


def test_cascade():
    """At output stride 16 blocks 4 to 7 have dilations 2, 4, 8 and 16: section 3.2."""
    with torch.device("meta"):
        model = DeepLabV3(BLOCKS, form="cascade", output_stride=16, contracted=False)
        assert last_stages(model, 4) == [(1, rate) for rate in (2, 4, 8, 16) for _ in range(3)]
        contracted = DeepLabV3(BLOCKS, form="cascade", output_stride=16)
        assert last_stages(contracted, 4) == [(1, 1), (1, 2), (1, 2)] + last_stages(model, 5)
        model.set_output_stride(8)
        assert last_stages(model, 4) == [(1, rate) for rate in (4, 8, 16, 32) for _ in range(3)]
        model.set_output_stride(32)
        assert last_stages(model, 4) == [(2, 1)] + [(1, rate) for rate in (1, 2, 4, 8) for _ in range(3)][1:]
        grid = DeepLabV3(BLOCKS, form="cascade", output_stride=16, multi_grid=(1, 2, 1))
        assert last_stages(grid, 4) == [(1, rate * factor) for rate in (2, 4, 8, 16) for factor in (1, 2, 1)]
        fourth, fifth = (model.backbone.get_submodule(f"layer{k}") for k in (4, 5))
        assert [block.conv2.weight.shape for block in fourth] == [block.conv2.weight.shape for block in fifth]
        assert not any(isinstance(module, ASPP) for module in model.modules())


@torch.no_grad()
def test_cascade_runs_every_stage():
    model = small(form="cascade")
    images, seen = torch.randn(1, 3, *SIZE), []
    for k in range(1, 8):
        model.backbone.get_submodule(f"layer{k}").register_forward_hook(lambda *_, k=k: seen.append(k))
    logits = model.logits(images)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert logits.shape == (1, 5, 9, 11)
    assert model(images)["aux"].shape == (1, 5, *SIZE)
    assert factory_arguments(model.state_dict()) == {"num_classes": 5, "aux_loss": True, "form": "cascade"}


@pytest.mark.parametrize("head", ("paper", "torchvision", "mmseg"))
@torch.no_grad()
def test_heads(head):
    model = small(head=head)
    images = torch.randn(1, 3, 33, 33)
    assert model.logits(images).shape == (1, 5, 5, 5)
    arguments = factory_arguments(model.state_dict())
    assert arguments == {"num_classes": 5, "aux_loss": True} | ({} if head == "torchvision" else {"head": head})
    other = load_weights(DeepLabV3(BLOCKS, **arguments), model.state_dict()).eval()
    torch.testing.assert_close(other.logits(images), model.logits(images))
    kinds = [type(layer).__name__ for layer in model.classifier]
    between = {"paper": [], "torchvision": ["Conv2d", "BatchNorm2d", "ReLU"], "mmseg": ["Dropout2d"]}[head]
    assert kinds == ["ASPP", *between, "Conv2d"]


def test_sizes_of_the_heads():
    """Parameters of mmseg's and torchvision's DeepLabv3 on a ResNet-50, both with an auxiliary head."""
    with torch.device("meta"):
        counts = {
            head: sum(p.numel() for p in models.deeplabv3_resnet50(head=head).parameters())
            for head in ("torchvision", "mmseg")
        }
    assert counts["torchvision"] == 42_004_074
    assert counts["mmseg"] == pytest.approx(68.1e6, rel=2e-3)


def test_dilated_stages_are_atrous():
    with torch.device("meta"):
        backbone = ResNet(BLOCKS)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            assert isinstance(module, AtrousConv2d) == name.startswith(("layer3", "layer4")), name


@pytest.mark.parametrize("keywords", [{}, {"form": "cascade"}, {"head": "mmseg", "multi_grid": (1, 2, 4)}], ids=str)
def test_training(keywords):
    """Every parameter gets a gradient, at the stride switched to."""
    torch.manual_seed(0)
    model = DeepLabV3(BLOCKS, num_classes=3, output_stride=8, **keywords).set_output_stride(16).train()
    outputs = model(torch.randn(2, 3, 33, 41), upsample=False)
    assert outputs["out"].shape == (2, 3, 3, 3)
    sum(y.square().mean() for y in outputs.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@torch.no_grad()
def test_a_copy_switches_alone():
    model = small()
    other = copy.deepcopy(model).set_output_stride(16)
    assert model.classifier[0].rates == (12, 24, 36) and geometry(model) != geometry(other)


@torch.no_grad()
def test_a_compiled_network_follows_the_stride():
    model = small()
    compiled = torch.compile(model.logits, backend="eager")
    images = torch.randn(1, 3, 33, 33)
    for output_stride in (8, 16):
        model.set_output_stride(output_stride)
        torch.testing.assert_close(compiled(images), model.logits(images), rtol=1e-4, atol=1e-4)


def test_wrong_arguments():
    with torch.device("meta"):
        model = DeepLabV3(BLOCKS, rates=(4, 6, 9))
        with pytest.raises(ValueError, match=r"rates that stay whole, got \(4, 6, 9\)"):
            model.set_output_stride(16)
        assert model.output_stride == 8 and last_stages(model)[0] == (1, 1)  # nothing was changed
        with pytest.raises(ValueError, match="output_stride must be one of 8, 16, 32, got 4"):
            model.set_output_stride(4)
        with pytest.raises(ValueError, match="output_stride must be one of 8, 16, 32, got 64"):
            DeepLabV3(BLOCKS, output_stride=64)
        with pytest.raises(ValueError, match="form must be one of parallel, cascade, got 'both'"):
            DeepLabV3(BLOCKS, form="both")
        with pytest.raises(ValueError, match="head must be one of torchvision, paper, mmseg, got 'tf'"):
            DeepLabHead(8, 2, head="tf")
        with pytest.raises(ValueError, match=r"multi_grid must be 3 ints .* got \(1, 2\)"):
            DeepLabV3(BLOCKS, multi_grid=(1, 2))
