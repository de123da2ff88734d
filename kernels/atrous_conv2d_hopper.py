"""The product of atrous_conv2d for sm_90, where the input is copied as boxes straight to where tensor cores read it.

A step multiplies a box of 128 pixels x 64 channels by 64 channels x BLOCK_O outputs. One warp asks the tensor memory
accelerator (TMA) for both, STAGES steps ahead; two groups of four warps multiply a half of the pixels each (wgmma reads
shared memory itself) and store it. `full` barriers say that a stage's numbers are there, `empty` ones that both groups
have read them. Programs stay, one for each multiprocessor, and take box after box, those with most taps first, so that
the copies for the next box begin during the products and stores of this one.
Nothing but barriers orders these warps. Rows of the table are those of fastseg/ops/atrous_conv2d_boxes.py.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastseg.kernels.atrous_conv2d_forward import new_output, step_of, weight_row
from fastseg.kernels.gluon_names import load_tile
from fastseg.ops.atrous_conv2d_boxes import BOX_FIELDS, box_table, boxes, common_box, work
from fastseg.ops.atrous_conv2d_plan import TILE

BLOCK_C = 64  # channels of a step: the 128 bytes of a swizzled row
# Boxes may execute so much more than the runs of pixels that the kernel for every GPU takes. A guess until a bench has
# run on a GPU: Triton's convolutions that load by address reach 330 to 380 TFLOP/s of an H100 (PyTorch's templates),
# products like this one 600 and more, which leaves room for boxes that fit worse than was thought.
DEARER = 1.25


def suits(capability, dtype, channels, outputs, batch, sides):
    """Whether this kernel should run on such a GPU for branches of so many outputs; sides: (rows, columns) of each.

    Rows of the input and the weights must be multiples of 16 bytes; channels whole steps, so that none leaves its tap.
    """
    if capability[0] != 9 or dtype not in (torch.float16, torch.bfloat16) or channels % BLOCK_C:
        return False
    if len(set(outputs)) > 1 or outputs[0] % 8 or any(axis.stride != 1 for side in sides for axis in side):
        return False
    return work(batch, sides, common_box(batch, sides)) <= DEARER * work(batch, sides)


def config(outputs, boxes, processors):
    """Launch choices for so many boxes of pixels. Wide blocks read inputs less often, if there are programs enough.

    Stages are 192 KB in all, beside which 16 KB for the stores fit into 227.
    """
    block_o = 64 if outputs <= 64 else 128
    if outputs > 128 and boxes * -(-outputs // 256) >= processors:
        block_o = 256
    stages = 192 * 1024 // (2 * BLOCK_C * (TILE + block_o))
    return {"BLOCK_O": block_o, "STAGES": stages, "num_warps": 4, "enable_fp_fusion": True}


@gluon.jit
def load_boxes(input, weight, table, sizes, shared, FIELDS: gl.constexpr):
    """The warp that copies."""
    boxes, channel_blocks = sizes
    a_tiles, b_tiles, full, empty = shared
    STAGES: gl.constexpr = b_tiles.shape[0]
    BLOCK_C: gl.constexpr = b_tiles.shape[1]
    step = 0
    for box in range(gl.program_id(0), boxes, gl.num_programs(0)):
        row = table + box * FIELDS
        image = gl.load(row)
        taps_y, taps_x = gl.load(row + 5), gl.load(row + 6)
        input_y, input_x = gl.load(row + 7), gl.load(row + 8)
        dilation_y, dilation_x = gl.load(row + 9), gl.load(row + 10)
        weights, kernel_x, output = gl.load(row + 11), gl.load(row + 12), gl.load(row + 13)
        for index in range(taps_y * taps_x * channel_blocks):
            i, j, block = step_of(index, channel_blocks, taps_x)
            first = weights + weight_row(i, j, kernel_x, channel_blocks * BLOCK_C) + block * BLOCK_C
            stage = step % STAGES
            there = full.index(stage)
            mbarrier.wait(empty.index(stage), step // STAGES % 2 ^ 1)  # a new barrier lets pass at first
            mbarrier.expect(there, input.block_type.nbytes + weight.block_type.nbytes)
            corner = [image, input_y + i * dilation_y, input_x + j * dilation_x, block * BLOCK_C]
            load_tile(input, corner, there, a_tiles.index(stage))
            load_tile(weight, [first, output], there, b_tiles.index(stage))
            step += 1


@gluon.jit
def halves(x):
    """The left and the right columns. No thread sends the other any."""
    return gl.split(gl.permute(gl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@gluon.jit
def store(total, first, pointers, target, there, channel, last, RELU: gl.constexpr, LAYOUT: gl.constexpr):
    """What follows the sums, and the store, for some columns: `first` and on."""
    scale, bias, residual, output = pointers
    o = first + gl.arange(0, total.shape[1], gl.SliceLayout(0, LAYOUT))
    exists = o < last
    total = gl.convert_layout(total, LAYOUT)
    if scale is not None:
        total *= gl.load(scale + channel + o, mask=exists, other=0.0).to(gl.float32)[None, :]
    if bias is not None:
        total += gl.load(bias + channel + o, mask=exists, other=0.0).to(gl.float32)[None, :]
    at = target[:, None] + (channel + o)[None, :]
    mask = there[:, None] & exists[None, :]
    if residual is not None:
        total += gl.load(residual + at, mask=mask, other=0.0).to(gl.float32)
    if RELU:
        total = gl.where(total < 0, 0.0, total)  # NaN stays
    gl.store(output + at, total.to(output.dtype.element_ty), mask=mask)


@gluon.jit
def multiply(
    pointers,
    table,
    sizes,
    limits,
    shared,
    HALF: gl.constexpr,
    BOX: gl.constexpr,
    RELU: gl.constexpr,
    FIELDS: gl.constexpr,
):
    """One of the two groups of warps that multiply: it has a half of the pixels."""
    boxes, channel_blocks = sizes
    batch, out_height, out_width, vectors, all_vectors = limits
    a_tiles, b_tiles, full, empty = shared
    STAGES: gl.constexpr = b_tiles.shape[0]
    PIXELS: gl.constexpr = BOX[0] * BOX[1] * BOX[2] // 2
    BLOCK_C: gl.constexpr = b_tiles.shape[1]
    BLOCK_O: gl.constexpr = b_tiles.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_O, 16])
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])  # 16 bytes per thread, 128 in a row
    step = 0
    for box in range(gl.program_id(0), boxes, gl.num_programs(0)):
        row = table + box * FIELDS
        steps = gl.load(row + 5) * gl.load(row + 6) * channel_blocks
        total = gl.zeros([PIXELS, BLOCK_O], gl.float32, SUMS)
        for index in range(steps):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), step // STAGES % 2)
            a = a_tiles.index(stage).reshape([2 * PIXELS, BLOCK_C]).slice(HALF * PIXELS, PIXELS)
            total = warpgroup_mma(a, b_tiles.index(stage), total, is_async=True)
            # The product before this one is done: its stage may be filled again.
            total = warpgroup_mma_wait(num_outstanding=1, deps=(total,))
            mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=index > 0)
            step += 1
        total = warpgroup_mma_wait(num_outstanding=0, deps=(total,))
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=steps > 0)

        pixel = HALF * PIXELS + gl.arange(0, PIXELS, gl.SliceLayout(1, STORED))
        image = gl.load(row) + pixel // (BOX[1] * BOX[2])
        y = gl.load(row + 1) + pixel // BOX[2] % BOX[1]
        x = gl.load(row + 2) + pixel % BOX[2]
        there = (image < batch) & (y < gl.load(row + 3)) & (x < gl.load(row + 4))
        target = ((image.to(gl.int64) * out_height + y) * out_width + x) * (all_vectors * 8)
        channel = gl.multiple_of(gl.load(row + 14), 8)
        last = vectors * 8 - gl.multiple_of(gl.load(row + 13), 8)
        if BLOCK_O == 64:
            store(total, 0, pointers, target, there, channel, last, RELU, STORED)
        else:
            left, right = halves(total)
            if BLOCK_O == 128:
                store(left, 0, pointers, target, there, channel, last, RELU, STORED)
                store(right, 64, pointers, target, there, channel, last, RELU, STORED)
            else:
                first, second = halves(left)
                third, fourth = halves(right)
                store(first, 0, pointers, target, there, channel, last, RELU, STORED)
                store(second, 64, pointers, target, there, channel, last, RELU, STORED)
                store(third, 128, pointers, target, there, channel, last, RELU, STORED)
                store(fourth, 192, pointers, target, there, channel, last, RELU, STORED)


@gluon.jit
def atrous_conv2d_hopper_kernel(
    input,  # descriptor of (N, H, W, C)
    weight,  # descriptor of (branch's taps C, outputs)
    scale_ptr,
    bias_ptr,
    residual_ptr,  # (N, H', W', O), dense, or None
    output_ptr,
    table_ptr,
    boxes,
    channel_blocks,
    batch,
    out_height,
    out_width,
    vectors,  # of 8 outputs of a branch
    all_vectors,
    BOX: gl.constexpr,
    RELU: gl.constexpr,
    FIELDS: gl.constexpr,
    BLOCK_O: gl.constexpr,
    STAGES: gl.constexpr,
):
    a_tiles = gl.allocate_shared_memory(input.dtype, [STAGES] + input.block_type.shape, input.layout)
    b_tiles = gl.allocate_shared_memory(input.dtype, [STAGES] + weight.block_type.shape, weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    fence_async_shared()  # the copies see the barriers
    sizes = (boxes, channel_blocks)
    limits = (batch, out_height, out_width, vectors, all_vectors)
    pointers = (scale_ptr, bias_ptr, residual_ptr, output_ptr)
    shared = (a_tiles, b_tiles, full, empty)
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    gl.warp_specialize(
        [
            (multiply, (pointers, table_ptr, sizes, limits, shared, FIRST, BOX, RELU, FIELDS)),
            (multiply, (pointers, table_ptr, sizes, limits, shared, SECOND, BOX, RELU, FIELDS)),
            (load_boxes, (input, weight, table_ptr, sizes, shared, FIELDS)),
        ],
        [4, 1],
        [240, 24],
    )


def plan(input, weights, scale, bias, residual, output, table, relu, box, outputs, constants, processors):
    """(kernel, grid, its arguments, its constants) of a launch; tensors may be on the meta device."""
    (n, c, h, w), (all_outputs, out_h, out_w) = input.shape, output.shape[1:]
    block_o = constants["BLOCK_O"]

    def descriptor(tensor, shape, strides, block):
        layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=len(shape))
        return TensorDescriptor(tensor, shape, strides, block, layout)

    # Not the tensor's own strides, which mean nothing for axes of length 1 but must be multiples of 16 bytes.
    pixels = descriptor(input, [n, h, w, c], [h * w * c, w * c, c, 1], [*box, BLOCK_C])
    matrix = descriptor(weights, [weights.numel() // outputs, outputs], [outputs, 1], [BLOCK_C, block_o])
    arguments = (pixels, matrix, scale, bias, residual, output, table, len(table), c // BLOCK_C, n, out_h, out_w)
    arguments += (outputs // 8, all_outputs // 8)
    constants = constants | {"BOX": tuple(box), "RELU": relu, "FIELDS": len(BOX_FIELDS)}
    return atrous_conv2d_hopper_kernel, (min(len(table), processors),), arguments, constants


def convolution(input, outputs, sides):
    """(kernel, block) as atrous_conv2d_tiles.convolved wants them, for branches of so many outputs."""
    batch, channels = input.shape[:2]
    box = common_box(batch, sides)
    processors = torch.cuda.get_device_properties(input.device).multi_processor_count
    constants = config(outputs[0], boxes(batch, sides, box), processors)
    branches = tuple((*side, each) for side, each in zip(sides, outputs, strict=True))
    table = box_table(batch, channels, branches, constants["BLOCK_O"], box, input.device)

    def run(input, weights, scale, bias, residual, tiles, stride, size, relu):
        """Reads the table of boxes, not that of tiles."""
        output = new_output(input, size)
        if output.numel() > 0:
            input = input if input.data_ptr() % 16 == 0 else input.clone()
            tensors = input, weights, scale, bias, residual, output, table
            kernel, grid, arguments, all_constants = plan(*tensors, relu, box, outputs[0], constants, processors)
            with torch.cuda.device_of(input):
                kernel[grid](*arguments, **all_constants)
        return output

    return run, constants["BLOCK_O"]
