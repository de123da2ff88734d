"""How good labels are: the four numbers of the FCN paper (arXiv 1411.4038, section 5), from a confusion matrix.

With n[i, j] the pixels of class i that were labelled j, t[i] = sum_j n[i, j] and C classes:
    pixel accuracy         sum_i n[i, i] / sum_i t[i]
    mean accuracy          1 / C  sum_i n[i, i] / t[i]
    mean IU                1 / C  sum_i IU[i],      IU[i] = n[i, i] / (t[i] + sum_j n[j, i] - n[i, i])
    frequency-weighted IU  sum_i t[i] IU[i] / sum_i t[i]
"""

import torch

ABSENT = ("nan", "zero")


class ConfusionMatrix:
    """Counts of pixels by true class and label, kept on a device: `counts` (C, C), int64.

    ignore_index  pixels with this target count for nothing; None: there are none

    >>> matrix = ConfusionMatrix(21)
    >>> matrix.update(labels=torch.zeros(2, 8, 8, dtype=torch.uint8), target=torch.zeros(2, 8, 8, dtype=torch.uint8))
    >>> matrix.scores()["pixel_accuracy"]
    1.0
    """

    def __init__(self, num_classes, ignore_index=255, device=None):
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes must be 1 or more, got {num_classes}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, labels, target):
        """Counts pixels of labels and target, both of one shape and any integer type, on the device of `counts`."""
        if labels.shape != target.shape:
            shapes = f"{tuple(labels.shape)} and {tuple(target.shape)}"
            raise ValueError(f"ConfusionMatrix: labels and target must have the same shape, got {shapes}")
        for name, tensor in (("labels", labels), ("target", target)):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                raise TypeError(f"ConfusionMatrix: {name} must be of integers, got {tensor.dtype}")
        labels, target = (tensor.to(self.counts.device, torch.int64).flatten() for tensor in (labels, target))
        if self.ignore_index is not None:
            kept = target != self.ignore_index
            labels, target = labels[kept], target[kept]
        for name, tensor in (("labels", labels), ("target", target)):
            wrong = tensor[(tensor < 0) | (tensor >= self.num_classes)]
            if wrong.numel():
                raise ValueError(
                    f"ConfusionMatrix: {name} must be classes from 0 to {self.num_classes - 1}, got {wrong[0].item()}"
                )
        cells = target * self.num_classes + labels
        self.counts += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.counts)

    def merge(self, other):
        """Adds the counts of another matrix, on any device, and returns this one."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"ConfusionMatrix: cannot merge {other.num_classes} classes into {self.num_classes}")
        self.counts += other.counts.to(self.counts.device)
        return self

    def all_reduce(self, group=None):
        """Adds up the counts of all processes of a torch.distributed group: all hold the sum. Returns this one.

        Once at the end: a second call would add up sums.
        """
        torch.distributed.all_reduce(self.counts, group=group)
        return self

    def iu(self):
        """(C,) float64: intersection over union of each class, nan if it is neither in targets nor in labels."""
        correct, true, labelled = self._sums()
        return correct / (true + labelled - correct)

    def accuracy(self):
        """(C,) float64: the share of each class's pixels that were labelled so, nan if it has none."""
        correct, true, _ = self._sums()
        return correct / true

    def scores(self, absent="nan"):
        """{"pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"}: floats in 0..1, nan without pixels.

        absent  "nan" leaves classes without a value out of the means, as the FCN authors do; "zero" counts them as 0
        """
        if absent not in ABSENT:
            raise ValueError(f"ConfusionMatrix: absent must be one of {', '.join(ABSENT)}, got {absent!r}")
        correct, true, _ = self._sums()
        iu, accuracy = self.iu(), self.accuracy()
        mean = torch.nanmean if absent == "nan" or not true.any() else lambda values: values.nan_to_num(0).mean()
        scores = {
            "pixel_accuracy": correct.sum() / true.sum(),
            "mean_accuracy": mean(accuracy),
            "mean_iu": mean(iu),
            "frequency_weighted_iu": (true * iu.nan_to_num(0)).sum() / true.sum(),
        }
        return {name: value.item() for name, value in scores.items()}

    def _sums(self):
        counts = self.counts.double()
        return counts.diagonal(), counts.sum(1), counts.sum(0)
