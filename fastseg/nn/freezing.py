"""Batch normalisation that keeps its statistics and its affine parameters while the rest of a network trains."""

from torch import nn


class _Frozen:
    def train(self, mode=True):
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """nn.BatchNorm1d that stays in eval mode. Made by `freeze_bn`."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """nn.BatchNorm2d that stays in eval mode. Made by `freeze_bn`."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """nn.BatchNorm3d that stays in eval mode. Made by `freeze_bn`."""


class FrozenSyncBatchNorm(_Frozen, nn.SyncBatchNorm):
    """nn.SyncBatchNorm that stays in eval mode. Made by `freeze_bn`."""


FROZEN = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
}


def freeze_bn(model):
    """Freeze every batch normalisation of a model, in place, and return the model.

    They normalise by the statistics they have, in training too and whatever model.train() says, and their weights and
    biases get no gradient: the second stage of DeepLabv3's training, at output stride 8 (arXiv 1706.05587, section
    4.1). State dicts and hooks stay as they are. There is no way back but a new model with this one's state dict.

    Do it after nn.SyncBatchNorm.convert_sync_batchnorm, before DistributedDataParallel and torch.compile, and give the
    optimizer the parameters that still require a gradient. Raises TypeError for a subclass of PyTorch's batch
    normalisations, and ValueError for one that keeps no statistics; then nothing is frozen.
    """
    norms = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, _Frozen):
            continue
        if type(module) not in FROZEN:
            wanted = ", ".join(kind.__name__ for kind in FROZEN)
            raise TypeError(f"freeze_bn: {name or 'model'} must be one of {wanted}, got {type(module).__name__}")
        if module.running_mean is None:
            raise ValueError(
                f"freeze_bn: {name or 'model'} must have running statistics, got track_running_stats=False"
            )
        norms[name] = module
    for norm in norms.values():
        norm.__class__ = FROZEN[type(norm)]
        norm.eval()
        for parameter in norm.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.grad = None
    return model
