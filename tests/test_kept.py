"""Tensors that outlive a call take nothing of it with them."""

import subprocess
import sys
import threading

import pytest
import torch

from fastseg.ops.atrous_conv2d_boxes import box_table
from fastseg.ops.atrous_conv2d_plan import Axis
from fastseg.ops.atrous_conv2d_tiles import part_table, tile_table
from fastseg.ops.kept import kept
from fastseg.ops.pyramid_conv2d_matrix import _kept

SIDE = Axis(9, 3, 1, 2, 2, 9)
TABLES = {
    "tiles": (tile_table, (1, 4, ((SIDE, SIDE, 8),), 32, "cpu")),
    "parts": (part_table, (1, SIDE, SIDE, 2, 32, "cpu")),
    "boxes": (box_table, (1, 4, ((SIDE, SIDE, 8),), 32, (1, 8, 16), "cpu")),
    "matrix": (_kept, ((1, 1), (9, 7), (3, 3), (1, 1), False, torch.float32, torch.device("cpu"))),
}


@pytest.mark.parametrize("make, arguments", TABLES.values(), ids=TABLES)
def test_made_apart(make, arguments):
    """From a thread's settings, among which is the pool that a CUDA graph's memory is of."""
    make.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        table = make(*arguments)
    assert not table.is_inference() and table.device.type == "cpu" and table.any()
    assert make(*arguments) is table


def test_the_thread_and_what_goes_wrong_in_it():
    assert kept(1)(threading.get_ident)() != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        kept(1)(lambda: 1 / 0)()


def test_threads_that_outlive_the_main_one():
    """As those of a server do, whose script ends with starting them."""
    script = """
import subprocess
import sys
import threading
from fastseg.ops.kept import kept

def work():
    threading.main_thread().join()
    print(kept(1)(lambda: "made")())

threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "made\n", done.stderr
