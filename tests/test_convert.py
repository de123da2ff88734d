"""The `fastseg convert` command, run as a user runs it."""

import os

import pytest
import torch
from library_networks import CLASSES, EXACT, IMAGES, SMALL, add_small_networks, halved, relative_error, written_out

from fastseg import load_checkpoint, models
from fastseg.cli import main
from fastseg.models.deeplabv3 import DeepLabV3
from fastseg.models.preprocess import CAFFE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    add_small_networks(monkeypatch)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["convert", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@torch.no_grad()
def test_a_file(run, tmp_path):
    """What was said once need not be said again."""
    weights, wanted = written_out("kazuto1011 deeplabv3")
    torch.save({"model_state": weights}, "in.pth")
    told = "--set", "output_stride=16", "--set", "multi_grid=(1, 2, 4)"
    code, out, err = run("in.pth", "new/out.pth", *told)
    assert (code, err) == (0, "")
    assert out == "in.pth -> new/out.pth: deeplabv3_resnet9 of kazuto1011, 5 classes\n"
    model = load_checkpoint("deeplabv3_resnet9", "new/out.pth").double().eval()
    assert model.preprocess == CAFFE
    assert relative_error(model(IMAGES, upsample=False)["out"], wanted["out"]) < EXACT
    with pytest.raises(ValueError, match="something else than kazuto1011's"):
        load_checkpoint(DeepLabV3(SMALL, num_classes=5, aux_loss=False, head="paper"), "new/out.pth")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.pth"]


def test_a_bad_file_does_not_stop_the_others(run):
    torch.save(halved(written_out("torchvision fcn")[0]), "a.pth")
    torch.save(halved(written_out("pytorchcv fcn")[0]), "c.pth")
    with open("b.pth", "wb") as file:
        file.write(b"nothing of the kind")
    code, out, err = run("a.pth", "b.pth", "none.pth", "c.pth", "out")
    assert code == 2
    assert "[1/4] a.pth -> out/a.pth: fcn_resnet9 of torchvision, 5 classes" in out
    assert "[4/4] c.pth -> out/c.pth: fcn_resnet9 of pytorchcv, 5 classes" in out
    assert "[2/4] b.pth: read_state_dict: b.pth is not a file of weights" in err
    assert "2 of 4 not converted: b.pth, none.pth" in err.splitlines()[-1]


def test_to_torchvision(run):
    weights = halved(written_out("torchvision fcn")[0])
    torch.save(weights, "in.pth")
    assert run("in.pth", "ours.pth")[0] == run("ours.pth", "back.pth", "--to", "torchvision")[0] == 0
    back = torch.load("back.pth", weights_only=True)
    assert back.keys() == weights.keys()
    assert torch.equal(back["backbone.conv1.weight"], weights["backbone.conv1.weight"].float())
    assert {int(back[name]) for name in back if name.endswith("num_batches_tracked")} == {0}


def test_does_not_replace_files_unless_told(run):
    torch.save(halved(written_out("torchvision fcn")[0]), "in.pth")
    torch.save({"mine": torch.ones(1)}, "other.pth")  # meant as a second file of weights
    code, _, err = run("in.pth", "other.pth")
    assert code == 2 and "other.pth is there: another name, or --overwrite" in err
    assert list(torch.load("other.pth", weights_only=True)) == ["mine"]
    assert run("in.pth", "other.pth", "--overwrite")[0] == 0
    assert "fastseg" in torch.load("other.pth", weights_only=True)
    os.link("in.pth", "linked.pth")
    code, _, err = run("in.pth", "linked.pth", "--overwrite")
    assert code == 2 and "over itself" in err


def test_what_it_refuses(run):
    torch.save(halved(written_out("mmsegmentation fcn")[0]), "in.pth")
    told = "--set", "align_corners=False", "--set", "output_stride=8"
    for arguments, complaint in (
        (["in.pth"], "last, where to write"),
        (["in.pth", "in.pth"], "over itself"),
        (["in.pth", "out.pth"], "several forms"),
        (["in.pth", "out.pth", "--set", "align_corners=no"], "wanted KEY=VALUE"),
        (["in.pth", "a/in.pth", "out"], "same name"),
        (["in.pth", "out.safetensors", "--set", "align_corners=False"], "name it .pth"),
        (["in.pth", "out.pth", "--network", "fcn_resnet50"], "fcn_resnet9 of mmsegmentation, got 'fcn_resnet50'"),
        (["in.pth", "out.pth", "--to", "torchvision", *told], "not torchvision's"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert complaint in err


def test_converted(tmp_path):
    network = models.fcn8s_vgg16(num_classes=CLASSES, fc_channels=16)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    converted = tmp_path / "out.pth"
    assert main(["convert", str(tmp_path / "in.pth"), str(converted)]) == 2, "whose network is not said"
    named = "--network", "fcn8s_vgg16", "--set", "at_once=False"
    assert main(["convert", str(tmp_path / "in.pth"), str(converted), *named]) == 0
    model = load_checkpoint("fcn8s_vgg16", converted)
    assert torch.equal(model.fc6.weight, network.fc6.weight)
    load_checkpoint("fcn8s_vgg16", converted, at_once=False)  # said again
    with pytest.raises(ValueError, match="are a fcn8s_vgg16 of caffe, got 'fcn8s_atonce_vgg16'"):
        load_checkpoint("fcn8s_vgg16", converted, at_once=True)
    assert main(["convert", str(converted), str(tmp_path / "again.pth"), "--set", "at_once=False"]) == 0
    for note in ({}, 3, {"library": "caffe", "network": "fcn8s_vgg16", "keywords": 3, "preprocess": 4}):
        with pytest.raises(ValueError, match="under 'fastseg' there must be library, network"):
            load_checkpoint("fcn8s_vgg16", {"fastseg": note, "state_dict": network.state_dict()})
    with pytest.raises(ValueError, match="steps: wanted .* 1\\).*, got .*0.01"):
        load_checkpoint(models.fcn8s_atonce_vgg16(num_classes=CLASSES, fc_channels=16), converted)
