"""What the networks have in common: how logits leave; and most of them, a backbone under one or two heads."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from fastseg.models.preprocess import IMAGENET, Preprocess
from fastseg.ops import upsample_argmax, upsample_bilinear
from fastseg.ops.recording import is_recording

FORM = "fastseg"  # in the metadata of a state dict


def upsampled(logits, size, align_corners):
    """Logits (N, C, h, w) -> (N, C, H, W), bilinearly."""
    if is_recording(logits):
        return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return upsample_bilinear(logits, size, align_corners)


def _with_form(model, state_dict, prefix, local_metadata):
    """Beside what PyTorch notes of each module in a state dict, which torch.save keeps: names and weights stay."""
    if model.family is not None:
        said = {"family": model.family, **model.form, "align_corners": model.align_corners}  # which may be set later
        if isinstance(model.preprocess, Preprocess):
            said["preprocess"] = tuple(model.preprocess)
        local_metadata[FORM] = said


class Network(nn.Module):
    """A segmentation network, whose logits come at the resolution of its features. A subclass has

    heads(x, aux)  images (N, 3, H, W) -> OrderedDict of logits (N, C, h, w): "out"; "aux" if it has such a head and aux
    num_classes    C
    align_corners  of the interpolation to the image's size
    family, form   a name in fastseg.models.sources, and the keywords that the names and shapes of its weights do not
                   tell, for state dicts to say what these were trained in; or None

    Train with `model(x, upsample=False)` and fastseg.nn.UpsampleCrossEntropyLoss, label with `model.eval().predict(x)`:
    neither builds the logits at full size. `model(x)` does, for any other loss.
    """

    align_corners = False
    family = form = None
    preprocess = IMAGENET  # makes such images of RGB, as published weights want them

    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(_with_form)

    def forward(self, x, upsample=True):
        """Images (N, 3, H, W) -> OrderedDict of logits (N, C, H, W): "out"; "aux" with an auxiliary head.

        With upsample=False the logits are (N, C, h, w), at the resolution of their features.
        """
        logits = self.heads(x, aux=True)
        if upsample is not False:  # torch.fx puts a stand-in for the argument, which has no truth value
            for name, low in logits.items():
                logits[name] = upsampled(low, x.shape[-2:], self.align_corners)
        return logits

    def logits(self, x):
        """Images (N, 3, H, W) -> logits (N, C, h, w) of the main head, at the resolution of its features."""
        return self.heads(x, aux=False)["out"]

    @torch.no_grad()
    def predict(self, x, size=None):
        """Images (N, 3, H, W) -> labels (N, H, W), or at `size` = (height, width) or one int for both.

        Labels are uint8 up to 256 classes, else int32. They come from the logits in one interpolation: there
        is no need to label at the network's size and resize. Raises RuntimeError in training mode.
        """
        if self.training:
            raise RuntimeError("predict: the model is in training mode; call model.eval() first")
        size = x.shape[-2:] if size is None else size
        x = x.contiguous(memory_format=torch.channels_last)  # in which convolutions are fastest and need least memory
        return upsample_argmax(self.logits(x), size, self.align_corners)


class Segmenter(Network):
    """A network of a backbone and one or two heads.

    backbone        (N, 3, H, W) -> {"out": features, "aux": features}, the latter unless called with aux=False
    classifier      features -> logits (N, C, h, w)
    aux_classifier  the same for the auxiliary loss, or None
    """

    def __init__(self, backbone, classifier, aux_classifier=None):
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.num_classes = classifier[-1].out_channels

    def heads(self, x, aux):
        aux = aux and self.aux_classifier is not None
        features = self.backbone(x, aux=aux)
        logits = OrderedDict(out=self.classifier(features["out"]))
        if aux:
            logits["aux"] = self.aux_classifier(features["aux"])
        return logits
