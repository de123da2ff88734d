"""A step of training of whole networks, loss and gradients, against plain PyTorch with the same weights.

Both have the auxiliary head. Dropout is off: it would draw other numbers in each of them. Residual branches start
small, as they commonly do: from equal ones fifty layers make so much of each rounding that bfloat16's gradients are
noise, of which no check can tell whether they are right.
"""

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastseg.bench import heads, stock
from fastseg.bench.channels import in_either_format
from fastseg.bench.passes import TRAINING_STEP
from fastseg.bench.values import mean_judge, value_judge
from fastseg.bench.verdict import worst
from fastseg.nn import AuxiliaryLoss, UpsampleCrossEntropyLoss

TITLE = "training: a step without the optimiser (peer: torchvision's network, or PSPNet with its concatenation)"
SLOW_TO_COMPILE = True
PASSES = (TRAINING_STEP,)
AUX_WEIGHT = 0.4
BRANCH = 0.1  # weight of the last batch normalisation of a residual branch


@dataclass(frozen=True)
class Case:
    network: str
    batch: int
    side: int
    quick: bool = False

    @property
    def name(self):
        return self.network + (f", batch {self.batch}" if self.batch > 2 else "")

    @property
    def images(self):
        return self.batch, 3, self.side, self.side

    @property
    def detail(self):
        return "x".join(map(str, self.images))


CASES = tuple(
    Case(network, batch, side)
    for network in ("fcn_resnet50", "pspnet_resnet50", "deeplabv3_resnet50")
    for batch, side in ((2, 257), (16, 513))
)


def missing():
    return None if importlib.util.find_spec("torchvision") else "the peer, torchvision, is not installed"


def fits(case, device):
    return device.type != "cpu" or case.batch == 2


class Loss(torch.nn.Module):
    """Images and targets -> the loss of a network and its auxiliary head."""

    def __init__(self, network, criterion, **how):
        super().__init__()
        self.network, self.criterion, self.how = network, AuxiliaryLoss(criterion, AUX_WEIGHT), how
        for module in network.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if hasattr(module, "bn3"):
                torch.nn.init.constant_(module.bn3.weight, BRANCH)

    def forward(self, x, target):
        """In float32, in which ours gives it whatever the dtype; in float64 if all is."""
        loss = self.criterion(self.network(x, **self.how), target)
        return loss.to(torch.promote_types(loss.dtype, torch.float32))


def inputs(case, device, dtype):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(case.images, generator=random)
    like = heads.Case("", (case.batch, stock.CLASSES, case.side // 8, case.side // 8), (case.side, case.side))
    return images.to(device, dtype), heads.targets(like, random).to(device)


def ours(case):
    network = stock.ours(case.network, aux_loss=True)
    criterion = UpsampleCrossEntropyLoss(ignore_index=heads.IGNORED, align_corners=network.align_corners)
    return Loss(network, criterion, upsample=False)


def peer(case, reduction="mean"):
    criterion = torch.nn.CrossEntropyLoss(ignore_index=heads.IGNORED, reduction=reduction)
    return Loss(stock.stock(case.network, aux_loss=True), criterion)


def checker(case, inputs):
    """Of the loss, and of all gradients as one vector."""
    x, target = inputs
    count = (target != heads.IGNORED).sum().item()

    @functools.cache
    def step(dtype, memory_format):
        """(losses of the pixels in float64, gradients of their mean)"""
        network = peer(case, "none").to(x.device, dtype, memory_format=memory_format).train()
        losses = network(x.to(dtype, memory_format=memory_format), target)
        gradients = torch.autograd.grad(losses.sum() / count, list(network.parameters()))
        return losses.detach().double(), _vector(gradients)

    def judge_in(memory_format):
        truth, own = step(torch.float64, torch.contiguous_format), step(x.dtype, memory_format)
        error = (own[0] - truth[0]).abs().sum().item() / count
        of_loss = mean_judge(truth[0].sum().item() / count, error, count, x.dtype)
        of_gradient = value_judge(1, truth[1][None].__getitem__, own[1][None].__getitem__)
        return lambda result: worst((of_loss(result[0]), of_gradient(_vector(result[1])[None])))

    return in_either_format(judge_in)


def _vector(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


@functools.cache
def _flops(case):
    with FlopCounterMode(display=False) as counter:
        network = peer(case).to("meta").train()
        loss = network(torch.empty(case.images, device="meta"), torch.zeros(case.images, device="meta")[:, 0].long())
        loss.backward()
    return counter.get_total_flops()


def flops(case, which):
    """Of the plain network, counted on the meta device; padding counts like pixels."""
    return _flops(case)
