"""Inference on whole images and in windows, against loops that are written out in float64."""

import functools
import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from check import peak_memory
from torch import nn

from fastseg import models
from fastseg.inference import sliding, whole
from fastseg.models.fcn import FCNHead
from fastseg.models.resnet import ResNet

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5


class Net(nn.Module):
    """Logits that depend on where in the window a pixel is, and on which side: padding and flips show."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, CLASSES, 3, padding=1))
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return OrderedDict(out=4 * self.layers(x), aux=torch.zeros(1))


@pytest.fixture
def net():
    return Net().double().eval()


def resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def one_score(net, x, flip, average):
    def score(x):
        logits = net(x)["out"]
        return torch.softmax(logits, 1) if average == "softmax" else logits

    return (score(x) + score(x.flip(-1)).flip(-1)) / 2 if flip else score(x)


def written_out(net, image, scales, flip, average, crop=None, stride=2 / 3):
    """Probabilities (classes, H, W) of one image (3, H, W), window by window and pixel count by pixel count."""
    height, width = image.shape[1:]
    scores = []
    for scale in scales:
        x = resize(image[None], (max(1, round(height * scale)), max(1, round(width * scale))))
        h, w = x.shape[2:]
        if crop is None:
            scores.append(resize(one_score(net, x, flip, average), (height, width)))
            continue
        pad_h, pad_w = max(crop[0] - h, 0), max(crop[1] - w, 0)
        canvas = torch.zeros(1, 3, h + pad_h, w + pad_w, dtype=x.dtype)
        canvas[:, :, pad_h // 2 : pad_h // 2 + h, pad_w // 2 : pad_w // 2 + w] = x
        sums, count = 0, torch.zeros_like(canvas[:, :1])
        step_h, step_w = math.ceil(crop[0] * stride), math.ceil(crop[1] * stride)
        for i in range(math.ceil((canvas.shape[2] - crop[0]) / step_h) + 1):
            for j in range(math.ceil((canvas.shape[3] - crop[1]) / step_w) + 1):
                bottom = min(i * step_h + crop[0], canvas.shape[2])
                right = min(j * step_w + crop[1], canvas.shape[3])
                before = (right - crop[1], canvas.shape[3] - right, bottom - crop[0], canvas.shape[2] - bottom)
                window = canvas[:, :, bottom - crop[0] : bottom, right - crop[1] : right]
                sums = sums + F.pad(one_score(net, window, flip, average), before)
                count += F.pad(torch.ones_like(window[:, :1]), before)
        mean = (sums / count)[:, :, pad_h // 2 : pad_h // 2 + h, pad_w // 2 : pad_w // 2 + w]
        scores.append(resize(mean, (height, width)))
    mean = sum(scores) / len(scores)
    return (mean.softmax(1) if average == "logits" else mean)[0]


# name: size of the image, crop, stride
WINDOWS = {
    "one window": ((9, 13), (9, 13), 2 / 3),
    "thirds": ((30, 41), (12, 15), 2 / 3),
    "no overlap": ((24, 30), (12, 15), 1),
    "no overlap but at the ends": ((25, 31), (12, 15), 1.0),
    "every pixel": ((9, 8), (7, 5), 1e-9),
    "low image": ((5, 31), (12, 15), 2 / 3),
    "narrow image": ((30, 4), (12, 15), 0.5),
    "small image": ((4, 7), (12, 12), 2 / 3),
    "one pixel": ((1, 1), (1, 1), 1),
}


@torch.no_grad()
@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize(
    "how", [{}, {"flip": True}, {"flip": True, "scales": (0.5, 1, 1.3)}], ids=lambda how: "".join(how)
)
@pytest.mark.parametrize("case", WINDOWS)
def test_sliding(net, case, how, average):
    size, crop, stride = WINDOWS[case]
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = [
        written_out(net, x, how.get("scales", (1,)), how.get("flip", False), average, crop, stride) for x in images
    ]
    for batch in (1, 4):
        net.shapes.clear()
        how = how | {"average": average, "batch": batch}
        got = sliding(net, images, crop, stride, probabilities=True, **how)
        assert all(len(shape) == 4 and shape[0] <= batch and shape[2:] == crop for shape in net.shapes)
        torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-12)
        check_labels(sliding(net, images, crop, stride, **how), got)


def check_labels(labels, probabilities):
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, probabilities.argmax(1).to(torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("how", [{}, {"flip": True}, {"scales": (0.01, 2)}, {"flip": True, "scales": [1, 0.7]}])
def test_whole(net, how, average):
    images = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    wanted = [written_out(net, x, how.get("scales", (1,)), how.get("flip", False), average) for x in images]
    got = whole(net, images, average=average, probabilities=True, **how)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=1e-12)
    check_labels(whole(net, images, average=average, **how), got)


def test_the_cases_tell_ways_apart(net):
    """What the tests above compare is not the same for all ways."""
    image = torch.randn(1, 3, 30, 41, dtype=torch.float64)
    ways = [
        whole(net, image, probabilities=True),
        whole(net, image, flip=True, probabilities=True),
        whole(net, image, scales=(1, 0.5), probabilities=True),
        *(
            sliding(net, image, 15, stride, flip=flip, average=average, probabilities=True)
            for stride in (1, 0.5)
            for flip in (False, True)
            for average in ("softmax", "logits")
        ),
    ]
    for k, way in enumerate(ways):
        assert way.argmax(1).unique().numel() > 2
        assert all((way - other).abs().max() > 1e-3 for other in ways[:k])


@pytest.mark.parametrize("run", [whole, functools.partial(sliding, crop=12, batch=3)], ids=["whole", "sliding"])
class TestBoth:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_adds_up_in_float32(self, net, run, dtype):
        net, images = net.to(dtype), torch.randn(1, 3, 20, 30).to(dtype)
        got = run(net, images, probabilities=True)
        assert got.dtype == torch.float32
        torch.testing.assert_close(
            got, run(lambda x: net(x)["out"].float(), images, probabilities=True), rtol=0, atol=0
        )
        assert run(net, images).dtype == torch.uint8

    def test_a_function_and_many_classes(self, run):
        images = torch.randn(2, 300, 14, 15)
        labels = run(lambda x: x, images)
        assert labels.dtype == torch.int32
        assert torch.equal(labels, images.argmax(1).int())

    @pytest.mark.parametrize("average", ["softmax", "logits"])
    @pytest.mark.parametrize("scales", [(1,), (1, 1, 1)])
    def test_nothing_is_written_to(self, run, average, scales):
        images = torch.randn(2, 3, 14, 15)
        before = images.clone()
        run(lambda x: x, images, average=average, scales=scales, probabilities=True)
        assert torch.equal(images, before)

    def test_no_images(self, net, run):
        images = torch.zeros(0, 3, 20, 9, dtype=torch.float64)
        assert run(net, images, flip=True, scales=(1, 0.5)).shape == (0, 20, 9)
        assert run(net, images, probabilities=True).shape == (0, CLASSES, 20, 9)

    def test_memory_format(self, net, run):
        images = torch.randn(2, 3, 20, 30, dtype=torch.float64)
        wanted = run(net, images, flip=True, scales=(1, 0.7), probabilities=True)
        seen = []

        def model(x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return net(x)

        last = images.contiguous(memory_format=torch.channels_last)
        got = run(model, last, flip=True, scales=(1, 0.7), probabilities=True)
        assert all(seen)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

    def test_no_graph_is_recorded(self, run):
        images = torch.randn(1, 3, 20, 30, requires_grad=True)
        assert not run(lambda x: 2 * x, images, probabilities=True).requires_grad

    @pytest.mark.parametrize(
        "wrong, error, says",
        [
            ({"images": [1]}, TypeError, "images must be a floating-point tensor, got list"),
            ({"images": torch.zeros(1, 3, 9, 9, dtype=torch.uint8)}, TypeError, "images must be .*, got torch.uint8"),
            ({"images": torch.zeros(3, 9, 9)}, ValueError, r"images must be \(N, C, H, W\) .*, got \(3, 9, 9\)"),
            ({"images": torch.zeros(1, 3, 0, 9)}, ValueError, r"H, W >= 1, got \(1, 3, 0, 9\)"),
            ({"scales": ()}, ValueError, r"scales must be numbers over 0, at least one, got \(\)"),
            ({"scales": 1}, ValueError, "scales must be .*, got 1"),
            ({"scales": (1, 0)}, ValueError, r"scales must be .*, got \(1, 0\)"),
            ({"scales": (math.inf,)}, ValueError, r"scales must be .*, got \(inf,\)"),
            ({"average": "mean"}, ValueError, "average must be one of softmax, logits, got 'mean'"),
            ({"model": None}, TypeError, "model must be a module or a function, got NoneType"),
            ({"model": nn.Identity()}, RuntimeError, r"training mode; call model\.eval\(\) first"),
            ({"model": lambda x: 1}, ValueError, r"logits \(1, classes, 12, 12\) of images \(1, 3, 12, 12\), got int"),
            ({"model": lambda x: x[..., ::2]}, ValueError, r"got \(1, 3, 12, 6\)"),
            ({"model": lambda x: x[..., ::2, :]}, ValueError, r"got \(1, 3, 6, 12\)"),
            ({"model": lambda x: x[0]}, ValueError, r"got \(3, 12, 12\)"),
            ({"model": lambda x: x.repeat(2, 1, 1, 1)}, ValueError, r"got \(2, 3, 12, 12\)"),
        ],
    )
    def test_wrong_arguments(self, run, wrong, error, says):
        name = "whole" if run is whole else "sliding"
        with pytest.raises(error, match=f"^{name}: .*{says}"):
            run(**{"model": lambda x: x, "images": torch.zeros(1, 3, 12, 12)} | wrong)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"crop": 0}, "crop must be an int or two, .*, got 0"),
        ({"crop": 9.5}, "crop must be .*, got 9.5"),
        ({"crop": (9, 9, 9)}, r"crop must be .*, got \(9, 9, 9\)"),
        ({"stride": 0}, "stride must be .* a share of crop, got 0"),
        ({"stride": 300}, "stride must be .*, got 300"),
        ({"stride": "1"}, "stride must be .*, got '1'"),
        ({"batch": 0}, "batch must be an int from 1 on, got 0"),
        ({"batch": 2.0}, "batch must be an int from 1 on, got 2.0"),
    ],
)
def test_wrong_windows(wrong, says):
    with pytest.raises(ValueError, match=f"^sliding: {says}"):
        sliding(lambda x: x, torch.zeros(1, 3, 9, 9), **wrong)


@pytest.mark.parametrize(
    "crop, stride, starts",
    [(473, 2 / 3, [0, 316, 551]), (769, 513 / 769, [0, 255]), (100, 0.07, list(range(0, 925, 7)))],
)
def test_windows_start_as_the_authors_do(crop, stride, starts):
    """Rounded up to pixels, but not for a rounding error of the share."""
    seen = []
    position = torch.arange(1024.0).expand(1, 2, 1, 1024)
    sliding(lambda x: seen.append(int(x[0, 0, 0, 0])) or x, position, (1, crop), stride)
    assert seen == starts


def test_progress(net):
    images, calls = torch.randn(2, 3, 30, 41, dtype=torch.float64), []
    sliding(net, images, 15, batch=4, flip=True, scales=(1, 0.5), progress=lambda *call: calls.append(call))
    # 10 pixels from window to window: 3 by 4 of them, and at half the size 1 by 2.
    assert calls == [(4, 28), (8, 28), (12, 28), (14, 28), (18, 28), (22, 28), (26, 28), (28, 28)]


def test_memory_does_not_grow_with_the_windows():
    """25 windows, each a quarter of the image: all of them would take 6 times what the image's scores take."""
    image, classes = torch.randn(1, 3, 256, 256), 64

    def model(x):
        return x[:, :1].expand(-1, classes, -1, -1) * 2

    scores = 4 * classes * 256 * 256
    sliding(model, image, 128, 0.25)
    used = peak_memory("cpu", lambda: sliding(model, image, 128, 0.25))
    assert used < 4 * scores  # the sum, its quotient, and a window's logits and probabilities, each a quarter


@torch.no_grad()
def test_a_network():
    """One window, as large as the image, gives what the network gives."""
    model = models.Segmenter(ResNet((1, 1, 1, 1)), FCNHead(2048, CLASSES), FCNHead(1024, CLASSES)).eval()
    images = torch.randn(2, 3, 41, 33)
    probabilities = model(images)["out"].softmax(1)
    assert probabilities.argmax(1).unique().numel() > 1
    for run in (whole, functools.partial(sliding, crop=(41, 33), batch=2)):
        torch.testing.assert_close(run(model, images, probabilities=True), probabilities, rtol=1e-4, atol=1e-5)
        best = probabilities.topk(2, 1)
        ties = best.values[:, 0] - best.values[:, 1] < 1e-5
        assert ((run(model, images) == model.predict(images)) | ties).all()
