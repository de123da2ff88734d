"""FCN-32s, 16s and 8s against the same networks written out in plain PyTorch, with the same random weights."""

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg import models
from fastseg.models.bilinear_deconv import is_bilinear, labels_through
from fastseg.models.checkpoints import factory_arguments
from fastseg.models.coordinates import Coordinates, along, deconvolution, upsampling
from fastseg.models.preprocess import CAFFE, IMAGENET, SIGNED
from fastseg.models.skip_fcn import _beside_its_weight
from fastseg.nn.deconv import bilinear_kernel, fill_bilinear_
from fastseg.ops import upsample_argmax
from fastseg.ops.layout import is_channels_last

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [name for name in models.list_models() if name.startswith(("fcn8s", "fcn16s", "fcn32s"))]
CLASSES, WIDTH = 5, 16  # of fc6 and fc7, which have 4096 channels as published


def build(name, **keywords):
    """A network of few classes, narrow where it may be, in eval mode, whose every weight matters."""
    torch.manual_seed(0)
    if "googlenet" not in name:
        keywords = {"fc_channels": WIDTH} | keywords
    model = models.get_model(name, num_classes=CLASSES, **keywords).eval()
    for key, parameter in model.named_parameters():
        if key.startswith("score"):
            nn.init.normal_(parameter, 0, 1e3 if "atonce" in name and "pool" in key else 0.3)
        elif key.startswith("upscore"):
            nn.init.normal_(parameter, 0, 1 / parameter.shape[-1])
        elif key.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


class Weights:
    """Layers by name, as functions, from a state dict."""

    def __init__(self, model):
        self.all = model.state_dict()

    def conv(self, name, x, **how):
        return F.conv2d(x, self.all[f"{name}.weight"], self.all[f"{name}.bias"], **how)

    def conv_relu(self, name, x, **how):
        return F.relu(self.conv(name, x, **how))

    def deconv(self, name, x, stride):
        return F.conv_transpose2d(x, self.all[f"{name}.weight"], stride=stride)


def pool(x, size=3):
    return F.max_pool2d(x, size, 2, ceil_mode=True)


def norm(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)


def vgg16_maps(w, x):
    """(pool3, pool4, fc7)"""
    maps = []
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for k in range(1, count + 1):
            x = w.conv_relu(f"conv{stage}_{k}", x, padding=100 if (stage, k) == (1, 1) else 1)
        x = pool(x, 2)
        maps.append(x)
    return maps[2], maps[3], w.conv_relu("fc7", w.conv_relu("fc6", x))


def alexnet_maps(w, x, caffe):
    """(pool1, pool2, fc7)"""
    groups = 2 if caffe else 1
    pool1 = pool(w.conv_relu("conv1", x, padding=100, stride=4))
    pool2 = pool(w.conv_relu("conv2", norm(pool1) if caffe else pool1, padding=2, groups=groups))
    x = w.conv_relu("conv3", norm(pool2) if caffe else pool2, padding=1)
    x = w.conv_relu("conv4", x, padding=1, groups=groups)
    x = pool(w.conv_relu("conv5", x, padding=1, groups=groups))
    return pool1, pool2, w.conv_relu("fc7", w.conv_relu("fc6", x))


def caffe_googlenet_maps(w, x):
    """(pool2, pool3, inception_5b)"""

    def inception(name, x):
        three = w.conv_relu(f"{name}.3x3", w.conv_relu(f"{name}.3x3_reduce", x), padding=1)
        five = w.conv_relu(f"{name}.5x5", w.conv_relu(f"{name}.5x5_reduce", x), padding=2)
        pooled = w.conv_relu(f"{name}.pool_proj", F.max_pool2d(x, 3, 1, padding=1))
        return torch.cat([w.conv_relu(f"{name}.1x1", x), three, five, pooled], 1)

    x = norm(pool(w.conv_relu("conv1.7x7_s2", x, stride=2, padding=3)))
    x = w.conv_relu("conv2.3x3", w.conv_relu("conv2.3x3_reduce", x), padding=1)
    x = pool2 = pool(norm(x))
    for name in ("3a", "3b"):
        x = inception(f"inception_{name}", x)
    x = pool3 = pool(x)
    for name in ("4a", "4b", "4c", "4d", "4e"):
        x = inception(f"inception_{name}", x)
    x = pool(x)
    for name in ("5a", "5b"):
        x = inception(f"inception_{name}", x)
    return pool2, pool3, x


def torchvision_googlenet_maps(w, x):
    """(pool2, pool3, inception5b) of torchvision's own modules, whose weights have our names."""
    vision = pytest.importorskip("torchvision.models")
    theirs = vision.GoogLeNet(aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict({key: value for key, value in w.all.items() if key in theirs.state_dict()}, strict=False)
    maps = {}
    for name in ("maxpool2", "maxpool3", "inception5b"):
        getattr(theirs, name).register_forward_hook(lambda module, inputs, y, name=name: maps.update({name: y}))
    theirs(x)
    return tuple(maps.values())


MAPS = {
    ("vgg16", "caffe"): vgg16_maps,
    ("alexnet", "caffe"): lambda w, x: alexnet_maps(w, x, caffe=True),
    ("alexnet", "torchvision"): lambda w, x: alexnet_maps(w, x, caffe=False),
    ("googlenet", "caffe"): caffe_googlenet_maps,
    ("googlenet", "torchvision"): torchvision_googlenet_maps,
}
# (base, source): (names of the skips, offset of the last crop, offset of each skip) for 32s, 16s, 8s. A negative one
# crops the skip, as the paper's networks do. Those of VGG-16 and AlexNet-32s are the authors'.
CROPS = {
    ("vgg16", "caffe"): (("pool4", "pool3"), (19, 27, 31), (-5, -9)),
    ("alexnet", "caffe"): (("pool2", "pool1"), (18, 18, 18), (-5, -10)),
    ("alexnet", "torchvision"): (("pool2", "pool1"), (18, 18, 18), (-5, -10)),
    ("googlenet", "caffe"): (("pool3", "pool2"), (1, 1, 1), (0, 0)),
    ("googlenet", "torchvision"): (("pool3", "pool2"), (9, 1, 1), (1, 0)),
}


def written_out(name, source, w, maps, size):
    """Logits from the three maps, as in the authors' and pytorch-fcn's code but for sizes that these do not allow."""
    variant, base = name.split("_")[0], name.split("_")[-1]
    fine, coarse, top = maps
    skips, last_offsets, offsets = CROPS[base, source]
    scales = (0.01, 0.0001) if "atonce" in name else (1, 1)

    count = ("fcn32s", "fcn16s", "fcn8s").index(variant)
    x = w.conv("score_fr", top)
    for k, tap in enumerate((coarse, fine)[:count]):
        up = w.deconv("upscore2" if k == 0 else f"upscore_{skips[0]}", x, 2)
        skip = w.conv(f"score_{skips[k]}", tap * scales[k])
        up, skip = (
            up[:, :, max(offsets[k], 0) :, max(offsets[k], 0) :],
            skip[:, :, -min(offsets[k], 0) :, -min(offsets[k], 0) :],
        )
        h, w_ = (min(up.shape[axis], skip.shape[axis]) for axis in (2, 3))
        x = up[:, :, :h, :w_] + skip[:, :, :h, :w_]
    x = w.deconv(("upscore", "upscore16", "upscore8")[count], x, 32 >> count)
    first = last_offsets[count]
    return x[:, :, first : first + size[0], first : first + size[1]]


@pytest.fixture(scope="module")
def maps_of():
    """Maps of the networks on one base, which have the same weights there: written out once."""
    known = {}

    def maps(base, source, model, images):
        if (base, source) not in known:
            w = Weights(model)
            shared = {key: w.all[key].clone() for key in w.all if key.split(".")[0] in model.classifier_layers}
            known[base, source] = shared, MAPS[base, source](w, images)
        model.load_state_dict(known[base, source][0], strict=False)
        return known[base, source][1]

    return maps


CASES = [
    (name, source) for name in NAMES for source in ("caffe", "torchvision") if (name.split("_")[-1], source) in MAPS
]


@torch.no_grad()
@pytest.mark.parametrize("name, source", CASES)
def test_as_written_out(name, source, maps_of):
    images = torch.randn(1, 3, 35, 63, generator=torch.Generator().manual_seed(1))
    model = build(name, source=source)
    maps = maps_of(name.split("_")[-1], source, model, images)
    want = written_out(name, source, Weights(model), maps, images.shape[2:])
    got = model(images)
    assert list(got) == ["out"]
    assert got["out"].shape == want.shape == (1, CLASSES, 35, 63)
    assert (got["out"] - want).abs().max() <= 1e-4 * want.abs().max()
    skipless = written_out(name, source, Weights(model), (maps[0] * 0, maps[1] * 0, maps[2]), images.shape[2:])
    assert model.skips == 0 or (want - skipless).abs().max() > 0.01 * want.abs().max()  # the skips matter

    labels = model.predict(images)
    best = got["out"].topk(2, 1)
    assert labels.dtype == torch.uint8
    assert labels.unique().numel() > 1
    assert ((labels == best.indices[:, 0]) | (best.values[:, 0] - best.values[:, 1] < 1e-4 * want.abs().max())).all()


def test_coordinates_by_hand():
    assert along(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()) == Coordinates()
    assert along(nn.MaxPool2d(2)) == (Fraction(1, 2), Fraction(-1, 4))  # pixels 0 and 1 lie beside 0: -1/4 and 1/4
    assert along(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 5))) == (1, -3)
    assert along(nn.ConvTranspose2d(1, 1, 4, 2, padding=1)) == deconvolution(4, 2, 1) == (2, Fraction(1, 2))
    assert along(nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, 4, 2, padding=1)) == Coordinates()
    with pytest.raises(ValueError, match="no deconvolution of stride 3"):
        upsampling(along(nn.MaxPool2d(2)), 3, Coordinates())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["caffe", "torchvision"])
def test_offsets_kernels_and_sizes(name, source):
    """The paper's crops, and an output of the image's size for images of any size."""
    base = name.split("_")[-1]
    skips, last_offsets, offsets = CROPS[base, "caffe" if base == "vgg16" else source]
    with torch.device("meta"):
        model = models.get_model(name, num_classes=CLASSES, source=source).eval()
        assert model.offset == last_offsets[model.skips]
        assert [(tap, offset) for _, tap, offset, _ in model.steps] == list(zip(skips, offsets, strict=True))[
            : model.skips
        ]
        stride = 32 >> model.skips
        assert getattr(model, model.last).stride == (stride, stride)
        assert getattr(model, model.last).kernel_size[0] == (2 * stride if base == "vgg16" else 2 * stride - 1)
        for side in (*range(model.smallest, model.smallest + 3), *range(40, 72, 5)):
            size = (side, side + 33)
            assert model(torch.empty(1, 3, *size))["out"].shape == (1, CLASSES, *size)
        if model.smallest > 1:
            with pytest.raises(ValueError, match=f"at least {model.smallest} by {model.smallest} pixels.*, got 90 by"):
                model(torch.empty(1, 3, 90, model.smallest - 1))


@pytest.mark.parametrize("base, smallest", [("vgg16", 1), ("alexnet", 1), ("googlenet", 31)])
def test_every_size_is_covered(base, smallest):
    """The deconvolution reaches each image's end: what is left behind it repeats every 32 pixels."""
    for name in (f"fcn32s_{base}", f"fcn16s_{base}", f"fcn8s_{base}"):
        with torch.device("meta"):
            model = models.get_model(name, num_classes=1).eval()
            for side in range(smallest, smallest + 64, 2):
                size = (side, side + 1)
                assert model(torch.empty(1, 3, *size))["out"].shape[2:] == size


@pytest.mark.parametrize("size", [3, 4, 15, 16, 31, 32, 63, 64])
def test_bilinear_kernel(size):
    """The authors' filler, and columns that sum to 1 at each phase."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    row = torch.tensor([1 - abs(x - center) / factor for x in range(size)], dtype=torch.float64)
    assert torch.equal(bilinear_kernel(size, size).double(), row[:, None] * row)
    deconv = nn.ConvTranspose2d(3, 3, size, factor, bias=False)
    fill_bilinear_(deconv.weight)
    assert is_bilinear(deconv)
    up = deconv(torch.ones(1, 3, 4, 4))
    torch.testing.assert_close(
        up[:, :, factor:-factor, factor:-factor], torch.ones_like(up)[:, :, factor:-factor, factor:-factor]
    )


def test_what_is_not_bilinear():
    def changed(change):
        deconv = nn.ConvTranspose2d(3, 3, 4, 2, bias=False)
        fill_bilinear_(deconv.weight)
        with torch.no_grad():
            change(deconv)
        return deconv

    assert is_bilinear(changed(lambda deconv: deconv.half()))
    assert not is_bilinear(changed(lambda deconv: deconv.weight[0, 1, 0, 0].fill_(1e-9)))
    assert not is_bilinear(changed(lambda deconv: deconv.weight[0, 0, 0, 0].add_(1e-3)))
    assert not is_bilinear(changed(lambda deconv: deconv.weight[1].fill_(float("nan"))))
    assert not is_bilinear(nn.ConvTranspose2d(3, 3, 4, 2))
    assert not is_bilinear(nn.ConvTranspose2d(3, 3, 4, 4, bias=False))


@pytest.mark.parametrize("kernel, stride, offset", [(64, 32, 19), (32, 16, 27), (16, 8, 31), (63, 32, 18), (15, 8, 0)])
@pytest.mark.parametrize("whole", [True, False])
def test_labels_through_a_bilinear_deconvolution(kernel, stride, offset, whole):
    """Where inputs surround the output and beyond, to the last pixel, against float64."""
    scores = torch.randn(2, 6, 5, 6)
    weight = torch.zeros(6, 6, kernel, kernel, dtype=torch.float64)
    fill_bilinear_(weight)
    want = F.conv_transpose2d(scores.double(), weight, stride=stride)[:, :, offset:, offset:]
    if not whole:
        want = want[:, :, :9, : stride + 1]
    labels = labels_through(scores, kernel, stride, offset, want.shape[2:])
    assert labels.is_contiguous()
    assert labels.shape == (2, *want.shape[2:])
    chosen = want.gather(1, labels.long()[:, None])[:, 0]
    assert (want.amax(1) - chosen).max() <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["fcn8s_alexnet", "fcn32s_alexnet"])
def test_predict(name):
    model = build(name)
    images = torch.randn(2, 3, 33, 45)
    fill_bilinear_(getattr(model, model.last).weight)
    full = model(images)["out"]
    for size in (None, (33, 45), (50, 20), 40):
        sides = (40, 40) if size == 40 else size or (33, 45)
        best = F.interpolate(full, sides, mode="bilinear").topk(2, 1)
        labels = model.predict(images, size)
        assert labels.unique().numel() > 1
        assert ((labels == best.indices[:, 0]) | (best.values[:, 0] - best.values[:, 1] < 1e-4)).all()
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\) first"):
        model.train().predict(images)


def test_predict_never_makes_the_logits():
    model = build("fcn32s_alexnet")
    fill_bilinear_(model.upscore.weight)
    model.upscore.register_forward_hook(lambda *_: pytest.fail("the last deconvolution ran"))
    assert model.predict(torch.randn(1, 3, 33, 33)).shape == (1, 33, 33)
    assert model.predict(torch.randn(0, 3, 33, 33)).shape == (0, 33, 33)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, memory_format",
    [("fcn8s_vgg16", torch.contiguous_format), ("fcn16s_vgg16", torch.channels_last)],
    ids=["fcn8s", "fcn16s, channels_last"],
)
def test_labels_do_without_the_frame(name, memory_format, monkeypatch):
    model, images = build(name).to(memory_format=memory_format), torch.randn(2, 3, 33, 45)
    last = getattr(model, model.last)
    for fill, size in ((fill_bilinear_, None), (nn.init.normal_, None), (nn.init.normal_, 40)):
        fill(last.weight)
        want = upsample_argmax(model(images)["out"], size or (33, 45))
        assert want.unique().numel() > 1
        with monkeypatch.context() as patched:
            patched.setattr(nn.Conv2d, "forward", lambda conv, x: fail_if_framed(conv, x, images))
            labels = model.predict(images, size)
        assert (labels == want).float().mean() > 0.999  # but for ties within rounding
    assert model.predict(images[:0]).shape == (0, 33, 45)


def fail_if_framed(conv, x, images):
    assert conv.in_channels != 3 and x.shape[2] < images.shape[2], "the frame was convolved"
    return conv._conv_forward(x, conv.weight, conv.bias)


def test_the_larger_of_weight_and_map_is_not_copied():
    large, small = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 2, 1)
    nchw = torch.randn(1, 8, 9, 7)
    last = nchw.contiguous(memory_format=torch.channels_last)

    def format_of(x, layer):
        return is_channels_last(_beside_its_weight(layer, x))

    assert not format_of(last, large) and not format_of(nchw, large)
    large.to(memory_format=torch.channels_last)
    assert format_of(last, large) and format_of(nchw, large)
    for layer in (small, nn.ReLU(), nn.Sequential(large)):
        assert _beside_its_weight(layer, last) is last and _beside_its_weight(layer, nchw) is nchw


@torch.no_grad()
def test_labels_of_a_changed_network():
    model, images = build("fcn8s_vgg16"), torch.randn(1, 3, 33, 45)
    before = model.predict(images)
    model.conv4_3.register_forward_hook(lambda module, inputs, y: y * 2)
    model.fc6 = nn.Sequential(model.fc6)
    want = upsample_argmax(model(images)["out"], (33, 45))
    assert not torch.equal(before, want)
    assert (model.predict(images) == want).float().mean() > 0.999


def test_training():
    model = build("fcn8s_alexnet").train()
    images, target = torch.randn(2, 3, 20, 30), torch.randint(CLASSES, (2, 20, 30))
    F.cross_entropy(model(images)["out"], target).backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (key != "upscore8.weight")
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


def test_a_new_network():
    """Classes start from zero, upsampling bilinear, and only the last one is fixed."""
    model = models.fcn16s_vgg16(num_classes=3, fc_channels=4)
    assert not any(value.any() for key, value in model.state_dict().items() if key.startswith("score_"))
    assert is_bilinear(model.upscore2)
    assert is_bilinear(model.upscore16)
    assert [key for key, parameter in model.named_parameters() if not parameter.requires_grad] == ["upscore16.weight"]
    classifier = models.fcn_vgg16.vgg16(fc_channels=4)
    assert models.SkipFCN(classifier, 3, freeze_last=False).upscore.weight.requires_grad


def test_names_are_the_authors():
    convolutions = [f"conv{stage}_{k}" for stage, count in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, count + 1)]
    biased = [*convolutions, "fc6", "fc7", "score_fr", "score_pool3", "score_pool4"]
    names = {f"{layer}.{kind}" for layer in biased for kind in ("weight", "bias")}
    names |= {f"{layer}.weight" for layer in ("upscore2", "upscore_pool4", "upscore8")}
    with torch.device("meta"):
        states = [model().state_dict() for model in (models.fcn8s_vgg16, models.fcn8s_atonce_vgg16)]
        names32 = set(models.fcn32s_vgg16().state_dict())
        alexnet = models.fcn32s_alexnet().state_dict()
    assert names == set(states[0]) == set(states[1])
    assert states[0]["fc6.weight"].shape == (4096, 512, 7, 7)
    assert states[0]["upscore_pool4.weight"].shape == (21, 21, 4, 4)
    assert names32 - names == {"upscore.weight"}
    assert alexnet["conv2.weight"].shape == (256, 48, 5, 5)
    assert alexnet["upscore.weight"].shape == (21, 21, 63, 63)


def torchvision_classifier(name):
    """torchvision's, with random weights and hidden layers of few channels."""
    vision = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = getattr(vision, name)()
        linear = [k for k, layer in enumerate(theirs.classifier) if isinstance(layer, nn.Linear)]
        pooled = theirs.classifier[linear[0]].in_features
        for k, channels in zip(linear, (pooled, WIDTH, WIDTH), strict=True):
            theirs.classifier[k] = nn.Linear(channels, WIDTH)
    theirs = theirs.to_empty(device="cpu").eval()
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.normal_(parameter, 0, 0.1)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("name, first, padding", [("vgg16", "conv1_1", 1), ("alexnet", "conv1", 2)])
def test_torchvision_classifiers_load(name, first, padding):
    """With torchvision's padding, the one pixel of the hidden layers' map is torchvision's hidden layer."""
    theirs = torchvision_classifier(name)
    model = build(f"fcn16s_{name}", source="torchvision")
    before = {key: value.clone() for key, value in model.state_dict().items() if "score" in key}
    assert model.load_classifier(theirs.state_dict()) is model
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())

    x = torch.randn(1, 3, 224, 224)
    want = theirs.classifier[:6](theirs.avgpool(theirs.features(x)).flatten(1))
    getattr(model, first).padding = (padding, padding)
    for layer in model.classifier_layers:
        x = getattr(model, layer)(x)
    torch.testing.assert_close(x.flatten(1), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_torchvision_googlenet_loads():
    """Its own input transformation is part of our preprocessing."""
    vision = pytest.importorskip("torchvision.models")
    theirs = vision.GoogLeNet(num_classes=3, aux_logits=True, init_weights=False, transform_input=True).eval()
    model = build("fcn32s_googlenet", source="torchvision").load_classifier(theirs.state_dict())
    maps = []
    theirs.inception5b.register_forward_hook(lambda module, inputs, y: maps.append(y))
    photograph = torch.rand(1, 3, 64, 64)
    theirs(IMAGENET(photograph))
    x = model.preprocess(photograph)
    for layer in model.classifier_layers:
        x = getattr(model, layer)(x)
    torch.testing.assert_close(x, maps[0], rtol=1e-4, atol=1e-4)


def test_caffe_classifiers_load():
    """Under our names, with fully connected layers as matrices and the last layer left out."""
    model = build("fcn32s_alexnet")
    wanted = build("fcn32s_alexnet").state_dict()
    weights = {key: value + 1 for key, value in wanted.items() if "score" not in key}
    weights |= {key: weights[key].flatten(1) for key in ("fc6.weight", "fc7.weight")}
    weights |= {"fc8.weight": torch.zeros(1000, WIDTH), "fc8.bias": torch.zeros(1000)}
    model.load_classifier(weights)
    assert all(torch.equal(v, wanted[k] + ("score" not in k)) for k, v in model.state_dict().items())


def test_classifiers_that_do_not_fit():
    model = models.fcn32s_alexnet(fc_channels=4)
    with pytest.raises(ValueError, match="these weights are torchvision's, .* source='torchvision'"):
        model.load_classifier({"features.0.weight": torch.zeros(64, 3, 11, 11)})
    with pytest.raises(ValueError, match="12 missing"):
        model.load_classifier(
            {"conv1.weight": torch.zeros(96, 3, 11, 11), "conv1.bias": torch.zeros(96)} | {"fc": None}
        )
    with pytest.raises(ValueError, match="source must be one of caffe, torchvision, got 'keras'"):
        models.fcn32s_googlenet(source="keras")


def test_stages():
    """Each network starts with all that the coarser one has learnt, and its new skip says nothing yet."""
    coarser = build("fcn32s_alexnet")
    for name, new in (
        ("fcn16s_alexnet", ("upscore2", "score_pool2")),
        ("fcn8s_alexnet", ("upscore_pool2", "score_pool1")),
    ):
        model = models.get_model(name, num_classes=CLASSES, fc_channels=WIDTH)
        assert model.load_coarser(coarser.state_dict()) is model
        assert not getattr(model, new[1]).weight.any()
        assert is_bilinear(getattr(model, new[0]))
        assert is_bilinear(getattr(model, model.last))
        for key, value in model.state_dict().items():
            if key.split(".")[0] not in (*new, model.last):
                assert torch.equal(value, coarser.state_dict()[key]), key
        coarser = model
    with pytest.raises(ValueError, match="3 missing .*score_pool2.weight"):
        model.load_coarser(build("fcn32s_alexnet").state_dict())
    with pytest.raises(ValueError, match="no network coarser than FCN-32s"):
        build("fcn32s_alexnet").load_coarser({})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["caffe", "torchvision"])
def test_keywords_from_weights(name, source):
    widths = {} if "googlenet" in name else {"fc_channels": 7}
    with torch.device("meta"):
        model = models.get_model(name, num_classes=9, source=source, **widths)
        keywords = factory_arguments(model.state_dict())
        known = {} if source == "caffe" or "vgg16" in name else {"source": "torchvision"}
        assert keywords == {"num_classes": 9} | widths | known
        models.get_model(name, **keywords).load_state_dict(model.state_dict())


def test_preprocessing():
    photograph = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    in_0_to_1 = photograph / 255
    blue = photograph[:, 2].float() - 104.00699
    torch.testing.assert_close(CAFFE(photograph)[:, 0], blue)
    torch.testing.assert_close(CAFFE(in_0_to_1)[:, 0], blue)
    torch.testing.assert_close(IMAGENET(photograph)[:, 1], (in_0_to_1[:, 1] - 0.456) / 0.224)
    torch.testing.assert_close(SIGNED(photograph), 2 * in_0_to_1 - 1)
    with torch.device("meta"):
        assert models.fcn8s_vgg16().preprocess == CAFFE
        assert models.fcn8s_vgg16(source="torchvision").preprocess == IMAGENET
        assert models.fcn32s_googlenet(source="torchvision").preprocess == SIGNED
        assert models.fcn_resnet50().preprocess == IMAGENET


@torch.no_grad()
def test_graphs():
    model = build("fcn8s_alexnet")
    x = torch.randn(2, 3, 40, 50)
    want = model(x)["out"]
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(model, (torch.randn(3, 3, 40, 50),), dynamic_shapes={"x": batch}).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    traced = torch.jit.trace(model, x, strict=False)
    assert not any(
        "fastseg::" in str(g) or "fastseg.deconv2d" in str(g) for g in (exported.graph, traced.inlined_graph)
    )
    for graph in (exported, compiled, traced, torch.fx.symbolic_trace(model), copy.deepcopy(model)):
        torch.testing.assert_close(graph(x)["out"], want, rtol=1e-4, atol=1e-4)
