"""Where weights come from: what each library calls the layers of a network, and what it computes with them.

The two stand together in one record, as names alone prove nothing: weights under the right names in a network of
other dilations, rates, strides or corners load without complaint and give other labels.

Names are those of units, a convolution and its BatchNorm, and hold for every source:

    stem                    the 7x7 convolution; stem.0 to stem.2 are three 3x3 ones in its place
    {stage}.{block}.conv1   to conv3, and shortcut: stages from 1 on, blocks from 0 on
    branch.0                to branch.3, branch.mean, project: the branches of an ASPP and the convolution of them all
    level.0                 to level.3, project: the same of a pyramid of pooled features, of 1, 2, 3 and 6 cells a side
    hidden, hidden.1        the layers before the classes, and joined, which sees the features beside them
    classes, aux.hidden, aux.classes

A source's name of a unit has both its modules in brackets, as in "backbone.[conv|bn]1". In names of blocks it may count
from elsewhere: {unit} = {block} + 1, {part} = {stage} + 1.
"""

import re
from typing import NamedTuple

from fastseg.models.preprocess import CAFFE, IMAGENET, Preprocess

STAGES, MOST_BLOCKS = 4, 48  # of a ResNet; it has 269 layers

_BLOCKS = {
    "{stage}.{block}.conv1": "layer{stage}.{block}.[conv|bn]1",
    "{stage}.{block}.conv2": "layer{stage}.{block}.[conv|bn]2",
    "{stage}.{block}.conv3": "layer{stage}.{block}.[conv|bn]3",
    "{stage}.{block}.shortcut": "layer{stage}.{block}.downsample.[0|1]",
}


def _under(prefix, names):
    return {unit: f"{prefix}.{name}" for unit, name in names.items()}


def _deep_stem(prefix):
    return {f"stem.{k}": f"{prefix}.[{3 * k}|{3 * k + 1}]" for k in range(3)}


_RESNET = {"stem": "[conv|bn]1", **_BLOCKS}
_ASPP = {f"branch.{k}": f"convs.{k}.[0|1]" for k in range(4)}
_ASPP |= {"branch.mean": "convs.4.[1|2]", "project": "project.[0|1]"}

# Our own.
_SEGMENTER = {**_under("backbone", _RESNET), **_deep_stem("backbone.stem")}
_SEGMENTER |= {"aux.hidden": "aux_classifier.[0|1]", "aux.classes": "aux_classifier.4"}
_FCN = {**_SEGMENTER, "hidden": "classifier.[0|1]", "classes": "classifier.4"}
_DEEP_FCN = {
    **_SEGMENTER,
    "hidden": "classifier.0.[0|1]",
    "hidden.1": "classifier.0.[3|4]",
    "joined": "classifier.[1|2]",
    "classes": "classifier.5",
}
_PAPER = {**_SEGMENTER, **_under("classifier.0", _ASPP), "classes": "classifier.1"}
_DEEPLAB = {**_PAPER, "hidden": "classifier.[1|2]", "classes": "classifier.4"}
_WIDE = {**_PAPER, "classes": "classifier.2"}

_PSPNET = {"stem": "layer0.[0|1]", **_deep_stem("layer0"), **_BLOCKS}
_PSPNET |= {f"level.{k}": f"ppm.features.{k}.[1|2]" for k in range(4)}
_PSPNET |= {"project": "cls.[0|1]", "classes": "cls.4", "aux.hidden": "aux.[0|1]", "aux.classes": "aux.4"}


def _without_deep_stem(names):
    return {unit: name for unit, name in names.items() if not unit.startswith("stem.")}


_MMSEG = {**_under("backbone", _RESNET), **_deep_stem("backbone.stem"), "classes": "decode_head.conv_seg"}
_MMSEG |= {"aux.hidden": "auxiliary_head.convs.0.[conv|bn]", "aux.classes": "auxiliary_head.conv_seg"}
_MMSEG_FCN = {
    **_MMSEG,
    "hidden": "decode_head.convs.0.[conv|bn]",
    "hidden.1": "decode_head.convs.1.[conv|bn]",
    "joined": "decode_head.conv_cat.[conv|bn]",
}
_MMSEG_PSPNET = {**_MMSEG, "project": "decode_head.bottleneck.[conv|bn]"}
_MMSEG_PSPNET |= {f"level.{k}": f"decode_head.psp_modules.{k}.1.[conv|bn]" for k in range(4)}
_MMSEG_DEEPLAB = {**_MMSEG, "project": "decode_head.bottleneck.[conv|bn]"}
_MMSEG_DEEPLAB |= {f"branch.{k}": f"decode_head.aspp_modules.{k}.[conv|bn]" for k in range(4)}
_MMSEG_DEEPLAB["branch.mean"] = "decode_head.image_pool.1.[conv|bn]"

_SMP_DEEPLAB = {**_under("encoder", _RESNET), **_under("decoder.aspp", _ASPP)}
_SMP_DEEPLAB |= {"hidden": "decoder.[conv|bn]", "classes": "segmentation_head.0"}
_SMP_PSPNET = {**_under("encoder", _RESNET), "project": "decoder.conv.[0|1]", "classes": "segmentation_head.0"}
_SMP_PSPNET |= {f"level.{k}": f"decoder.psp.blocks.{k}.pool.1.[0|1]" for k in range(4)}

_VAINF = {**_under("backbone", _RESNET), **_under("classifier.classifier.0", _ASPP)}
_VAINF |= {"hidden": "classifier.classifier.[1|2]", "classes": "classifier.classifier.4"}

_KAZUTO = {"stem": "layer1.conv1.[conv|bn]"}
_KAZUTO |= {
    f"{{stage}}.{{block}}.{ours}": f"layer{{part}}.block{{unit}}.{name}.[conv|bn]"
    for ours, name in (("conv1", "reduce"), ("conv2", "conv3x3"), ("conv3", "increase"), ("shortcut", "shortcut"))
}
_KAZUTO |= {f"branch.{k}": f"aspp.stages.c{k}.[conv|bn]" for k in range(4)}
_KAZUTO |= {"branch.mean": "aspp.stages.imagepool.conv.[conv|bn]", "project": "fc1.[conv|bn]", "classes": "fc2"}

_PYTORCHCV = {f"stem.{k}": f"backbone.0.conv{k + 1}.[conv|bn]" for k in range(3)}
_PYTORCHCV |= {
    f"{{stage}}.{{block}}.{ours}": f"backbone.{{stage}}.unit{{unit}}.{name}.[conv|bn]"
    for ours, name in (
        ("conv1", "body.conv1"),
        ("conv2", "body.conv2"),
        ("conv3", "body.conv3"),
        ("shortcut", "identity_conv"),
    )
}
_PYTORCHCV |= {"classes": "final_block.conv2"}
_PYTORCHCV |= {"aux.hidden": "aux_block.conv1.[conv|bn]", "aux.classes": "aux_block.conv2"}
_PYTORCHCV_FCN = {**_PYTORCHCV, "hidden": "final_block.conv1.[conv|bn]"}
_PYTORCHCV_PSPNET = {**_PYTORCHCV, "project": "final_block.conv1.[conv|bn]"}
_PYTORCHCV_PSPNET |= {f"level.{k}": f"pool.branches.branch{k + 2}.conv.[conv|bn]" for k in range(4)}
_PYTORCHCV_DEEPLAB = {**_PYTORCHCV_FCN, "project": "pool.conv.[conv|bn]"}
_PYTORCHCV_DEEPLAB |= {f"branch.{k}": f"pool.branches.branch{k + 1}.[conv|bn]" for k in range(4)}
_PYTORCHCV_DEEPLAB["branch.mean"] = "pool.branches.branch5.conv.[conv|bn]"


class Source(NamedTuple):
    """One kind of network of one library.

    library      its name, as load_checkpoint's `source`
    family       of our networks: "fcn", "pspnet", "deeplabv3"
    names        {unit: the library's name}
    ours         {unit: our name}
    forms        keywords of our network, each form a dict, all of which are about: if several, it must be said which
    preprocess   of images
    why_not      why our networks cannot compute what it computes, or None
    """

    library: str
    family: str
    names: dict
    ours: dict
    forms: tuple = ({},)
    preprocess: Preprocess = IMAGENET
    why_not: str | None = None


def _deeplab(**keywords):
    """Keywords of a DeepLabV3, all that names do not tell; given ones differ from torchvision's."""
    plain = {"head": "torchvision", "output_stride": 8, "rates": (12, 24, 36), "contracted": True, "multi_grid": None}
    plain |= {"absolute_grid": False, "stride_first": False, "ceil_mode": False, "align_corners": False}
    return plain | keywords


def _with_corners(*forms):
    """Each with both: align_corners is True in configurations for crops of 8 n + 1, such as 769."""
    return tuple({**form, "align_corners": corners} for form in forms for corners in (False, True))


MMSEG = "mmsegmentation"
_MMSEG_FCNS = tuple(
    {"head": "mmseg", "output_stride": stride, "head_dilation": dilation} for stride, dilation in ((8, 1), (16, 6))
)
# Its PSPNet-D32 has the strides of 32 and the dilations of 8, which no network here has.
_MMSEG_PSPNETS = tuple({"output_stride": stride, "contracted": True, "bins": (1, 2, 3, 6)} for stride in (8, 16))
_MMSEG_DEEPLABS = tuple(
    _deeplab(head="mmseg", output_stride=stride, rates=rates, multi_grid=grid, absolute_grid=True)
    for stride, rates, grid in ((8, (12, 24, 36), None), (16, (6, 12, 18), (1, 2, 4)))
)
_KAZUTO_FORM = {"head": "paper", "contracted": False, "stride_first": True, "ceil_mode": True}
_VAINF_16 = {"output_stride": 16, "rates": (6, 12, 18)}

SOURCES = (
    Source("torchvision", "fcn", _without_deep_stem(_FCN), _FCN, ({"head": "torchvision", "align_corners": False},)),
    Source("torchvision", "deeplabv3", _without_deep_stem(_DEEPLAB), _DEEPLAB, (_deeplab(),)),
    Source("semseg", "pspnet", _PSPNET, _PSPNET, ({"contracted": False, "align_corners": True},)),
    Source(MMSEG, "fcn", _MMSEG_FCN, _DEEP_FCN, _with_corners(*_MMSEG_FCNS)),
    Source(MMSEG, "pspnet", _MMSEG_PSPNET, _PSPNET, _with_corners(*_MMSEG_PSPNETS)),
    Source(MMSEG, "deeplabv3", _MMSEG_DEEPLAB, _WIDE, _with_corners(*_MMSEG_DEEPLABS)),
    Source(
        "segmentation_models_pytorch",
        "deeplabv3",
        _SMP_DEEPLAB,
        _DEEPLAB,
        tuple(_deeplab(contracted=False, output_stride=stride, align_corners=True) for stride in (8, 16)),
    ),
    Source(
        "segmentation_models_pytorch",
        "pspnet",
        _SMP_PSPNET,
        _PSPNET,
        why_not="its features come from two stages only, its coarsest level has no BatchNorm, its pyramid is reduced "
        "by a 1x1 convolution and its classes come from a 3x3 one: keep that network, and fastseg.patch it",
    ),
    Source("vainf", "deeplabv3", _VAINF, _DEEPLAB, (_deeplab(**_VAINF_16), _deeplab())),
    Source(
        "kazuto1011",
        "deeplabv3",
        _KAZUTO,
        _PAPER,
        tuple(
            _deeplab(**_KAZUTO_FORM, output_stride=stride, rates=rates, multi_grid=grid)
            for stride, rates in ((16, (6, 12, 18)), (8, (6, 12, 18)), (8, (12, 24, 36)))
            for grid in ((1, 2, 4), (1, 1, 1))
        ),
        preprocess=CAFFE,
    ),
    Source("pytorchcv", "fcn", _PYTORCHCV_FCN, _FCN, ({"head": "torchvision", "align_corners": True},)),
    Source("pytorchcv", "pspnet", _PYTORCHCV_PSPNET, _PSPNET, ({"contracted": True, "align_corners": True},)),
    Source("pytorchcv", "deeplabv3", _PYTORCHCV_DEEPLAB, _DEEPLAB, (_deeplab(align_corners=True),)),
)
SKIP_FCN = "caffe"  # the library of SkipFCNs: their names are ours
LIBRARIES = tuple(dict.fromkeys(source.library for source in SOURCES)) + (SKIP_FCN,)
ALIASES = {"mmseg": "mmsegmentation", "smp": "segmentation_models_pytorch", "pytorch-fcn": SKIP_FCN}


def modules(names):
    """{"{unit}.conv" or "{unit}.bn": name of the module} of all the blocks a ResNet may have."""
    numbers = [(stage, block) for stage in range(1, STAGES + 1) for block in range(MOST_BLOCKS)]
    named = {}
    for unit, name in names.items():
        both = [re.sub(r"\[(.*)\|(.*)\]", rf"\{place}", name) for place in ((1, 2) if "[" in name else (1,))]
        for stage, block in numbers if "{block}" in unit else numbers[:1]:
            values = {"stage": stage, "block": block, "unit": block + 1, "part": stage + 1}
            for part, module in zip(("conv", "bn"), both, strict=False):
                named[f"{unit}.{part}".format(**values)] = module.format(**values)
    return named
