"""Dilated ResNets: the features under every head (arXiv 1512.03385, dilated as in arXiv 1706.05587).

Parameter names, default initialisation and results are torchvision's: its published weights load as they are.
"""

from torch import nn

from fastseg.nn import AtrousConv2d
from fastseg.nn.conv_bn import ConvBNSequential, conv_bn

AUX_CHANNELS, OUT_CHANNELS = 1024, 2048  # of the two feature maps
EXPANSION = 4  # a block's output channels per inner channel
STRIDES = (4, 8, 16, 32, 64, 128, 256)  # from the image to the stages' outputs, if none is dilated
OUTPUT_STRIDES = (8, 16, 32)
CASCADED = 3  # blocks in each stage after the fourth
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 269: (3, 30, 48, 8)}  # by depth


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and dilation, 1x1, plus the shortcut: (N, C, H, W) -> (N, 4 width, H', W').

    conv2 is of the class `convolution`. The stride and dilation, 1 at first, are those of the last call of `set`.
    """

    def __init__(self, channels, width, convolution=nn.Conv2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if channels != EXPANSION * width:
            self.downsample = ConvBNSequential(
                nn.Conv2d(channels, EXPANSION * width, 1, bias=False),
                nn.BatchNorm2d(EXPANSION * width),
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(conv_bn(self.conv1, self.bn1, x))
        x = self.relu(conv_bn(self.conv2, self.bn2, x))
        x = conv_bn(self.conv3, self.bn3, x)
        x += shortcut
        return self.relu(x)


class ResNet(nn.Module):
    """A ResNet of bottlenecks without pooling and classifier.

    blocks     blocks per stage, four numbers
    cascade    how many stages follow the fourth, of three blocks like its own
    stem       one width, of a 7x7 convolution; or three, of 3x3 ones in its place
    ceil_mode  whether the pooling after them keeps a last row and column that are not whole, as in Caffe
    keywords   of `dilate`, such as output_stride=8

    Images (N, 3, H, W) -> {"aux": (N, 1024, h', w'), "out": (N, 2048, h, w)}, the outputs of stage 3 and of the last
    one, or only the latter with aux=False. h = ceil(H / output_stride); h' too, or ceil(H / 16) with output stride 32.
    """

    def __init__(self, blocks, cascade=0, stem=(64,), ceil_mode=False, **keywords):
        super().__init__()
        self.stem = None
        if len(stem) == 1:
            self.conv1 = nn.Conv2d(3, stem[0], 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem[0])
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_mode)
        else:
            self.stem = stem_of(stem, ceil_mode)
        for number, stage in enumerate(stages(stem[-1], blocks, cascade), start=1):
            self.add_module(f"layer{number}", stage)
        self._count, self._keywords = number, keywords
        self.set_output_stride(**keywords)
        initialise(self)

    def _stages(self):
        return [getattr(self, f"layer{number}") for number in range(1, self._count + 1)]

    def set_output_stride(self, output_stride=8, **keywords):
        """Change the strides and dilations of a network that is built; parameters stay as they are.

        Keywords are those of `dilate`; the others stay as they were.
        """
        self._keywords = {**self._keywords, **keywords, "output_stride": output_stride}
        dilate(self._stages(), **self._keywords)

    def forward(self, x, aux=True):  # (N, 3, H, W)
        if self.stem is None:
            x = self.maxpool(self.relu(conv_bn(self.conv1, self.bn1, x)))  # (N, 64, H/4, W/4)
        else:
            x = self.stem(x)
        third, *last = self._stages()[2:]
        x = third(self.layer2(self.layer1(x)))  # (N, 1024, h', w')
        features = {"aux": x} if aux else {}
        for stage in last:
            x = stage(x)
        features["out"] = x
        return features


def stem_of(widths, ceil_mode=False):
    """What comes before the stages, as one module: (N, 3, H, W) -> (N, widths[-1], H/4, W/4).

    One width is ResNet's 7x7 convolution. Three are a deep stem of 3x3 convolutions, the first of stride 2.
    """
    layers, channels = [], 3
    size = 7 if len(widths) == 1 else 3
    for width in widths:
        layers.append(nn.Conv2d(channels, width, size, stride=1 if layers else 2, padding=size // 2, bias=False))
        layers += nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        channels = width
    return ConvBNSequential(*layers, nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=ceil_mode))


def stages(channels, blocks, cascade=0):
    """Four stages of so many blocks: (N, channels, h, w) -> (N, 256, h, w), from there to 512, 1024 and 2048 channels;
    then `cascade` more, of three blocks and 2048 channels. Without strides and dilations: see `dilate`."""
    stages = []
    widths, counts = (64, 128, 256, 512) + (512,) * cascade, (*blocks, *(CASCADED,) * cascade)
    for number, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        convolution = AtrousConv2d if number >= 3 else nn.Conv2d  # the first two are never dilated
        first = Bottleneck(channels, width, convolution)
        channels = EXPANSION * width
        stages.append(nn.Sequential(first, *(Bottleneck(channels, width, convolution) for _ in range(1, count))))
    return stages


def dilate(stages, output_stride=8, contracted=True, multi_grid=None, absolute_grid=False, stride_first=False):
    """Set the strides and dilations of stages, in place.

    output_stride  8, 16 or 32, from the image to the last stage's output: stages that would go beyond are dilated by
                   their stride instead, and so are those after them
    contracted     the first block of a dilated third or fourth stage has the dilation of the stage before, whose grid
                   it sees, as in torchvision; False: all its blocks have the same, as in the papers
    multi_grid     factors of the dilations of a stage's blocks, one for each, from the fourth stage on, none of which
                   is contracted then (arXiv 1706.05587, section 3.2.1)
    absolute_grid  multi_grid holds the dilations themselves, as in mmseg
    stride_first   a block's stride is in its first convolution, as in Caffe, and not in the 3x3 one
    """
    if output_stride not in OUTPUT_STRIDES:
        wanted = ", ".join(map(str, OUTPUT_STRIDES))
        raise ValueError(f"dilate: output_stride must be one of {wanted}, got {output_stride!r}")
    for number, stage in enumerate(stages):
        rate = max(STRIDES[number] // output_stride, 1)
        rates = [rate] * len(stage)
        if contracted and number in (2, 3):
            rates[0] = max(STRIDES[number - 1] // output_stride, 1)
        if multi_grid is not None and number >= 3:
            rates = [factor if absolute_grid else factor * rate for factor in _checked(multi_grid, len(stage))]
        for block, rate in zip(stage, rates, strict=True):
            set_stride(block, 1, rate)
        if number and STRIDES[number] <= output_stride:
            set_stride(stage[0], 2, rates[0], stride_first)


def _checked(multi_grid, count):
    if len(multi_grid) != count or not all(isinstance(factor, int) and factor >= 1 for factor in multi_grid):
        wanted = f"{count} ints from 1 on, one for each block of a stage"
        raise ValueError(f"dilate: multi_grid must be {wanted}, got {multi_grid!r}")
    return multi_grid


def set_stride(block, stride, rate, stride_first=False):
    """Of a Bottleneck, also of a folded one, in place."""
    first, second = (stride, 1) if stride_first else (1, stride)
    block.conv1.stride, block.conv2.stride = (first, first), (second, second)
    block.conv2.dilation = (rate, rate)
    block.conv2.padding = (rate, rate)
    if block.downsample is not None:
        block.downsample[0].stride = (stride, stride)


def initialise(module):
    """Of a backbone: in place, so that activations keep their variance on the way back."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def resnet50(**keywords):
    return ResNet(BLOCKS[50], **keywords)


def resnet101(**keywords):
    return ResNet(BLOCKS[101], **keywords)
