"""Dilated ResNets: the features under every head (arXiv 1512.03385, dilated as in arXiv 1706.05587).

Parameter names, default initialisation and results are torchvision's: its published weights load as they are.
"""

from torch import nn

from fastseg.models.conv_bn import ConvBNSequential, conv_bn

AUX_CHANNELS, OUT_CHANNELS = 1024, 2048  # of the two feature maps
EXPANSION = 4  # a block's output channels per inner channel
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 269: (3, 30, 48, 8)}  # by depth


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and dilation, 1x1, plus the shortcut: (N, C, H, W) -> (N, 4 width, H', W')."""

    def __init__(self, channels, width, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != EXPANSION * width:
            self.downsample = ConvBNSequential(
                nn.Conv2d(channels, EXPANSION * width, 1, stride, bias=False),
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

    blocks                        blocks per stage, four numbers
    replace_stride_with_dilation  for stages 2 to 4: dilate by the stride instead of striding

    Images (N, 3, H, W) -> {"aux": (N, 1024, h, w), "out": (N, 2048, h, w)}, the outputs of stages 3 and 4, or only
    the latter with aux=False. By default both have h = ceil(H / 8).
    """

    def __init__(self, blocks, replace_stride_with_dilation=(False, True, True)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(64, blocks, replace_stride_with_dilation)
        initialise(self)

    def forward(self, x, aux=True):  # (N, 3, H, W)
        x = self.maxpool(self.relu(conv_bn(self.conv1, self.bn1, x)))  # (N, 64, H/4, W/4)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 1024, H/8, W/8)
        features = {"aux": x} if aux else {}
        features["out"] = self.layer4(x)
        return features


def stem_of(widths):
    """What comes before the stages, as one module: (N, 3, H, W) -> (N, widths[-1], H/4, W/4).

    One width is ResNet's 7x7 convolution. Three are a deep stem of 3x3 convolutions, the first of stride 2.
    """
    layers, channels = [], 3
    size = 7 if len(widths) == 1 else 3
    for width in widths:
        layers.append(nn.Conv2d(channels, width, size, stride=1 if layers else 2, padding=size // 2, bias=False))
        layers += nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        channels = width
    return ConvBNSequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def stages(channels, blocks, replace_stride_with_dilation=(False, True, True), contracted=True):
    """Four stages of so many blocks: (N, channels, h, w) -> (N, 256, h, w), from there to 512, 1024 and 2048 channels.

    contracted  a dilated stage's first block has the dilation of the stage before, whose grid it sees, as in
                torchvision; False: all its blocks have the same, as in PSPNet
    """
    dilation, stages = 1, []
    dilates = (False, *replace_stride_with_dilation)
    for width, count, stride, dilate in zip((64, 128, 256, 512), blocks, (1, 2, 2, 2), dilates, strict=True):
        first_dilation = dilation
        if dilate:
            dilation, stride = dilation * stride, 1
        first = Bottleneck(channels, width, stride, first_dilation if contracted else dilation)
        channels = EXPANSION * width
        stages.append(nn.Sequential(first, *(Bottleneck(channels, width, 1, dilation) for _ in range(1, count))))
    return stages


def initialise(module):
    """Of a backbone: in place, so that activations keep their variance on the way back."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def resnet50():
    return ResNet(BLOCKS[50])


def resnet101():
    return ResNet(BLOCKS[101])
