"""What a judge says of an output: how far off it is, and whether that is too far."""

from typing import NamedTuple


class Verdict(NamedTuple):
    error: float | None  # relative L2 error, of labels the share that differ; against float64; None: not comparable
    wrong: str | None = None  # why the output gets no number; None if it is right


def worst(verdicts):
    """Of several outputs: the largest error, and the first reason."""
    verdicts = list(verdicts)
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    return Verdict(max(errors, default=None), next((verdict.wrong for verdict in verdicts if verdict.wrong), None))
