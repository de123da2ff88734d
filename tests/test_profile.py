"""The profile of networks: each moment is counted once, at its place, as its kind; and what the reader sees of it."""

import json
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType

from fastseg import models
from fastseg.bench import profile, profile_kinds
from fastseg.bench.profile_events import BACKWARD_NODE, IDLE, rows
from fastseg.bench.profile_places import PREFIX, places, recorded

CPU = torch.device("cpu")


class Small(nn.Module):
    """One layer of each kind, in the places of a ResNet."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.MaxPool2d(2))
        self.classifier = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.classifier(self.layer2(self.layer1(x)))


@pytest.fixture(autouse=True)
def cheap_ceilings(monkeypatch):
    found = {"copy_gb_per_s": 10.0, "matmul_tflop_per_s": 0.1}
    monkeypatch.setattr(profile.machine, "ceilings", lambda device, dtype, with_flops: found)


@pytest.fixture(scope="module")
def step():
    """A training step of the small network, measured."""
    network, x = Small(), torch.randn(2, 3, 16, 16)
    return profile.measure(network, lambda: network(x).max().backward(), CPU, torch.float32, repeats=2)


def of(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_rows_add_up_to_the_measured_time(step):
    assert sum(row["ms"] for row in step["rows"]) == pytest.approx(step["ms"], rel=1e-3)
    assert step["ms"] == min(step["all_ms"]) and len(step["all_ms"]) == 2 and step["unprofiled_ms"] > 0
    keys = [(row["place"], row["pass"], row["kind"]) for row in step["rows"]]
    assert len(set(keys)) == len(keys) and all(row["ms"] >= 0 for row in step["rows"])


@pytest.mark.parametrize(
    "place, kind",
    [
        ("layer1", "dense convolution, forward"),
        ("layer1", "batch norm"),
        ("layer1", "ReLU, additions, dropout"),
        ("layer2", "dilated convolution, forward"),
        ("layer2", "pooling"),
        ("classifier Conv2d", "1x1 convolution, forward"),
    ],
)
def test_an_operation_is_found_in_its_layer_alone(step, place, kind):
    found = {row["place"] for row in of(step["rows"], kind=kind, **{"pass": "forward"}) if row["ms"]}
    assert found == {place}


@pytest.mark.parametrize(
    "place, kind, gradients",
    [
        ("layer1", "dense", ["weight gradient"]),  # the images want none
        ("layer2", "dilated", ["input gradient", "weight gradient"]),
        ("classifier Conv2d", "1x1", ["input gradient", "weight gradient"]),
    ],
)
def test_gradients_are_found_where_their_layer_is(step, place, kind, gradients):
    found = [row for row in step["rows"] if row["kind"].startswith(kind) and row["pass"] == "backward"]
    assert sorted(row["kind"] for row in found) == [f"{kind} convolution, {which}" for which in gradients]
    assert {row["place"] for row in found} == {place} and all(row["ms"] > 0 for row in found)
    (forward,) = of(step["rows"], kind=f"{kind} convolution, forward")
    assert {row["flops"] for row in found} == {forward["flops"]} and forward["flops"] > 0


@pytest.mark.parametrize(
    "size, kernel, how",
    [
        ((9, 9), 3, {"padding": 1}),
        ((9, 7), 3, {"padding": 6, "dilation": 6}),
        ((8, 8), 5, {"padding": 1, "stride": 2}),
    ],
)
def test_flops_are_the_products_within_the_image(size, kernel, how):
    """The convolution of ones by ones counts them."""
    x, weight = torch.ones(2, 3, *size), torch.ones(4, 3, kernel, kernel)
    products = F.conv2d(x, weight, **how).sum().item()
    with torch.profiler.profile(record_shapes=True) as profiler:
        F.conv2d(x, weight, **how)
    flops = sum(row["flops"] for row in rows(profiler.events(), 0, torch.float32))
    assert flops == 2 * products


def test_what_stands_in_our_operations_is_told_apart():
    """PyTorch's convolutions and copies by their kind, the rest by the operation's name."""
    network = models.PSPNet((1, 1, 1, 1), num_classes=4).eval()
    x = torch.randn(1, 3, 33, 33)
    found = profile.measure(network, lambda: network.predict(x), CPU, torch.float32, repeats=1)["rows"]
    head = {row["kind"] for row in of(found, place="cls.0 PyramidConv2d")}
    assert {"dense convolution, forward", "fastseg pyramid_conv2d", "matrix products"} <= head
    assert of(found, place="tail", kind="fastseg upsample_argmax")
    assert {"stem", "layer1", "layer4", "ppm PyramidPriors", "tail"} <= {row["place"] for row in found}


def test_no_layer_is_seen_by_a_hook(monkeypatch):
    """The network computes what it computes without a profile: weights folded while labelling, in fewer calls."""
    network = models.FCN((1, 1, 1, 1), num_classes=4).eval()
    x, called, original = torch.randn(1, 3, 65, 65), [], nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda module, x: called.append(module) or original(module, x))
    call, want, without = nn.Module.__call__, network.predict(x), len(called)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with recorded(network):
        assert torch.equal(network.predict(x), want)
    assert len(called) == 2 * without and without < norms
    assert nn.Module.__call__ is call


def test_places_have_the_names_of_papers_and_parts():
    found = {}
    with torch.device("meta"):
        for network in (models.fcn8s_vgg16(), models.deeplabv3_resnet50()):
            of_module = places(network)
            found |= {name: of_module[module] for name, module in network.named_modules()}
    assert found["conv3_2"] == found["relu3_2"] == found["pool3"] == "conv3" and found["relu6"] == "fc6"
    assert found["backbone.conv1"] == "stem" and found["backbone.layer3.2.conv2"] == "layer3"
    assert found["classifier.0.convs.2.1"] == "classifier.0.convs ModuleList" and found[""] == "tail"


def test_one_call_for_both_gradients_is_divided_by_their_times_alone(monkeypatch):
    monkeypatch.setattr(profile_kinds, "input_share", lambda *signature: 0.25)
    conv, x = nn.Conv2d(8, 8, 3), torch.randn(2, 8, 32, 32, requires_grad=True)
    y = conv(x).sum()
    with torch.profiler.profile(record_shapes=True) as profiler:
        y.backward()
    found = {row["kind"]: row["ms"] for row in rows(profiler.events(), 0, torch.float32)}
    both = [found[f"dense convolution, {which} gradient"] for which in ("input", "weight")]
    assert both[1] == pytest.approx(3 * both[0]) and both[0] > 0


def on_gpu(name, start, kernels=(), number=-1, children=(), annotation=False):
    """An event as torch.profiler makes it on a machine with a GPU."""
    event = types.SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        use_device="cuda",
        time_range=types.SimpleNamespace(start=start),
        sequence_nr=number,
        kernels=[types.SimpleNamespace(duration=microseconds) for microseconds in kernels],
        is_user_annotation=annotation,
        cpu_parent=None,
        cpu_children=list(children),
    )
    for child in children:
        child.cpu_parent = event
    return event


def flat(event):
    return [event, *(each for child in event.cpu_children for each in flat(child))]


def test_on_a_gpu_kernels_count_and_what_is_left_is_idle():
    """Ranges, which have their kernels' time once more, count nothing; the backward pass is in another thread."""
    norm = on_gpu("aten::native_batch_norm", 2, kernels=[30], number=7)
    layer = on_gpu(PREFIX + "layer3", 1, kernels=[30], children=[norm], annotation=True)
    gradient = on_gpu("aten::native_batch_norm_backward", 12, kernels=[50, 20])
    node = on_gpu(f"{BACKWARD_NODE}CudnnBatchNormBackward0", 11, number=7, children=[gradient])
    counter = on_gpu(f"{BACKWARD_NODE}torch::autograd::AccumulateGrad", 13, children=[on_gpu("aten::add_", 14, [5])])
    found = rows([*flat(counter), *flat(node), *flat(layer)], 200, torch.float32)
    assert {(row["place"], row["pass"], row["kind"]): row["ms"] for row in found} == {
        ("layer3", "forward", "batch norm"): 0.03,
        ("layer3", "backward", "batch norm"): 0.07,
        ("layer3", "backward", "ReLU, additions, dropout"): 0.005,
        ("tail", "forward", IDLE): pytest.approx(0.095),
    }


@pytest.mark.parametrize("task", [profile.LABELS, profile.STEP])
@pytest.mark.parametrize("network", ["fcn", "skip_fcn"])
def test_a_task_is_what_its_name_says(monkeypatch, network, task):
    """Labels leave no gradient; a step leaves one in every parameter that wants it."""
    small = {
        "fcn": lambda num_classes: models.FCN((1, 1, 1, 1), num_classes=num_classes),
        "skip_fcn": lambda num_classes: models.fcn8s_alexnet(num_classes=num_classes, fc_channels=8),
    }
    monkeypatch.setattr(models, "small", small[network], raising=False)
    network, call = profile.call_of(profile.Case("small", task, (2, 3, 33, 33)), CPU, torch.float32)
    result = call()
    wanting = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if task == profile.LABELS:
        assert result.shape == (2, 33, 33) and all(parameter.grad is None for parameter in wanting)
    else:
        assert all(parameter.grad is not None for parameter in wanting)


def test_a_run_is_saved_as_it_goes_and_reads_well(monkeypatch):
    network, x = Small(), torch.randn(2, 3, 16, 16)
    monkeypatch.setattr(profile, "call_of", lambda *case: (network, lambda: network(x).square().sum().backward()))
    cases = [profile.Case(name, profile.STEP, tuple(x.shape)) for name in ("one", "another")]
    saved = []
    result = profile.run(
        cases, CPU, torch.float32, repeats=1, save=lambda result: saved.append(json.loads(json.dumps(result)))
    )
    assert [len(state["cases"]) for state in saved] == [1, 2, 2] and saved[-1]["complete"]
    assert result["schema"] == 1 and {"date", "device", "commit", "torch"} <= set(result["machine"])
    text = profile.markdown(saved[-1])
    assert "**another, training step, 2x3x16x16: " in text and "| dense convolution, weight gradient |" in text
    by_place = text[text.index("| place |") : text.index("| kind |")].splitlines()[2:]
    shares = [float(line.split("|")[-2].strip(" %")) for line in by_place if line.startswith("|")]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
