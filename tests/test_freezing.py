"""freeze_bn: statistics and affine parameters that training leaves alone."""

import copy

import pytest
import torch
from torch import nn

import fastseg
from fastseg.models.deeplabv3 import DeepLabV3

pytestmark = pytest.mark.usefixtures("one_thread")


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(2, 3, 9, 9)).square().mean().backward()
    optimizer.step()


def test_training_leaves_batch_norms_alone():
    model = small().train()
    step(model, torch.optim.SGD(model.parameters(), 0.1))  # leaves gradients and statistics
    assert fastseg.freeze_bn(model) is model
    assert model[1].weight.grad is None  # which an optimizer made before would apply for ever
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1, momentum=0.9)
    for _ in range(2):
        step(model.train(), optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("1."), name
    assert model.training and model[0].training and not model[1].training
    assert not any(parameter.requires_grad for parameter in model[1].parameters())


def test_frozen_networks_save_copy_and_compute_as_in_eval_mode(tmp_path):
    model, alike = fastseg.freeze_bn(small()).train(), small().eval()
    x = torch.randn(2, 3, 9, 9)
    assert list(model.state_dict()) == list(alike.state_dict())
    torch.save(model, tmp_path / "frozen.pt")
    for other in (model, copy.deepcopy(model), torch.load(tmp_path / "frozen.pt", weights_only=False)):
        other.train()
        assert torch.equal(other(x), alike(x))
        assert not other[1].training
    assert isinstance(model[1], nn.BatchNorm2d)
    assert fastseg.freeze_bn(model) is model  # once more changes nothing


def test_hooks_stay():
    model, seen = small(), []
    model[1].register_forward_hook(lambda *call: seen.append(call))
    fastseg.freeze_bn(model)(torch.randn(1, 3, 9, 9))
    assert len(seen) == 1


def test_a_network_trains_with_one_image():
    torch.manual_seed(0)
    model = fastseg.freeze_bn(DeepLabV3((1, 1, 1, 1), num_classes=2, output_stride=16)).train()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 10
    model.set_output_stride(8)
    sum(y.square().mean() for y in model(torch.randn(1, 3, 33, 33), upsample=False).values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.rsplit(".", 1)[0] in norms
        assert (parameter.grad is None) == frozen, name


@pytest.mark.parametrize("kind", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))
def test_every_kind(kind):
    norm = fastseg.freeze_bn(kind(3)).train()
    assert isinstance(norm, kind) and not norm.training


def test_what_cannot_be_frozen():
    class Other(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), Other(3))
    with pytest.raises(TypeError, match="freeze_bn: 1 must be one of BatchNorm1d, .*, got Other"):
        fastseg.freeze_bn(model)
    assert type(model[0]) is nn.BatchNorm2d and model[0].weight.requires_grad  # nothing was frozen
    with pytest.raises(ValueError, match="model must have running statistics"):
        fastseg.freeze_bn(nn.BatchNorm2d(3, track_running_stats=False))
