"""What a model must not lose when it is patched: copies, compilers, exporters, wrappers, other dtypes and formats."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from small_deeplabv3 import SIZE, check_same, logits_and_gradients, needs_onnx, network
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

import fastseg

pytestmark = pytest.mark.usefixtures("one_thread")


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


@torch.no_grad()
def test_copies(model, images, stock):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert [row.path for row in fastseg.report(other) if row.patched] == [row.path for row in fastseg.report(model)]
        check_same(other(images), stock)
        assert not fastseg.is_patched(fastseg.unpatch(other)) and fastseg.is_patched(model)


def test_loads_in_a_process_that_never_patched(tmp_path):
    path = tmp_path / "model.pt"
    model = fastseg.patch(nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2), nn.ConvTranspose2d(2, 2, 4)), mode="inference")
    torch.save(model, path)
    code = f"""
import os, torch
for disabled in "01":
    os.environ["FASTSEG_DISABLE"] = disabled
    model = torch.load({str(path)!r}, weights_only=False)
    import fastseg
    print(fastseg.is_patched(model), model(torch.zeros(1, 2, 9, 9)).shape[-1])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True", "8", "False", "8"], done.stderr


@torch.no_grad()
def test_data_parallel_replica(model, images, stock):
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        assert type(replica) is type(module)
        for name, child in module._modules.items():
            replica._modules[name] = replicas.get(child)
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach().clone())
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    check_same(replicas[model](images), stock)


@torch.no_grad()
def test_compile(model, images, stock):
    torch._dynamo.reset()
    check_same(torch.compile(model, fullgraph=True, backend="eager")(images), stock)


def test_compile_training(model):
    torch._dynamo.reset()
    x = torch.randn(2, 24, 5, 7)
    heads = model.classifier.train(), network().classifier.train()
    run = torch.compile(heads[0], fullgraph=True, backend="aot_eager"), heads[1]
    ours, theirs = (head(x) for head in run)
    torch.testing.assert_close(ours, theirs)
    for output in (ours, theirs):
        output.square().mean().backward()
    for a, b in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_compile_for_cuda_graphs(model, images, stock):
    """Where there is no GPU it is compiled as by default."""
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):  # it warms up, captures and replays
        check_same(run(images), stock)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@torch.no_grad()
def test_export(model, images, stock, dynamic):
    side = torch.export.Dim.AUTO
    shapes = ({2: side, 3: side},) if dynamic else None
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    assert not any("fastseg" in str(node.target) for node in program.graph.nodes)
    check_same(program.module()(images), stock)
    if dynamic:
        x = torch.randn(2, 3, 64, 56)
        check_same(program.module()(x), network()(x))


@needs_onnx
@pytest.mark.parametrize("exporter", [{"dynamo": True}, {"dynamo": False}], ids=["dynamo", "TorchScript"])
@torch.no_grad()
def test_onnx(model, images, tmp_path, exporter):
    """At another size too; the same graph as without the patch."""
    import onnx
    import onnxruntime

    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    how = {"dynamic_shapes": (sides,)} if exporter["dynamo"] else {"dynamic_axes": {"x": {2: "height", 3: "width"}}}
    graphs = []
    for name, each in (("ours", model), ("stock", network())):
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(each, (images,), path, input_names=["x"], **exporter, **how)
        graphs.append([(node.domain, node.op_type) for node in onnx.load(path).graph.node])
    assert graphs[0] == graphs[1]
    session = onnxruntime.InferenceSession(tmp_path / "ours.onnx")
    for x in (images, torch.randn(2, 3, 64, 56)):
        got = session.run(None, {"x": x.numpy()})
        check_same(dict(zip(("out", "aux"), map(torch.from_numpy, got), strict=True)), network()(x))


@torch.no_grad()
def test_script(model, images, stock):
    scripted = torch.jit.script(model)
    assert "fastseg" not in str(scripted.inlined_graph)
    check_same(scripted(images), stock)
    assert fastseg.is_patched(model)


@torch.no_grad()
def test_trace(model, images, stock):
    traced = torch.jit.trace(model, images, strict=False, check_trace=False)
    assert "fastseg" not in str(traced.inlined_graph)
    check_same(traced(images), stock)


@torch.no_grad()
def test_fx(model, images, stock):
    graph = torch.fx.symbolic_trace(model)
    assert fastseg.is_patched(graph)  # its leaves
    check_same(graph(images), stock)
    check_same(pickle.loads(pickle.dumps(graph))(images), stock)
    extracted = create_feature_extractor(model, {"backbone.layer4.0": "features"})(images)["features"]
    torch.testing.assert_close(
        extracted, create_feature_extractor(network(), ["backbone.layer4.0"])(images).popitem()[1]
    )


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def distributed(model):
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def sharded(model):
    """By FSDP2, which changes the classes of modules too; inner ones first, as its users do."""
    for module in (model.backbone, model.classifier[0], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    return model


@pytest.mark.skipif(not torch.distributed.is_available(), reason="a PyTorch without torch.distributed")
@pytest.mark.parametrize("wrap", [distributed, sharded])
def test_distributed(model, images, one_process, wrap):
    expected = logits_and_gradients(network(), images, torch.float32)
    wrapped = wrap(model)
    with torch.profiler.profile() as profile:
        output = wrapped(images)
    called = {event.name for event in profile.events()}
    assert {"fastseg::atrous_conv2d", "fastseg::pyramid_conv2d", "fastseg::upsample_bilinear"} <= called
    assert len([row for row in fastseg.report(model) if row.patched]) == 7
    sum(logits.square().mean() for logits in output.values()).backward()
    check_same(output, {name: expected[name] for name in output})
    for name, parameter in model.named_parameters():
        grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7)


def test_sync_batch_norm(model):
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted.classifier[0].project[1], nn.SyncBatchNorm) and fastseg.is_patched(converted)
    again = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert list(converted.state_dict()) == list(again.state_dict())


@torch.no_grad()
def test_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(images), network()(images)
    truth = network()(images)
    for name, logits in theirs.items():
        assert ours[name].dtype == logits.dtype
        assert (ours[name] - truth[name]).norm() <= 1.5 * (logits - truth[name]).norm()


@torch.no_grad()
def test_channels_last(model, images, stock):
    x = images.contiguous(memory_format=torch.channels_last)
    output = model.to(memory_format=torch.channels_last)(x)
    check_same(output, stock)
    assert output["out"].is_contiguous(memory_format=torch.channels_last)


def test_checkpointing(model, images):
    expected = logits_and_gradients(network(), images, torch.float32)
    model.classifier.forward = lambda x, run=model.classifier.forward: checkpoint(run, x, use_reentrant=False)
    output = model(images)
    sum(logits.square().mean() for logits in output.values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_before_and_after_half(images):
    x = images.bfloat16()
    before, after = fastseg.patch(network()).bfloat16()(x), fastseg.patch(network().bfloat16())(x)
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in after)


@torch.no_grad()
def test_meta(model, images):
    assert model.to("meta")(images.to("meta"))["out"].shape == (2, 5, *SIZE)


def test_functional_call(model, images):
    def gradients(model):
        def run(weights):
            return torch.func.functional_call(model, weights, (images,))["out"].square().mean()

        return torch.func.grad(run)({name: parameter.detach() for name, parameter in model.named_parameters()})

    ours, theirs = gradients(model), gradients(network())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def forward_mode(model, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(model(torch.autograd.forward_ad.make_dual(x, x.cos())))


TRANSFORMS = {
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x.cos(),)),
    "forward mode": forward_mode,
    "vmap": lambda model, x: torch.func.vmap(model)(x[None]),
    "vmap of weights": lambda model, x: torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x,)))(
        {name: torch.stack([w, 2 * w]) for name, w in model.named_parameters()}
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@torch.no_grad()
def test_transforms(transform):
    model, x = network().classifier, torch.randn(2, 24, 5, 7)
    model.insert(0, nn.Upsample(scale_factor=2, mode="bilinear"))
    model.append(nn.ConvTranspose2d(5, 5, 4, stride=2))
    expected = transform(model.double(), x.double())
    torch.testing.assert_close(tuple(transform(fastseg.patch(model), x.double())), tuple(expected))


@torch.no_grad()
def test_fold(model, images, stock):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # which would name what is left as it is
        folded = fastseg.fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    check_same(folded(images), stock)
