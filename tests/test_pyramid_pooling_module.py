"""The modules of the pyramid against PyTorch's own: values, gradients, statistics, state dicts, other sizes."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg.nn import PyramidConv2d, PyramidPooling, PyramidPriors

pytestmark = pytest.mark.usefixtures("one_thread")

each_device = pytest.mark.parametrize("device", ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))


class Naive(nn.Module):
    """The same, as PyTorch has it."""

    def __init__(self, in_channels, out_channels, bins, reduction, kernel_size, align_corners, mode):
        super().__init__()
        pool = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}[mode]
        self.features = nn.ModuleList(
            nn.Sequential(
                pool(bin), nn.Conv2d(in_channels, reduction, 1, bias=False), nn.BatchNorm2d(reduction), nn.ReLU()
            )
            for bin in bins
        )
        channels = in_channels + reduction * len(bins)
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.align_corners = align_corners

    def forward(self, x):
        how = {"size": x.shape[2:], "mode": "bilinear", "align_corners": self.align_corners}
        priors = [F.interpolate(branch(x), **how) for branch in self.features]
        return F.relu(self.bn(self.conv(torch.cat([x, *priors], 1))))


# name: arguments of both, after in_channels = 8
FORMS = {
    "PSPNet": (6, (1, 2, 3, 6), 2, 3, False, "avg"),
    "PSPNet's authors": (6, (1, 2, 3, 6), 2, 3, True, "avg"),
    "max": (5, (1, 2, 3, 6), 3, 3, False, "max"),
    "others": (4, ((2, 3), 5), 7, 1, False, "avg"),
}


def pair(form, training, dtype=torch.float64, device="cpu"):
    """(ours, PyTorch's) of one state, with statistics that are not those of a new module."""
    ours, theirs = (module(8, *FORMS[form]) for module in (PyramidPooling, Naive))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                nn.init.normal_(values)
            for values in (module.running_var, module.weight.data):
                nn.init.uniform_(values, 0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    return [module.to(device, dtype).train(training) for module in (ours, theirs)]


def results(module, x):
    """Output, gradients of input and parameters, and the buffers after."""
    x = x.detach().requires_grad_()
    output = module(x)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad(output, [x, *module.parameters()], upstream), *module.buffers()]


@each_device
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("form", FORMS)
def test_values_gradients_and_statistics(form, training, device):
    """In float64 each; in float32 all together about as exact as PyTorch's own, as some are sums that cancel."""
    for dtype in (torch.float64, torch.float32):
        ours, theirs = pair(form, training, dtype, device)
        before, wide = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs).double()
        x = torch.randn(6, 8, 12, 13, device=device)  # variances of two numbers are ill-conditioned
        truth, own = results(wide, x.double()), results(theirs, x.to(dtype))
        for layout in (torch.contiguous_format, torch.channels_last):
            ours.load_state_dict(before)
            got = results(ours, x.to(dtype).contiguous(memory_format=layout))
            assert got[0].is_contiguous(memory_format=layout)
            if dtype == torch.float64:
                for y, exact in zip(got, truth, strict=True):
                    torch.testing.assert_close(y, exact, rtol=1e-11, atol=1e-11)
            else:
                error, allowed = ((together(y) - together(truth)).norm() for y in (got, own))
                assert error <= 1.5 * allowed + 1e-6 * together(truth).norm()


def together(tensors):
    return torch.cat([x.double().flatten() for x in tensors if x.is_floating_point()])


def test_state_dict():
    """The authors' names, for the modules that a network holds."""
    priors = PyramidPriors(8)
    assert {name.rsplit(".", 1)[0] for name in priors.state_dict()} == {
        f"features.{i}.{k}" for i in range(4) for k in (1, 2)
    }
    assert [prior.shape for prior in priors.eval()(torch.randn(1, 8, 9, 9))] == [(1, 2, b, b) for b in (1, 2, 3, 6)]
    assert priors.prior_channels == 8
    conv, plain = PyramidConv2d(16, 4, 3, padding=1, align_corners=True), nn.Conv2d(16, 4, 3, padding=1)
    plain.load_state_dict(conv.state_dict())
    assert isinstance(conv, nn.Conv2d)
    assert repr(conv) == "PyramidConv2d(16, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), align_corners=True)"
    assert "bins=(1, 2, 3, 6), mode='avg'" in repr(priors)


def test_initial_weights():
    """Those of nn.Conv2d over all channels."""
    weights = []
    for module in (PyramidConv2d, nn.Conv2d):
        torch.manual_seed(1)
        weights.append(module(16, 4, 3, padding=1).weight)
    assert torch.equal(*weights)


def test_one_image_in_training():
    module, x = PyramidPooling(8, 4), torch.randn(1, 8, 9, 9)
    with pytest.raises(ValueError, match=r"PyramidPooling: the BatchNorm of bin 1 .*features\[0\]\.eval\(\).*Sync"):
        module(x)
    with pytest.raises(ValueError, match="PyramidPriors: the BatchNorm of bin"):
        PyramidPriors(8, ((1, 1), 2))(x)
    assert PyramidPriors(8, (2, 3))(x)[0].shape == (1, 4, 2, 2)
    assert module.eval()(x).shape == (1, 4, 9, 9)
    assert module.train()(x.expand(2, -1, -1, -1)).shape == (2, 4, 9, 9)
    module.features[0].eval()
    assert module(x).shape == (1, 4, 9, 9)
    with pytest.raises(ValueError, match="pyramid_pool: input must be"):  # an error of another cause is left alone
        module(x[0])


@pytest.mark.parametrize(
    "module, arguments, says",
    [
        (PyramidConv2d, {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "stride": 2}, r"got stride=\(2, 2\)"),
        (PyramidConv2d, {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 2}, "groups=2"),
        (PyramidPooling, {"in_channels": 8, "kernel_size": 2}, "kernel_size must be odd, to keep H and W, got 2"),
    ],
)
def test_wrong_arguments(module, arguments, says):
    with pytest.raises(ValueError, match=f"{module.__name__}: .*{says}"):
        module(**arguments)


SIZES = ((1, 8, 12, 14), (3, 8, 60, 33), (2, 8, 4, 3))  # others than the one that is traced, below


def dynamic():
    side, other = (torch.export.Dim(name, min=2, max=4096) for name in ("height", "width"))
    return ({0: torch.export.Dim("batch", min=1, max=64), 2: side, 3: other},)


@pytest.mark.parametrize("form", ("PSPNet's authors", "max"))
def test_export_at_other_sizes(form):
    ours, _ = pair(form, training=False)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    exported = torch.export.export(ours, (x,), dynamic_shapes=dynamic())
    assert not any("fastseg" in str(node.target) for node in exported.graph.nodes)
    for size in SIZES:
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(exported.module()(x), ours(x), rtol=1e-12, atol=1e-12)


def test_trained_export():
    """What is exported in training has gradients."""
    ours, _ = pair("PSPNet", training=True)
    exported = torch.export.export(ours, (torch.randn(2, 8, 9, 7).double(),), dynamic_shapes=dynamic()).module()
    x = torch.randn(3, 8, 12, 14).double()
    wanted = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
    got = torch.autograd.grad(exported(x).square().sum(), list(exported.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
@pytest.mark.parametrize("form", ("PSPNet's authors", "max"))
def test_onnx_at_other_sizes(form, tmp_path):
    import onnxruntime

    ours, _ = pair(form, training=False, dtype=torch.float32)
    program = torch.onnx.export(ours, (torch.randn(2, 8, 9, 7),), dynamic_shapes=dynamic(), dynamo=True)
    program.save(tmp_path / "pooling.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pooling.onnx")
    for size in SIZES:
        x = torch.randn(size)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, ours(x).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_compile_trace_and_copy():
    ours, _ = pair("PSPNet", training=True, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    for size in ((2, 8, 9, 7), (3, 8, 12, 14)):  # a second shape makes the sizes symbolic
        x = torch.randn(size)
        for got, wanted in zip(results(compiled, x), results(ours, x), strict=True):
            torch.testing.assert_close(got, wanted)
    traced = torch.fx.symbolic_trace(ours.eval())
    assert torch.equal(traced(x), ours(x))
