"""The check of label maps: a label may differ from the true argmax only where rounding can decide."""

from fastseg.bench.verdict import Verdict


def label_judge(count, exact, own):
    """A judge of labels (N, H, W) for `count` images.

    exact(i), own(i): the full-size logits (C, H, W) of image i in float64, and as PyTorch computes them in
    the inputs' dtype. Their largest difference is PyTorch's own error e. Two classes can swap if each is off
    by e, and 1.5 times that is allowed: a label stands if its float64 logit is within 2 * 1.5 * e of the best.

    One image at a time is held at full size.
    """
    best, error = [], 0.0
    for i in range(count):
        truth = exact(i)
        error = max(error, (own(i).double() - truth).abs().max().item())
        best.append(truth.argmax(0))
        classes = truth.shape[0]
    allowed = 2 * 1.5 * error

    def judge(labels):
        want = (count, *best[0].shape)
        if tuple(labels.shape) != want:
            return Verdict(None, f"shape {tuple(labels.shape)}, wanted {want}")
        labels = labels.long()
        if labels.numel() and not 0 <= labels.min() <= labels.max() < classes:
            return Verdict(None, f"labels from {labels.min()} to {labels.max()}, but there are {classes} classes")
        share = sum(int((labels[i] != best[i]).sum()) for i in range(count)) / max(labels.numel(), 1)
        for i in range(count):
            differs = labels[i] != best[i]
            if not differs.any():
                continue
            truth = exact(i)
            gap = (truth.amax(0) - truth.gather(0, labels[i][None])[0])[differs]
            bad = int((~(gap <= allowed)).sum())  # so NaN is bad
            if bad:
                why = f"{bad} labels of image {i} off by up to {gap.max():.2g}, rounding explains {allowed:.2g}"
                return Verdict(share, why)
        return Verdict(share)

    return judge
