"""Modules against PyTorch's: values, gradients, state dicts and what is refused."""

import copy
import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from fastseg.nn import AuxiliaryLoss, Deconv2d, UpsampleBilinear, UpsampleCrossEntropyLoss

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
each_device = pytest.mark.parametrize("device", ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))


def assert_as_good(got, theirs, truth):
    """Largest error against float64 at most 1.5 times that of PyTorch's own module, and a last bit."""
    assert got.shape == theirs.shape
    ours, allowed = ((y.double() - truth).abs().max() for y in (got, theirs))
    assert ours <= 1.5 * allowed + 2 * torch.finfo(got.dtype).eps * truth.abs().max()


# name: (ours, PyTorch's, input shape)
UPSAMPLES = {
    "size": ({"size": (13, 20)}, {"size": (13, 20)}, (2, 3, 5, 7)),
    "int": ({"size": 9}, {"size": 9}, (2, 3, 5, 7)),
    "scale": ({"scale_factor": 8}, {"scale_factor": 8}, (1, 3, 4, 5)),
    "scales": ({"scale_factor": [2, 1.5]}, {"scale_factor": (2, 1.5)}, (1, 3, 5, 6)),
    "whole but for rounding": ({"scale_factor": 1.1}, {"scale_factor": 1.1}, (1, 2, 10, 30)),
    "down": ({"scale_factor": 0.5}, {"scale_factor": 0.5}, (1, 3, 8, 6)),
    "floor": ({"scale_factor": 2.3, "align_corners": True}, {"scale_factor": 2.3, "align_corners": True}, (1, 3, 5, 4)),
    "recompute": (
        {"scale_factor": 2.3, "recompute_scale_factor": True},
        {"scale_factor": 2.3, "recompute_scale_factor": True},
        (1, 3, 5, 4),
    ),
    "align_corners": ({"size": (9, 9), "align_corners": True}, {"size": (9, 9), "align_corners": True}, (1, 3, 5, 5)),
}


@each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", UPSAMPLES)
def test_upsample_bilinear(case, dtype, device):
    ours, theirs, shape = UPSAMPLES[case]
    ours, theirs = UpsampleBilinear(**ours), nn.Upsample(mode="bilinear", **theirs)
    x = torch.randn(shape, device=device).to(dtype)
    truth = theirs(x.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout).requires_grad_()
        got = ours(given)
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=layout)
        assert_as_good(got, theirs(x), truth)

    grad = torch.randn_like(truth)
    wide = x.double().requires_grad_()
    assert_as_good(
        torch.autograd.grad(got, given, grad.to(dtype))[0],
        torch.autograd.grad(theirs(given), given, grad.to(dtype))[0],
        torch.autograd.grad(theirs(wide), wide, grad.to(dtype).double())[0],
    )


def test_upsampling_bilinear_2d():
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(UpsampleBilinear(9, align_corners=True)(x), nn.UpsamplingBilinear2d(9)(x))


def test_a_scale_that_no_size_describes_is_refused():
    with pytest.raises(ValueError, match=r"5 \* scale_factor 1\.5 is not whole: give a size, or recompute"):
        UpsampleBilinear(scale_factor=1.5)(torch.randn(1, 1, 5, 4))


@pytest.mark.parametrize("wrong", [{}, {"size": 3, "scale_factor": 2}])
def test_size_or_scale_factor(wrong):
    with pytest.raises(ValueError, match="wanted either size or scale_factor, got size="):
        UpsampleBilinear(**wrong)


@pytest.mark.parametrize("scale_factor", [0, -2, float("nan"), float("inf"), (2, 2, 2), (2,), "2"])
def test_scale_factor_must_be_numbers(scale_factor):
    with pytest.raises(ValueError, match="must be a number over 0 or two"):
        UpsampleBilinear(scale_factor=scale_factor)


@pytest.mark.parametrize("module", [UpsampleBilinear(4), UpsampleBilinear(scale_factor=2)])
@pytest.mark.parametrize("wrong", [torch.randn(3, 4, 4), torch.randn(1, 0, 4, 4), torch.ones(1, 1, 4, 4).long()])
def test_wrong_input_is_named_by_the_op(module, wrong):
    with pytest.raises((TypeError, ValueError), match="upsample_bilinear: input must be"):
        module(wrong)


def test_upsample_module():
    """What is read and copied is nn.Upsample's."""
    module = UpsampleBilinear(scale_factor=2)
    assert isinstance(module, nn.Upsample)
    assert repr(module) == "UpsampleBilinear(scale_factor=2.0, mode='bilinear')"
    assert not module.state_dict()
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    theirs = nn.Upsample(scale_factor=2, mode="bilinear")
    theirs.__class__ = UpsampleBilinear
    assert torch.equal(theirs(x), module(x))


WEIGHT = torch.tensor([0.5, 1.4, 0.9, 1.1, 0.7])
# name: arguments of both losses
LOSSES = {
    "plain": {},
    "ignored": {"ignore_index": 2},
    "weighted": {"weight": WEIGHT},
    "smoothed": {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 0},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "ignore_index": 3},
    "align_corners": {"align_corners": True},
}


def full_size_loss(logits, target, align_corners=False, **arguments):
    """The same from PyTorch's modules, in the logits' dtype."""
    if arguments.get("weight") is not None:
        arguments["weight"] = arguments["weight"].to(logits)
    full = nn.Upsample(target.shape[1:], mode="bilinear", align_corners=align_corners)(logits)
    return nn.CrossEntropyLoss(**arguments)(full, target)


@each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LOSSES)
def test_upsample_cross_entropy_loss(case, dtype, device):
    logits = (2 * torch.randn(2, 5, 4, 3, device=device)).to(dtype)
    target = torch.randint(5, (2, 17, 11), device=device)
    given, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    single = logits.float().requires_grad_()
    criterion = UpsampleCrossEntropyLoss(**LOSSES[case]).to(device)

    got = criterion(given, target)
    theirs, truth = (full_size_loss(x, target, **LOSSES[case]) for x in (single, wide))
    assert got.dtype == torch.float32
    assert_as_good(got, theirs, truth)
    assert_as_good(criterion(logits.contiguous(memory_format=torch.channels_last), target), theirs, truth)

    grads = [torch.autograd.grad(y.sum(), x)[0] for y, x in ((got, given), (theirs, single), (truth, wide))]
    assert grads[0].dtype == dtype
    assert_as_good(grads[0], grads[1].to(dtype), grads[2])


def test_loss_module():
    """State dict, buffer and copies are nn.CrossEntropyLoss's."""
    ours, theirs = UpsampleCrossEntropyLoss(WEIGHT, ignore_index=255), nn.CrossEntropyLoss(WEIGHT, ignore_index=255)
    assert isinstance(ours, nn.CrossEntropyLoss)
    assert ours.state_dict().keys() == theirs.state_dict().keys() == {"weight"}
    other = UpsampleCrossEntropyLoss(torch.zeros(5))
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other.weight, WEIGHT)
    assert not list(ours.parameters())
    assert not UpsampleCrossEntropyLoss().state_dict()
    assert repr(ours) == (
        "UpsampleCrossEntropyLoss(ignore_index=255, reduction='mean', label_smoothing=0.0, align_corners=False)"
    )

    logits, target = torch.randn(1, 5, 3, 3), torch.randint(5, (1, 9, 9))
    assert torch.equal(copy.deepcopy(ours)(logits, target), ours(logits, target))
    assert ours.half()(logits.half(), target).isfinite()
    with pytest.raises(TypeError):
        UpsampleCrossEntropyLoss(WEIGHT, None, 255)  # nn.CrossEntropyLoss's deprecated places


@pytest.mark.parametrize("wrong", [{"reduction": "max"}, {"label_smoothing": 2.0}, {"weight": torch.ones(3)}])
def test_wrong_loss_arguments_are_named_by_the_op(wrong):
    with pytest.raises(ValueError, match=f"upsample_cross_entropy: {next(iter(wrong))} must be"):
        UpsampleCrossEntropyLoss(**wrong)(torch.randn(1, 5, 3, 3), torch.zeros(1, 9, 9).long())


def test_example_of_hard_example_mining():
    """As the docstring of the loss has it."""
    test = doctest.DocTestFinder().find(UpsampleCrossEntropyLoss)[0]
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    logits, loss, kept = (test.globs[name] for name in ("logits", "loss", "kept"))
    assert logits.grad.any()
    assert kept == (loss > -math.log(0.7)).sum() >= 1000  # at random, nearly all


def test_auxiliary_loss():
    criterion = UpsampleCrossEntropyLoss(WEIGHT, ignore_index=255)
    target = torch.randint(5, (1, 9, 9))
    outputs = {"out": torch.randn(1, 5, 3, 3), "aux": torch.randn(1, 5, 2, 2)}
    out, aux = (criterion(outputs[name], target) for name in ("out", "aux"))
    assert torch.equal(AuxiliaryLoss(criterion)(outputs, target), out + 0.4 * aux)
    assert torch.equal(AuxiliaryLoss(criterion, 0.5)(outputs, target), out + 0.5 * aux)
    assert torch.equal(AuxiliaryLoss(criterion)({"out": outputs["out"]}, target), out)
    assert AuxiliaryLoss(criterion).state_dict().keys() == {"criterion.weight"}
    assert "aux_weight=0.4" in repr(AuxiliaryLoss(criterion))


def test_compiled_training_step():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), UpsampleBilinear(scale_factor=2))
    criterion = UpsampleCrossEntropyLoss(ignore_index=4)
    images, target = torch.randn(2, 3, 4, 5), torch.randint(5, (2, 16, 20))

    def step(images, target):
        return criterion(model(images), target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(images, target), list(model.parameters())) for f in (step, compiled)]
    for eager, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, eager)


def test_one_name_for_all():
    assert set(fastseg.nn.__all__) <= set(dir(fastseg.nn))
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(fastseg.nn.UpsampleBilinear(6)(x), F.interpolate(x, 6, mode="bilinear"))


# name: arguments of both modules, shape of the input
DECONVS = {
    "FCN": ((5, 5, 4, 2), {"bias": False}, (2, 5, 3, 4)),
    "generator": ((4, 6, 4, 2, 1), {}, (1, 4, 5, 3)),
    "everything": ((4, 6, (3, 4), (2, 3), (1, 0), (1, 2), 2, True, (1, 2)), {}, (1, 4, 4, 3)),
    "no batch": ((4, 6, 3), {"stride": 2}, (4, 4, 3)),
}


@each_device
@pytest.mark.parametrize("case", DECONVS)
def test_deconv2d(case, device):
    """nn.ConvTranspose2d's initialisation, state dict, repr and values."""
    arguments, keywords, shape = DECONVS[case]
    modules = []
    for module in (Deconv2d, nn.ConvTranspose2d):
        torch.manual_seed(1)
        modules.append(module(*arguments, **keywords).to(device))
    ours, theirs = modules
    assert isinstance(ours, nn.ConvTranspose2d)
    assert repr(ours).removeprefix("Deconv2d") == repr(theirs).removeprefix("ConvTranspose2d")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    theirs.load_state_dict(copy.deepcopy(ours).state_dict())
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    size = [side + ours.stride[0] - 1 for side in theirs(x).shape[-2:]]
    if case != "everything":
        torch.testing.assert_close(ours(x, size), theirs(x, size), rtol=1e-4, atol=1e-5)
    theirs.__class__ = Deconv2d
    assert torch.equal(theirs(x), ours(x))


def test_deconv2d_crops_and_adds():
    module, x, skip = Deconv2d(3, 3, 4, 2, bias=False), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 7)
    torch.testing.assert_close(module(x, crop=(1, 1, 8, 7), skip=skip), module(x)[:, :, 1:9, 1:8] + skip)


def test_graphs_of_deconv2d_run_without_fastseg():
    class Cropped(nn.Sequential):
        def forward(self, x, skip):
            return self[0](x, crop=(1, 1, 8, 7), skip=skip)

    module, x, skip = Cropped(Deconv2d(3, 3, 4, 2)), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 7)
    exported = torch.export.export(module, (x, skip))
    assert "fastseg" not in str(exported.graph)
    for graph in (exported.module(), torch.fx.symbolic_trace(module)):
        torch.testing.assert_close(graph(x, skip), module(x, skip))


@pytest.mark.parametrize("size, groups", [(4, 1), (3, 1), (16, 6), ((4, 3), 1)])
def test_bilinear_deconvolution(size, groups):
    """Within the outermost centres it interpolates as F.interpolate does: half-pixel ones if even, corners if odd."""
    sides = size if isinstance(size, tuple) else (size, size)
    stride = [(k + 1) // 2 for k in sides]
    module = Deconv2d(6, 6, size, stride, groups=groups, init="bilinear", freeze=True)
    assert not module.weight.requires_grad and module.bias.requires_grad and not module.bias.any()
    x, ramp = torch.randn(1, 6, 4, 5), torch.arange(5.0).expand(1, 6, 4, 5)
    inner = (slice(None), slice(None), *(slice(k - 1, 1 - k) for k in sides))
    if sides[0] == sides[1]:
        even = sides[0] % 2 == 0
        full = [n * stride[0] if even else (n - 1) * stride[0] + 1 for n in (4, 5)]
        start = stride[0] // 2 if even else stride[0] - 1
        wanted = F.interpolate(x, full, mode="bilinear", align_corners=not even)
        got = module(x)[:, :, start : start + full[0], start : start + full[1]]
        inside = (..., slice(stride[0], -stride[0]), slice(stride[0], -stride[0]))
        torch.testing.assert_close(got[inside], wanted[inside])
    steps = module(ramp)[inner].diff(dim=3)
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / stride[1]))
    weight = module.weight.detach().clone()
    nn.init.normal_(module.weight)
    module.reset_parameters()
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"init": "cubic"}, "init must be \"bilinear\" or None, got 'cubic'"),
        ({"init": "bilinear", "out_channels": 3}, "bilinear interpolation needs .*, got 4 to 3 in 1 groups"),
        ({"init": "bilinear", "groups": 2}, "got 4 to 4 in 2 groups"),
    ],
)
def test_wrong_deconv2d(arguments, says):
    with pytest.raises(ValueError, match=f"Deconv2d: .*{says}"):
        Deconv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 4, "stride": 2} | arguments)
