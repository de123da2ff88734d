"""FCN-32s, FCN-16s and FCN-8s: a classifier made convolutional, deconvolutions and skips (arXiv 1411.4038, 1605.06211).

Names of layers are those of the authors' Caffe networks and of pytorch-fcn, whose weights load as they are. Factories
are in fcn_vgg16.py, fcn_alexnet.py and fcn_googlenet.py.
"""

from collections import OrderedDict

import torch
from torch import nn

from fastseg.models.bilinear_deconv import is_bilinear, labels_through
from fastseg.models.checkpoints import load_weights
from fastseg.models.classifiers import classifier_weights
from fastseg.models.constant_frame import framed_maps, may_leave_out_the_frame
from fastseg.models.coordinates import Coordinates, along, deconvolution, upsampling
from fastseg.models.preprocess import CAFFE
from fastseg.nn import Deconv2d
from fastseg.ops import upsample_argmax
from fastseg.ops.layout import in_format, is_channels_last, memory_format

STRIDE = 32  # of a classifier's last map
LAST = ("upscore", "upscore16", "upscore8")  # the last deconvolution, by the number of skips
AT_ONCE_SCALES = (0.01, 0.0001)  # of the pooled maps, so that all layers can learn at one rate from the start


@torch.fx.wrap
def _common(first, shape, kernel, stride, skip_shape):
    """The crop of a deconvolution's output, from pixel (first, first) on, to the pixels that a skip has too."""
    height, width = (
        min((n - 1) * s + k - first, m) for n, k, s, m in zip(shape[-2:], kernel, stride, skip_shape[-2:], strict=True)
    )
    return first, first, height, width


def _with_skip(deconv, x, skip, offset):
    """deconv(x) + skip on the pixels that both have; pixel 0 of skip is pixel `offset` of deconv(x)."""
    first = max(offset, 0)
    skip = skip[..., first - offset :, first - offset :]
    crop = _common(first, x.shape, deconv.kernel_size, deconv.stride, skip.shape)
    return deconv(x, crop=crop, skip=skip[..., : crop[2], : crop[3]])


def _beside_its_weight(layer, x):
    """x in the memory format of a layer's weight, where that is the larger of both: a convolution of x in channels_last
    copies a weight that is not. fc6's takes half as long to copy as to multiply."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != x.dim() or weight.numel() <= x.numel():
        return x
    channels_last = is_channels_last(x)
    fits = weight.is_contiguous(memory_format=memory_format(channels_last))
    return x if fits else in_format(x, not channels_last)


class SkipFCN(nn.Module):
    """A fully convolutional network with 0, 1 or 2 skips from pooled maps: FCN-32s, FCN-16s, FCN-8s.

    classifier   what vgg16(), alexnet() or googlenet() returned
    at_once      scales the pooled maps, as networks do that were trained in one go rather than from one another
    freeze_last  keeps the last deconvolution bilinear in training, as the paper does; the others learn from there

    Classes start from zeros, so that a new skip changes nothing at first. Labels and logits have the size of the image,
    whatever that is; `preprocess` makes such an image of RGB. Crops follow from the layers' coordinates.
    """

    def __init__(self, classifier, num_classes=21, skips=0, at_once=False, freeze_last=True):
        super().__init__()
        self.num_classes, self.skips = num_classes, skips
        self.preprocess, self.smallest = classifier.preprocess, classifier.smallest
        self.torchvision_names = classifier.torchvision_names
        self.classifier_layers, self.framed = tuple(classifier.layers), classifier.framed
        position, positions = Coordinates(), {}
        for name, layer in classifier.layers.items():
            self.add_module(name, layer)
            position = positions[name] = position.then(along(layer))

        self.score_fr = nn.Conv2d(classifier.channels, num_classes, 1)
        self.steps, stride, deconv = [], STRIDE, "upscore2"  # steps: deconvolution, skip, offset, scale
        for (name, channels), scale in zip(list(classifier.skips.items())[:skips], AT_ONCE_SCALES, strict=False):
            kernel, offset = upsampling(position, 2, positions[name])
            self.add_module(deconv, self._deconv(kernel, 2))
            self.add_module(f"score_{name}", nn.Conv2d(channels, num_classes, 1))
            self.steps.append((deconv, name, offset, scale if at_once else 1))
            position = positions[name] if offset >= 0 else position.then(deconvolution(kernel, 2))
            deconv, stride = f"upscore_{name}", stride // 2
        kernel, self.offset = upsampling(position, stride, Coordinates())
        self.last = LAST[skips]
        self.add_module(self.last, self._deconv(kernel, stride, freeze_last))
        self._initialise()

    def _deconv(self, kernel, stride, freeze=False):
        classes = self.num_classes
        return Deconv2d(classes, classes, kernel, stride, bias=False, init="bilinear", freeze=freeze)

    def _initialise(self):
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                if name.startswith("score_"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x):
        """Images (N, 3, H, W) -> OrderedDict(out=logits (N, num_classes, H, W))."""
        return OrderedDict(out=self._logits(self.maps(x), (x.shape[-2], x.shape[-1])))

    def _logits(self, maps, sides):
        return getattr(self, self.last)(self.scores(maps), crop=(self.offset, self.offset, *sides))

    def maps(self, x):
        """Images (N, 3, H, W) -> {layer: map}, of the skips' layers and the classifier's last. Raises ValueError for an
        image that is too small."""
        self._check_size(x)
        return self._maps(x, self.classifier_layers)

    def _check_size(self, x):
        if self.smallest > 1 and min(x.shape[-2:]) < self.smallest:
            wanted, got = (f"{a} by {b}" for a, b in ((self.smallest, self.smallest), x.shape[-2:]))
            raise ValueError(f"SkipFCN: images must be at least {wanted} pixels for this classifier, got {got}")

    @property
    def _skipped(self):
        return {name for _, name, _, _ in self.steps}

    def _maps(self, x, names, prepared=lambda layer, x: x):
        kept, maps = self._skipped | {self.classifier_layers[-1]}, {}
        for name in names:
            layer = getattr(self, name)
            x = layer(prepared(layer, x))
            if name in kept:
                maps[name] = x
        return maps

    def _maps_for_labels(self, x):
        """As maps, for inference: a constant frame around images is computed once for all of them, and small."""
        self._check_size(x)
        names, maps = self.classifier_layers, {}
        end = names.index(self.framed) + 1 if self.framed else 0
        layers = {name: getattr(self, name) for name in names[:end]}
        if may_leave_out_the_frame(list(layers.values())):
            maps = framed_maps(layers, x, self._skipped | {self.framed})
            x, names = maps[self.framed], names[end:]
        return maps | self._maps(x, names, _beside_its_weight)

    def scores(self, maps):
        """{layer: map} -> (N, num_classes, h, w) at the resolution of the finest skip, reaching beyond the image."""
        x = self.score_fr(maps[self.classifier_layers[-1]])
        for deconv, name, offset, scale in self.steps:
            skip = maps[name] if scale == 1 else maps[name] * scale
            x = _with_skip(getattr(self, deconv), x, getattr(self, f"score_{name}")(skip), offset)
        return x

    @torch.no_grad()
    def predict(self, x, size=None):
        """Images (N, 3, H, W) -> labels (N, H, W), or at `size` = (height, width) or one int for both.

        Labels are uint8 up to 256 classes, else int32. While the last deconvolution is bilinear, they come from the
        small scores, without the logits. Raises RuntimeError in training mode.
        """
        if self.training:
            raise RuntimeError("predict: the model is in training mode; call model.eval() first")
        x = x.contiguous(memory_format=torch.channels_last)  # in which convolutions are fastest
        sides = tuple(x.shape[-2:])
        size = sides if size is None else (size, size) if isinstance(size, int) else tuple(size)
        maps = self._maps_for_labels(x)
        if size == sides and is_bilinear(getattr(self, self.last)):
            return self.labels(self.scores(maps), sides)
        return upsample_argmax(self._logits(maps, sides), size)

    def labels(self, scores, sides):
        """Labels (N, H, W), sides = (H, W), of scores whose last deconvolution is bilinear."""
        last = getattr(self, self.last)
        return labels_through(scores, last.kernel_size[0], last.stride[0], self.offset, sides)

    def load_classifier(self, state_dict):
        """Starts from a classifier's ImageNet weights, torchvision's or under Caffe's names; classes stay as they are.

        Returns the model. Raises ValueError unless all layers are there and fit, as checkpoints.load_weights does.
        """
        if self.preprocess == CAFFE and any(name.startswith("features.") for name in state_dict):
            raise ValueError(
                "load_classifier: these weights are torchvision's, build the network with source='torchvision'"
            )
        own = self.state_dict()
        wanted = {name: tensor for name, tensor in own.items() if name.partition(".")[0] in self.classifier_layers}
        others = {name: tensor for name, tensor in own.items() if name not in wanted}
        return load_weights(self, others | classifier_weights(state_dict, self.torchvision_names, wanted))

    def load_coarser(self, state_dict):
        """Starts from the network with one skip fewer: FCN-16s from FCN-32s, FCN-8s from FCN-16s.

        The new skip stays as it is, zeros in a new network, so that training starts from the coarser one's labels.
        Returns the model. Raises ValueError unless everything else is there and fits.
        """
        if not self.steps:
            raise ValueError("load_coarser: there is no network coarser than FCN-32s")
        deconv, name, _, _ = self.steps[-1]
        new = (deconv, f"score_{name}", self.last)
        weights = {key: tensor for key, tensor in self.state_dict().items() if key.partition(".")[0] in new}
        coarser = LAST[self.skips - 1]
        shared = {key: tensor for key, tensor in state_dict.items() if key.partition(".")[0] != coarser}
        return load_weights(self, shared | weights)
