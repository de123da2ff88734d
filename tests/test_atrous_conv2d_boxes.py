"""The table of boxes of atrous_conv2d's kernel for sm_90, and that kernel itself, run in Python.

No GPU is needed: the first tests walk the table by brute force. The others run the kernel's own functions as Python, a
thread for each group of its warps, on stand-ins for what Gluon gives them: copies that arrive late, products that read
shared memory only when they are waited for. So they show what barriers that are wrong, or left out, would do. What the
compiler makes of the kernel is judged in test_compiled_kernels.py.
"""

import itertools
import threading
import time
import types

import pytest
import torch
import torch.nn.functional as F

from fastseg.ops.atrous_conv2d_boxes import BOX_FIELDS, box_table, boxes, common_box, work
from fastseg.ops.atrous_conv2d_plan import TILE, axes, branches, input_of, outputs_of
from fastseg.ops.atrous_conv2d_tiles import forward, packed, pyramid

pytest.importorskip("triton")
from triton.experimental.gluon.language import NVMMASharedLayout  # noqa: E402

from fastseg.kernels import atrous_conv2d_hopper  # noqa: E402

FUNCTIONS = {  # as Python
    name: getattr(atrous_conv2d_hopper, name).fn
    for name in ("multiply", "load_boxes", "halves", "store", "step_of", "weight_row")
}
# name: batch, height, width, (kernel, rate) of each branch
CASES = {
    "one pixel": (1, 1, 1, [(1, 1)]),
    "taps of padding only": (1, 5, 6, [(3, 7)]),
    "ragged boxes": (3, 13, 11, [(3, 4)]),
    "boxes of many images": (20, 5, 5, [(3, 2)]),
    "even kernel, no padding": (2, 9, 9, [(2, 3)]),
    "branches": (2, 9, 8, [(1, 1), (3, 2), (3, 5), (3, 20)]),
}
BOXES = [(1, 8, 16), (8, 4, 4), (1, 1, 128), (128, 1, 1), (2, 64, 1)]


def sides_of(height, width, kernels):
    return tuple(axes((height, width), (k, k), (1, 1), (d * (k // 2) * (k % 2),) * 2, (d, d)) for k, d in kernels)


def rows_of(table):
    return [dict(zip(BOX_FIELDS, row, strict=True)) for row in table.tolist()]


@pytest.mark.parametrize("box", [None, *BOXES], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_boxes_cover_every_output_once_with_every_tap_it_needs(name, box):
    batch, height, width, kernels = CASES[name]
    channels, outputs, block = 64, 72, 64
    sides = sides_of(height, width, kernels)
    box = box or common_box(batch, sides)
    assert box[0] * box[1] * box[2] == TILE
    table = box_table(batch, channels, tuple((*side, outputs) for side in sides), block, box, torch.device("cpu"))
    assert len(table) == 2 * boxes(batch, sides, box)
    first_rows = [0, *itertools.accumulate(k * k * channels for k, _ in kernels)]
    found, taps_before = set(), max(k for k, _ in kernels) ** 2
    for row in rows_of(table):
        taps = row["taps_y"] * row["taps_x"]
        assert taps <= taps_before, "a box with more taps comes later"
        taps_before = taps
        branch = row["channel"] // outputs
        assert row["channel"] == branch * outputs + row["output"]
        rows, columns = sides[branch]
        assert (row["dilation_y"], row["dilation_x"], row["kernel_x"]) == (
            rows.dilation,
            columns.dilation,
            columns.kernel,
        )
        first, rest = divmod(row["weight"] - first_rows[branch], channels)
        assert rest == 0
        ky, kx = divmod(first, columns.kernel)
        listed = {(ky + i, kx + j) for i in range(row["taps_y"]) for j in range(row["taps_x"])}
        assert all(y < rows.kernel and x < columns.kernel for y, x in listed)
        for n, i, j in itertools.product(*map(range, box)):
            y, x = row["top"] + i, row["left"] + j
            if row["image"] + n >= batch or y >= row["bottom"] or x >= row["right"]:
                continue
            pixel = branch, row["output"], row["image"] + n, y, x
            assert pixel not in found, "two boxes write it"
            found.add(pixel)
            assert taps == 0 or row["input_y"] + i == input_of(rows, y, ky)
            assert taps == 0 or row["input_x"] + j == input_of(columns, x, kx)
            needed = itertools.product(range(rows.kernel), range(columns.kernel))
            assert {(p, q) for p, q in needed if reads(rows, y, p) and reads(columns, x, q)} <= listed
    assert len(found) == 2 * len(sides) * batch * sides[0][0].outputs * sides[0][1].outputs


def reads(axis, output, tap):
    first, stop = outputs_of(axis, tap)
    return first <= output < stop


def test_an_empty_batch_has_no_boxes():
    sides = sides_of(4, 4, [(3, 2)])
    assert box_table(0, 64, ((*sides[0], 8),), 64, (1, 8, 16), torch.device("cpu")).shape == (0, len(BOX_FIELDS))
    assert work(0, sides) == 0


def test_what_boxes_execute():
    """Where whole boxes fit, as much; and 1.21 times as much on DeepLabv3's maps for training, where they do not."""
    fitting = sides_of(64, 64, [(3, 12)])
    assert work(8, fitting, common_box(8, fitting)) == work(8, fitting)
    of_aspp = sides_of(33, 33, [(3, 6), (3, 12), (3, 18)])
    assert work(8, of_aspp, common_box(8, of_aspp)) <= 1.21 * work(8, of_aspp)


def test_where_the_kernel_suits():
    of_aspp = sides_of(33, 33, [(3, 6), (3, 12), (3, 18)])
    suits = atrous_conv2d_hopper.suits
    assert suits((9, 0), torch.float16, 2048, (256,) * 3, 8, of_aspp)
    assert not suits((9, 0), torch.float16, 2048, (256, 256, 128), 8, of_aspp)
    assert not suits((8, 0), torch.float16, 2048, (256,) * 3, 8, of_aspp)
    assert not suits((10, 0), torch.float16, 2048, (256,) * 3, 8, of_aspp)
    assert not suits((9, 0), torch.float32, 2048, (256,) * 3, 8, of_aspp)
    assert not suits((9, 0), torch.float16, 2016, (256,) * 3, 8, of_aspp)
    assert not suits((9, 0), torch.float16, 2048, (252,) * 3, 8, of_aspp)
    strided = (axes((33, 33), (3, 3), (2, 2), (2, 2), (2, 2)),)
    assert not suits((9, 0), torch.float16, 2048, (256,), 8, strided)
    one_odd_image = sides_of(33, 33, [(3, 12)])  # boxes execute 1.42 times what runs do
    assert not suits((9, 0), torch.float16, 2048, (256,), 1, one_odd_image)


class Pointer:
    """To a place in a tensor in global memory."""

    def __init__(self, tensor, offset=0):
        self.tensor, self.offset = tensor.as_strided((tensor.numel(),), (1,)), offset  # as it lies there
        self.dtype = types.SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, offset):
        return Pointer(self.tensor, self.offset + offset)


class Descriptor:
    """Boxes of a tensor: zeros lie outside of it."""

    def __init__(self, tensor, block):
        self.tensor, self.dtype, self.layout = tensor, tensor.dtype, None
        self.block_type = types.SimpleNamespace(shape=list(block), nbytes=TILE)

    def box(self, corner):
        index = [first + torch.arange(n) for first, n in zip(corner, self.block_type.shape, strict=True)]
        inside = torch.ones(())
        for axis, (at, n) in enumerate(zip(index, self.tensor.shape, strict=True)):
            inside = inside.unsqueeze(-1) * ((at >= 0) & (at < n))
            index[axis] = at.clamp(0, n - 1)
        return self.tensor[torch.meshgrid(*index, indexing="ij")] * inside


class Tiles:
    """Shared memory."""

    def __init__(self, values):
        self.values, self.shape = values, list(values.shape)

    def index(self, i):
        return Tiles(self.values[i])

    def reshape(self, shape):
        return Tiles(self.values.view(shape))

    def slice(self, start, length):
        return Tiles(self.values[start : start + length])


class Barrier:
    def __init__(self, machine):
        self.machine, self.phase = machine, 0

    def init(self, count):
        self.count = self.missing = count
        self.bytes = 0

    def arrive(self, arrivals, more_bytes):
        with self.machine.changed:
            self.missing -= arrivals
            self.bytes += more_bytes
            assert self.missing >= 0, "more arrivals than the barrier waits for"
            if self.missing == 0 and self.bytes == 0:
                self.phase, self.missing = self.phase + 1, self.count
            self.machine.changed.notify_all()

    def wait(self, parity):
        with self.machine.changed:
            passed = self.machine.changed.wait_for(lambda: self.phase % 2 != parity or self.machine.failed, timeout=10)
            assert passed and not self.machine.failed, "nobody arrives"


class Machine:
    """Runs Gluon's functions, as Python, for one program at a time. `late`: (thread's number) -> seconds to wait."""

    def __init__(self, program, programs, late):
        self.program, self.programs, self.late = program, programs, late
        self.changed, self.failed, self.pending = threading.Condition(), [], threading.local()

    def allocate_shared_memory(self, dtype, shape, layout):
        if dtype == torch.int64:  # barriers
            stages = [Barrier(self) for _ in range(shape[0])]
            return types.SimpleNamespace(index=stages.__getitem__)
        return Tiles(torch.full(shape, float("nan"), dtype=dtype))

    def load_tile(self, descriptor, corner, barrier, tile):
        def arrive():
            time.sleep(self.late("copy"))
            tile.values.copy_(descriptor.box(corner))
            barrier.arrive(0, -descriptor.block_type.nbytes)

        tile.values.fill_(float("nan"))
        threading.Thread(target=arrive).start()

    def warpgroup_mma(self, a, b, total, is_async):
        self.pending.products = [*getattr(self.pending, "products", []), (a, b)]
        return total

    def warpgroup_mma_wait(self, num_outstanding, deps):
        time.sleep(self.late("product"))
        (total,), products = deps, getattr(self.pending, "products", [])
        done = max(len(products) - num_outstanding, 0)
        self.pending.products = products[done:]
        for a, b in products[:done]:
            total = total + a.values.float() @ b.values.float()
        return total

    def warp_specialize(self, parts, warps, registers):
        def run(function, arguments):
            try:
                function(*arguments)
            except BaseException as error:
                with self.changed:
                    self.failed.append(error)
                    self.changed.notify_all()

        assert len(warps) == len(registers) == len(parts) - 1
        threads = [threading.Thread(target=run, args=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def load(self, pointer, mask=None, other=None):
        offset = pointer.offset
        if mask is None:
            return pointer.tensor[offset].item()
        return torch.where(mask, pointer.tensor[torch.where(mask, offset, 0)].float(), other)

    def store(self, pointer, values, mask):
        at = pointer.offset[mask]
        assert pointer.tensor[at].isnan().all(), "written twice"
        pointer.tensor[at] = values[mask]

    def install(self, patch):
        names = types.SimpleNamespace(
            allocate_shared_memory=self.allocate_shared_memory,
            warp_specialize=self.warp_specialize,
            program_id=lambda axis: self.program,
            num_programs=lambda axis: self.programs,
            load=self.load,
            store=self.store,
            int64=torch.int64,
            float32=torch.float32,
            static_range=range,
            NVMMASharedLayout=NVMMASharedLayout,
            multiple_of=lambda x, n: x if x % n == 0 else pytest.fail(f"{x} is no multiple of {n}"),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            arange=lambda start, stop, layout: torch.arange(start, stop),
            convert_layout=lambda x, layout: x,
            where=torch.where,
            permute=torch.permute,
            reshape=torch.reshape,
            split=lambda x: x.unbind(-1),
            **dict.fromkeys(("NVMMADistributedLayout", "BlockedLayout", "SliceLayout"), lambda *how: None),
        )
        hopper = atrous_conv2d_hopper
        patch.setattr(hopper, "gl", names)
        patch.setattr(hopper, "load_tile", self.load_tile)
        patch.setattr(hopper, "fence_async_shared", lambda: None)
        patch.setattr(hopper, "warpgroup_mma", self.warpgroup_mma)
        patch.setattr(hopper, "warpgroup_mma_wait", self.warpgroup_mma_wait)
        barriers = types.SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=lambda barrier, count: barrier.init(count),
            wait=lambda barrier, phase: barrier.wait(phase),
            expect=lambda barrier, number: barrier.arrive(1, number),
            arrive=lambda barrier, pred: barrier.arrive(1, 0) if pred else None,
        )
        patch.setattr(hopper, "mbarrier", barriers)
        for name in FUNCTIONS:
            patch.setattr(hopper, name, FUNCTIONS[name])


def run(patch, input, weights, dilations, scale, bias, residual, relu, box, block, stages, programs, late):
    """The whole kernel, program after program."""
    (batch, channels), outputs = input.shape[:2], weights[0].shape[0]
    sides = branches(input.shape[2:], weights, dilations)
    height, width = (axis.outputs for axis in sides[0])
    table = box_table(batch, channels, tuple((*side, outputs) for side in sides), block, box, torch.device("cpu"))
    table = table.flip(0)  # barriers must not need those with most taps first
    output = torch.full((batch, height, width, outputs * len(weights)), float("nan"))
    matrix = packed(weights).view(-1, outputs)
    size = channels // atrous_conv2d_hopper.BLOCK_C, batch, height, width, outputs // 8, outputs * len(weights) // 8
    pointers = [None if x is None else Pointer(x) for x in (scale, bias, residual, output, table)]
    kernel = atrous_conv2d_hopper.atrous_conv2d_hopper_kernel.fn
    for program in range(programs):
        Machine(program, programs, late).install(patch)
        tensors = Descriptor(input.permute(0, 2, 3, 1), (*box, 64)), Descriptor(matrix, (64, block))
        kernel(*tensors, *pointers, len(table), *size, box, relu, len(BOX_FIELDS), block, stages)
    return output.permute(0, 3, 1, 2)


RUNS = {  # batch, channels, outputs, size, dilations, kernels, box, block, stages, programs, what is fused
    "two blocks of channels": (1, 128, 8, (5, 6), (2,), (3,), (1, 8, 16), 64, 3, 1, ""),
    "outputs in two blocks": (2, 64, 72, (4, 5), (2,), (3,), (2, 8, 8), 64, 2, 1, "scale bias residual relu"),
    "halves": (1, 64, 104, (3, 3), (1,), (3,), (1, 8, 16), 128, 4, 1, "bias"),
    "quarters": (1, 64, 200, (3, 3), (4,), (3,), (8, 4, 4), 256, 4, 3, "scale relu"),
    "boxes without taps": (1, 64, 8, (4, 4), (30,), (2,), (1, 8, 16), 64, 3, 2, "bias"),
    "branches": (2, 64, 16, (4, 5), (1, 2, 9), (1, 3, 3), (2, 8, 8), 64, 3, 2, "scale bias relu"),
}
LATE = {"at once": {}, "late copies": {"copy": 3e-3}, "late products": {"product": 3e-3}}
LATE_RUNS = "two blocks of channels", "boxes without taps"


@pytest.mark.parametrize(
    "name, late", [(name, late) for name in RUNS for late in LATE if late == "at once" or name in LATE_RUNS]
)
def test_the_kernel_run_in_python(name, late, monkeypatch):
    batch, channels, outputs, size, dilations, kernels, box, block, stages, programs, fused = RUNS[name]
    numbers = torch.Generator().manual_seed(1)

    def few(*shape):  # of so few that sums are exact
        return torch.randint(-2, 3, shape, generator=numbers).float()

    total = outputs * len(kernels)
    input, weights = few(batch, channels, *size), [few(outputs, channels, k, k) for k in kernels]
    scale, bias, residual = (
        few(*shape) if what in fused else None
        for what, shape in (("scale", (total,)), ("bias", (total,)), ("residual", (batch, *size, total)))
    )
    relu = "relu" in fused
    how = scale, bias, residual, relu, box, block, stages, programs, lambda what: LATE[late].get(what, 0)
    result = run(monkeypatch, input, weights, dilations, *how)
    maps = [
        F.conv2d(input, w, padding=d * (w.shape[2] // 2), dilation=d) for w, d in zip(weights, dilations, strict=True)
    ]
    wanted = torch.cat(maps, 1)
    wanted = wanted if scale is None else wanted * scale[:, None, None]
    wanted = wanted if bias is None else wanted + bias[:, None, None]
    wanted = wanted if residual is None else wanted + residual.permute(0, 3, 1, 2)
    assert torch.equal(result, wanted.relu() if relu else wanted)


class Launcher:
    """The kernel's grid of programs, in place of Triton's launcher: kernel[grid](...)."""

    def __init__(self, patch):
        self.patch, self.kernel = patch, atrous_conv2d_hopper.atrous_conv2d_hopper_kernel.fn

    def __getitem__(self, grid):
        def launched(input, weight, *arguments, num_warps, enable_fp_fusion, **constants):
            tensors = [Descriptor(x.base.as_strided(x.shape, x.strides), x.block_shape) for x in (input, weight)]
            tensors += [x if x is None or isinstance(x, int) else Pointer(x) for x in arguments]
            for program in range(grid[0]):
                Machine(program, grid[0], lambda what: 0).install(self.patch)
                self.kernel(*tensors, **constants)

        return launched


def test_what_a_launch_is_given(monkeypatch):
    """From an op's arguments to its result, but for the choice of the kernel: half precision, whatever its strides."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(multi_processor_count=2))
    original = atrous_conv2d_hopper.plan
    launcher = Launcher(monkeypatch)
    monkeypatch.setattr(atrous_conv2d_hopper, "plan", lambda *args: (launcher, *original(*args)[1:]))
    input, dilations = torch.randn(2, 64, 1, 5).half(), [1, 2]
    weights = [(torch.randn(8, 64, k, k) / 8).half() for k in (1, 3)]
    scale, bias = torch.randn(16).half(), torch.randn(16).half()
    sides = tuple(branches(input.shape[2:], weights, dilations))
    kernel = atrous_conv2d_hopper.convolution(input, (8, 8), sides)
    odd = torch.empty(input.numel() + 1, dtype=torch.half)[1:].view(2, 1, 5, 64).permute(0, 3, 1, 2).copy_(input)
    maps = [
        F.conv2d(input.double(), w.double(), padding=d * (w.shape[2] // 2), dilation=d)
        for w, d in zip(weights, dilations, strict=True)
    ]
    wanted = (torch.cat(maps, 1) * scale[:, None, None] + bias[:, None, None]).relu()
    for given in (input, odd):  # of which one begins between two vectors of 16 bytes
        result = pyramid(*kernel, given, weights, scale, bias, dilations, True, True)
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result.double(), wanted, rtol=2**-10, atol=1e-5)
    how = (1, 1), (0, 3), (2, 1)  # stride, padding, dilation
    kernel = atrous_conv2d_hopper.convolution(input, (8,), (axes((1, 5), (1, 3), *how),))
    result = forward(*kernel, input, weights[1][:, :, :1], None, None, None, *how, 1, False, False)
    wanted = F.conv2d(input.double(), weights[1][:, :, :1].double(), None, *how)
    torch.testing.assert_close(result.double(), wanted, rtol=2**-10, atol=1e-5)
