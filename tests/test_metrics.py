"""Scores against numbers worked out by hand and the authors' formulas written out."""

import doctest
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from fastseg import metrics
from fastseg.metrics import ConfusionMatrix

each_device = pytest.mark.parametrize("device", ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))


def test_by_hand():
    """Class 0: 2 of 3 right; class 1: 1 of 2; class 2 is nowhere; class 3 is a label but no target."""
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([[0, 0, 1], [1, 3, 0]]), torch.tensor([[0, 0, 0], [1, 1, 255]]))
    assert matrix.counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert matrix.iu().tolist() == pytest.approx([2 / 3, 1 / 3, math.nan, 0], nan_ok=True)
    assert matrix.accuracy().tolist() == pytest.approx([2 / 3, 1 / 2, math.nan, math.nan], nan_ok=True)
    expected = {
        "pixel_accuracy": 3 / 5,
        "mean_accuracy": (2 / 3 + 1 / 2) / 2,
        "mean_iu": (2 / 3 + 1 / 3 + 0) / 3,
        "frequency_weighted_iu": 3 / 5 * 2 / 3 + 2 / 5 * 1 / 3,
    }
    assert matrix.scores() == pytest.approx(expected)
    expected |= {"mean_accuracy": (2 / 3 + 1 / 2) / 4, "mean_iu": (2 / 3 + 1 / 3) / 4}
    assert matrix.scores(absent="zero") == pytest.approx(expected)


@each_device
def test_as_numpy(device):
    """Several updates in the dtypes that networks and data sets have; class 6 is absent."""
    target = torch.randint(6, (3, 2, 17, 23))
    labels = torch.where(torch.rand(target.shape) < 0.6, target, torch.randint(6, target.shape))
    target[torch.rand(target.shape) < 0.1] = 99
    matrix = ConfusionMatrix(7, ignore_index=99, device=device)
    for one, truth, dtype in zip(labels, target, (torch.uint8, torch.int32, torch.int64), strict=True):
        matrix.update(one.to(device, torch.uint8), truth.to(device, dtype))

    t, p = target.numpy(), labels.numpy()
    n = np.array([[((t == i) & (p == j)).sum() for j in range(7)] for i in range(7)], dtype=np.float64)
    assert (matrix.counts.cpu().numpy() == n).all()
    iu = n.diagonal()[:6] / (n.sum(1) + n.sum(0) - n.diagonal())[:6]
    scores = matrix.scores()
    assert scores["pixel_accuracy"] == pytest.approx(n.diagonal().sum() / n.sum())
    assert scores["mean_accuracy"] == pytest.approx((n.diagonal()[:6] / n.sum(1)[:6]).mean())
    assert scores["mean_iu"] == pytest.approx(iu.mean())
    assert scores["frequency_weighted_iu"] == pytest.approx((n.sum(1)[:6] * iu).sum() / n.sum())


def test_perfect_and_empty():
    matrix = ConfusionMatrix(3)
    assert all(math.isnan(value) for absent in metrics.ABSENT for value in matrix.scores(absent).values())
    matrix.update(torch.zeros(0, 4, 4).long(), torch.zeros(0, 4, 4).long())
    matrix.update(torch.ones(1, 4, 4).byte(), torch.full((1, 4, 4), 255).byte())  # all ignored
    assert not matrix.counts.any()
    matrix.update(torch.arange(3), torch.arange(3))
    assert set(matrix.scores().values()) == {1.0}


def test_nothing_is_ignored_unless_asked():
    matrix = ConfusionMatrix(256, ignore_index=None)
    matrix.update(torch.tensor([255]), torch.tensor([255]))
    assert matrix.counts[255, 255] == 1


def test_merge():
    target, labels = torch.randint(4, (2, 100)), torch.randint(4, (2, 100))
    whole, first, second = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(labels, target)
    first.update(labels[0], target[0])
    second.update(labels[1], target[1])
    assert first.merge(second) is first
    assert torch.equal(first.counts, whole.counts)
    with pytest.raises(ValueError, match="cannot merge 5 classes into 4"):
        first.merge(ConfusionMatrix(5))


# Its arguments: rank, a file to meet in, and what the name of the result begins with.
COUNT_IN_A_PROCESS = """
import sys
import torch
from fastseg.metrics import ConfusionMatrix

rank, store, results = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
matrix = ConfusionMatrix(3)
matrix.update(torch.tensor([0, 1]), torch.tensor([0, 2 * rank]))
torch.save(matrix.all_reduce().counts, f"{results}{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_all_reduce(tmp_path):
    command = [sys.executable, "-c", COUNT_IN_A_PROCESS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen([*command, str(rank), tmp_path / "store", tmp_path / "counts"], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for rank in range(2):
        assert torch.load(tmp_path / f"counts{rank}").tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "labels, target, error, words",
    [
        (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), ValueError, r"same shape, got \(2, 3\) and \(3, 2\)"),
        (torch.zeros(2), torch.zeros(2).long(), TypeError, "labels must be of integers, got torch.float32"),
        (torch.tensor([4]), torch.tensor([0]), ValueError, "labels must be classes from 0 to 3, got 4"),
        (torch.tensor([0]), torch.tensor([4]), ValueError, "target must be classes from 0 to 3, got 4"),
        (torch.tensor([0]), torch.tensor([-1]), ValueError, "target must be classes from 0 to 3, got -1"),
    ],
)
def test_wrong_input(labels, target, error, words):
    matrix = ConfusionMatrix(4)
    with pytest.raises(error, match=words):
        matrix.update(labels, target)
    assert not matrix.counts.any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_classes must be 1 or more, got 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="absent must be one of nan, zero, got 'one'"):
        ConfusionMatrix(2).scores("one")


def test_example():
    test = doctest.DocTestFinder().find(ConfusionMatrix)[0]
    assert doctest.DocTestRunner().run(test).failed == 0
