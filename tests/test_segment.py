"""The `fastseg segment` command, run as a user runs it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from library_networks import add_small_networks, halved, written_out

import fastseg
from fastseg import models
from fastseg.cli import main
from fastseg.models.preprocess import CAFFE, IMAGENET

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("rich")
from fastseg import segment  # noqa: E402  (needs both)

MODEL = "fcn_resnet50"


pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(width=61, height=47, seed=0):
    """A picture of a few colours, so that labels vary."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def photograph(path, width=61, height=47, seed=0, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blobs(width, height, seed).save(path, **options)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of 5-class weights that make several classes win, and the model they are of."""
    torch.manual_seed(0)
    model = models.get_model(MODEL, num_classes=5).eval()
    with torch.no_grad():
        logits = model.logits(segment.network_input(blobs(), 33, IMAGENET))  # (1, C, h, w)
        scale = 1 / logits.std((0, 2, 3))
        model.classifier[-1].weight.mul_(scale.view(-1, 1, 1, 1))
        model.classifier[-1].bias.sub_(logits.mean((0, 2, 3))).mul_(scale)
    path = tmp_path_factory.mktemp("weights") / "five.pth"
    torch.save(model.state_dict(), path)
    return path, model


@pytest.fixture
def run(weights, tmp_path, capsys, monkeypatch):
    """Runs the command in an empty folder, with the 5-class weights: (exit code, output, complaints)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=MODEL, weights=weights[0], output="out", size=33):
        options = {"--model": model, "--weights": weights, "--output": output, "--size": size}
        options = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        code = main(["segment", *map(str, arguments), *options])
        return code, *capsys.readouterr()

    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def check_one_line(errors, *words):
    assert errors.startswith("fastseg: ")
    assert errors.count("\n") == 1
    for word in words:
        assert word in errors


def test_labels_overlay_and_shares(run, weights):
    path = photograph("a.png")
    code, output, errors = run(path)
    assert (code, errors) == (0, "")
    assert files("out") == ["a_labels.png", "a_overlay.jpg"]

    labels = Image.open("out/a_labels.png")
    assert (labels.mode, labels.size) == ("P", (61, 47))
    x = segment.network_input(segment.read_photograph(path), 33, IMAGENET)
    assert x.shape == (1, 3, 33, 61 * 33 // 47)
    want = weights[1].predict(x, (47, 61))[0]
    assert want.unique().numel() > 1
    assert (np.asarray(labels) == want.numpy()).mean() > 0.99

    overlay = np.asarray(Image.open("out/a_overlay.jpg")).astype(float)
    blend = np.asarray(Image.open(path)) / 2 + np.asarray(labels.convert("RGB")) / 2
    assert np.abs(overlay - blend).mean() < 8  # JPEG

    lines = output.splitlines()
    assert lines[0].startswith("a.png -> out/a_labels.png")
    percents = {int(line.split()[1]): float(line.split()[2]) for line in lines[1:]}
    assert all(line.startswith("  class ") for line in lines[1:])
    assert sorted(percents) == want.unique().tolist()
    assert list(percents.values()) == sorted(percents.values(), reverse=True)
    assert sum(percents.values()) == pytest.approx(100, abs=0.3)


def test_palette_is_vocs():
    palette = np.array(segment.voc_palette()).reshape(256, 3)
    assert palette[:8, 0].tolist() == [0, 128, 0, 128, 0, 128, 0, 128]
    known = {1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(palette[label].tolist()) for label in known} == known
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_real_photograph_with_random_weights(run):
    matplotlib = pytest.importorskip("matplotlib.cbook")
    code, output, errors = run(matplotlib._get_data_path("sample_data/grace_hopper.jpg"), weights=None)
    assert code == 0
    assert "WARNING" in errors
    assert "RANDOM" in errors
    assert Image.open("out/grace_hopper_labels.png").size == Image.open("out/grace_hopper_overlay.jpg").size
    names = [line.split()[0] for line in output.splitlines()[1:]]
    assert names
    assert set(names) <= set(segment.VOC_NAMES)


def test_safetensors(run, weights):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(weights[1].state_dict(), "five.safetensors")
    photograph("a.png")
    assert run("a.png")[0] == 0
    assert run("a.png", weights="five.safetensors", output="again")[0] == 0
    assert Path("out/a_labels.png").read_bytes() == Path("again/a_labels.png").read_bytes()


@pytest.mark.parametrize("option", [("--dtype", "bfloat16"), ("--backend", "reference"), ("--device", "cpu")])
def test_options(run, option):
    photograph("a.jpg")
    assert run("a.jpg", *option)[0] == 0
    assert files("out") == ["a_labels.png", "a_overlay.jpg"]
    assert fastseg.dispatch.forced is None


def test_size_0_keeps_the_size(run, weights):
    photograph("a.png", width=40, height=30)
    assert run("a.png", size=0)[0] == 0
    x = segment.network_input(segment.read_photograph(Path("a.png")), 0, IMAGENET)
    assert x.shape == (1, 3, 30, 40)
    want = weights[1].predict(x)[0].numpy()
    assert (np.asarray(Image.open("out/a_labels.png")) == want).mean() > 0.99


def test_a_network_gets_the_images_it_was_trained_with(run):
    """FCN-AlexNet: BGR in 0..255 without the mean."""
    model = models.get_model("fcn32s_alexnet", num_classes=5, fc_channels=8).eval()
    torch.nn.init.normal_(model.score_fr.weight)
    torch.save(model.state_dict(), "alexnet.pth")
    photograph("a.png")
    assert run("a.png", model="fcn32s_alexnet", weights="alexnet.pth")[0] == 0
    x = segment.network_input(segment.read_photograph(Path("a.png")), 33, CAFFE)
    assert x.min() < -20 and x.max() > 20
    want = model.predict(x, (47, 61))[0].numpy()
    assert (np.asarray(Image.open("out/a_labels.png")) == want).mean() > 0.99


def test_input_is_normalised_rgb():
    white = segment.network_input(Image.new("RGB", (4, 3), (255, 0, 255)), 0, IMAGENET)
    want = [(1 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225]
    assert white[0, :, 1, 2].tolist() == pytest.approx(want, abs=1e-5)


def test_exif_orientation(run):
    upright = Image.Exif()
    upright[0x0112] = 6  # to be turned by 90 degrees
    photograph("a.jpg", width=61, height=40, exif=upright)
    assert run("a.jpg")[0] == 0
    assert Image.open("out/a_labels.png").size == Image.open("out/a_overlay.jpg").size == (40, 61)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_other_kinds_of_pictures(mode, tmp_path):
    grey = Image.fromarray(np.full((9, 7), 100, np.uint8))
    picture = Image.fromarray(np.full((9, 7), 100 * 256, np.uint16)) if mode == "I;16" else grey.convert(mode)
    picture.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    read = segment.read_photograph(next(tmp_path.iterdir()))
    assert (read.mode, read.size) == ("RGB", (7, 9))
    assert mode == "1" or read.getpixel((3, 3)) == pytest.approx((100, 100, 100), abs=2)


def test_folder_keeps_its_layout_and_skips_earlier_results(run):
    photograph("in/b.JPG")
    photograph("in/sub/b.jpeg", seed=1)
    photograph("in/a.png", seed=2)
    Path("in/notes.txt").write_text("no picture")
    wanted = [f"{stem}_{kind}" for stem in ("a", "b", "sub/b") for kind in ("labels.png", "overlay.jpg")]
    for _ in range(2):
        code, output, errors = run("in", "in/a.png", output="in/out")
        assert (code, errors) == (0, "")
        assert files("in/out") == wanted
        assert [line.split()[0] for line in output.splitlines() if "->" in line] == [
            "in/a.png",
            "in/b.JPG",
            "in/sub/b.jpeg",
        ]


def test_same_names_do_not_overwrite(run):
    for seed, path in enumerate(("x/a.jpg", "y/a.jpg", "y/a.png")):
        photograph(path, width=40 + seed, seed=seed)
    code, _, errors = run("x/a.jpg", "y/a.jpg", "y/a.png")
    assert code == 0
    assert errors.splitlines() == [
        "fastseg: y/a.jpg: the name a is taken, so this is a_2",
        "fastseg: y/a.png: the name a is taken, so this is a_3",
    ]
    widths = [Image.open(f"out/{stem}_labels.png").width for stem in ("a", "a_2", "a_3")]
    assert widths == [40, 41, 42]


def test_an_output_never_replaces_an_input(run):
    photograph("a.png")
    before = photograph("a_labels.png", seed=1).read_bytes()
    code, _, errors = run("a.png", "a_labels.png", output=".")
    assert code == 0
    assert "a.png: the name a is taken, so this is a_2" in errors
    assert Path("a_labels.png").read_bytes() == before
    assert Path("a_2_labels.png").exists()


def test_bad_images_do_not_stop_the_others(run):
    photograph("good.png")
    photograph("last.jpg", seed=1)
    whole = photograph("cut.jpg", width=300, height=300).read_bytes()
    Path("cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    code, output, errors = run("none.jpg", "empty", "text.png", "good.png", "cut.jpg", "last.jpg")
    assert code == 2
    assert files("out") == ["good_labels.png", "good_overlay.jpg", "last_labels.png", "last_overlay.jpg"]
    lines = errors.splitlines()
    assert len(lines) == 4
    assert {line.split(": ")[1] for line in lines} == {"none.jpg", "empty", "text.png", "cut.jpg"}
    assert "No such file" in errors
    assert "not a readable image" in errors
    assert "no .jpg, .jpeg, .png in this folder" in errors
    assert output.count("->") == 2


def test_a_failed_write_leaves_nothing_and_the_next_image_is_done(run, monkeypatch):
    photograph("a.png")
    photograph("b.png", seed=1)
    save = Image.Image.save

    def disk_full_for_a(self, path, **options):
        save(self, path, **options)
        if "a_labels" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full_for_a)
    code, _, errors = run("a.png", "b.png")
    assert code == 2
    check_one_line(errors, "a.png: No space left on device")
    assert files("out") == ["b_labels.png", "b_overlay.jpg"]


def test_unknown_model(run):
    code, _, errors = run(photograph("a.png"), model="unet")
    assert code == 2
    check_one_line(errors, "--model", "fcn_resnet50", "got unet")


def test_weights_of_another_model(run):
    code, _, errors = run(photograph("a.png"), model="deeplabv3_resnet50")
    assert code == 2
    check_one_line(
        errors, "missing (classifier.0.convs.0.0.weight;", "unexpected (classifier.0.weight;", "of wrong shape ("
    )
    assert files("out") == []


def test_weights_of_wrong_shape(run, weights):
    state_dict = weights[1].state_dict() | {"backbone.conv1.weight": torch.zeros(64, 4, 7, 7)}
    torch.save(state_dict, "wrong.pth")
    code, _, errors = run(photograph("a.png"), weights="wrong.pth")
    assert code == 2
    check_one_line(errors, "1 of wrong shape (backbone.conv1.weight: wanted (64, 3, 7, 7), got (64, 4, 7, 7))")


def test_weights_of_another_library(run, monkeypatch):
    """What they do not tell must be said."""
    add_small_networks(monkeypatch)
    torch.save(halved(written_out("mmsegmentation pspnet")[0]), "theirs.pth")
    photograph("a.png")
    how = {"model": "pspnet_resnet9", "weights": "theirs.pth"}
    code, _, errors = run("a.png", **how)
    assert code == 2
    check_one_line(errors, "--weights theirs.pth", "say output_stride=8 or 16, align_corners=False or True")
    told = "--set", "output_stride=16", "--set", "align_corners=True"
    code, _, errors = run("a.png", *told, "--set", "depth=3", **how)
    assert code == 2
    check_one_line(errors, "unexpected keyword argument 'depth'")
    code, _, errors = run("a.png", "--source", "kazuto1011", **how)
    assert code == 2
    check_one_line(errors, "unknown: not kazuto1011")
    assert run("a.png", *told, **how)[0] == 0
    model = fastseg.load_checkpoint("pspnet_resnet9", "theirs.pth", output_stride=16, align_corners=True).eval()
    x = segment.network_input(segment.read_photograph(Path("a.png")), 33, IMAGENET)
    assert (np.asarray(Image.open("out/a_labels.png")) == model.predict(x, (47, 61))[0].numpy()).mean() > 0.99


def test_weights_that_are_none(run):
    photograph("a.png")
    for wrong in ("none.pth", "a.png"):
        code, _, errors = run("a.png", weights=wrong)
        assert code == 2
        check_one_line(errors, wrong)


def test_more_classes_than_a_palette_holds(run):
    torch.save(models.get_model(MODEL, num_classes=257).state_dict(), "many.pth")
    code, _, errors = run(photograph("a.png"), weights="many.pth")
    assert code == 2
    check_one_line(errors, "holds 256 classes, got 257")


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta"])
def test_unusable_device(run, device):
    code, _, errors = run(photograph("a.png"), "--device", device)
    assert code == 2
    check_one_line(errors)


def test_unusable_backend(run):
    code, _, errors = run(photograph("a.png"), "--device", "cpu", "--backend", "composed")
    assert code == 2
    check_one_line(errors, "composed: this op has no composed form")


def test_negative_size(run):
    code, _, errors = run(photograph("a.png"), size=-1)
    assert code == 2
    check_one_line(errors, "--size must be 0 or more, got -1")


def test_unwritable_output(run, monkeypatch):
    Path("file").write_text("")
    photograph("a.png")
    for output in ("file", "file/below"):
        code, _, errors = run("a.png", output=output)
        assert code == 2
        check_one_line(errors, f"--output {output}: cannot write there")

    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(segment.tempfile, "TemporaryFile", denied)  # root may write to any folder
    code, _, errors = run("a.png")
    assert code == 2
    check_one_line(errors, "Permission denied")


@pytest.mark.parametrize("package", ["PIL", "rich"])
def test_missing_package(run, monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fastseg.segment")
    code, _, errors = run("a.png")
    assert code == 2
    check_one_line(errors, 'pip install "fastseg[cli]"', package)


def test_missing_safetensors(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    photograph("a.png")
    Path("weights.safetensors").write_bytes(b"unread")
    code, _, errors = run("a.png", weights="weights.safetensors")
    assert code == 2
    check_one_line(errors, 'pip install "fastseg[cli]"', "safetensors")
