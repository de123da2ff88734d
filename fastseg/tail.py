"""Labels and losses of a model that is not ours, from its low-resolution logits.

A model returns logits at the size of the image; `predict` and `loss` call its parts up to the logits before that, of
models they know: those of fastseg.models, and torchvision's, segmentation_models_pytorch's, mmsegmentation's,
hszhao/semseg's and VainF's, patched or not. Of any other model they take the logits that it returns, of whatever size,
and are right but not as fast.
"""

from collections import OrderedDict

import torch

from fastseg.models.segmenter import Network
from fastseg.nn.watched import is_plain, stock_class
from fastseg.ops import upsample_argmax, upsample_cross_entropy
from fastseg.patches.registry import LOGITS, qualified, why_not


@torch.no_grad()
def predict(model, x, size=None, *, align_corners=None):
    """Images (N, 3, H, W) -> labels (N, H, W), or at `size` = (height, width) or one int for both.

    model          in eval mode; it returns logits (N, C, h, w), or a dict with them as "out", or an object with them as
                   `logits`, such as those of transformers
    align_corners  of the interpolation to that size; None: as the model does, or False where that is not known

    Labels are uint8 up to 256 classes, else int32, from one interpolation of the logits. Raises RuntimeError in
    training mode, ValueError for logits of one class.
    """
    if model.training:
        raise RuntimeError("predict: the model is in training mode; call model.eval() first")
    logits, corners = _logits(model, x, aux=False)
    if logits["out"].shape[1] == 1:
        raise ValueError("predict: wanted logits of two classes or more, got one; compare the model's output with 0")
    size = x.shape[-2:] if size is None else size
    return upsample_argmax(logits["out"], size, corners if align_corners is None else align_corners)


def loss(
    model,
    target,
    images=None,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    aux_weight=0.4,
    align_corners=None,
):
    """Cross-entropy of a model's logits, interpolated to the target without doing so, and of its auxiliary logits.

    model          called with `images` (N, 3, H, W); or logits (N, C, h, w), or a model's output with them as in
                   `predict`, without images
    target         classes (N, H, W)
    aux_weight     of the loss of "aux", where there is such a head or output; 0: without
    align_corners  of the interpolation; None: as the model does, or False where that is not known

    Others are F.cross_entropy's. A model in DistributedDataParallel or torch.compile is called as a whole, as these
    must see the call: its logits come at the size that it returns.
    """
    if isinstance(model, torch.nn.Module):
        if images is None:
            raise TypeError("loss: a model needs images")
        logits, corners = _logits(model, images, aux=aux_weight != 0)
    elif images is not None:
        raise TypeError(f"loss: images are for a model, got {type(model).__name__}")
    else:
        logits, corners = _named(model), False
    corners = corners if align_corners is None else align_corners
    how = weight, ignore_index, reduction, label_smoothing, corners
    result = upsample_cross_entropy(logits["out"], target, *how)
    if aux_weight and "aux" in logits:
        result = result + aux_weight * upsample_cross_entropy(logits["aux"], target, *how)
    return result


def _logits(model, x, aux):
    """({"out": logits, "aux": ...}, align_corners), as small as the model makes them."""
    if isinstance(model, Network):
        return model.heads(x, aux), model.align_corners
    known = LOGITS.get(qualified(type(model)))
    if known is not None and is_plain(model, (stock_class(model),)) and why_not(stock_class(model)) is None:
        found = known(model, x, aux)
        if found is not None:
            return found
    return _named(model(x)), bool(getattr(model, "align_corners", False))


def _named(output):
    """A model's output as {"out": logits}, with "aux" if there is."""
    if isinstance(output, torch.Tensor):
        return OrderedDict(out=output)
    if hasattr(output, "logits"):
        return OrderedDict(out=output.logits)
    if isinstance(output, dict) and "out" in output:
        return OrderedDict((name, output[name]) for name in ("out", "aux") if name in output)
    raise TypeError(f'wanted logits, or a dict with "out", or an object with `logits`, got {type(output).__name__}')
