"""The table at the head of README.md, from the runs in bench/results: a handful of cases, good or bad."""

import textwrap

from fastseg.bench import reading, report
from fastseg.bench.formats import markdown, significant, times
from fastseg.bench.passes import BOTH, FORWARD, TRAINING_STEP

BEGIN, END = "<!-- figures: python -m fastseg.bench.publish -->", "<!-- end of figures -->"
# (bench, case, pass): what a reader is told it is
SHOWN = {
    ("networks", "pspnet_resnet50, ADE20K", FORWARD): "PSPNet-ResNet50, image to labels",
    ("networks", "deeplabv3_resnet50", FORWARD): "DeepLabv3-ResNet50, image to labels",
    ("training", "pspnet_resnet50", TRAINING_STEP): "PSPNet-ResNet50, a step of training",
    ("training", "deeplabv3_resnet50", TRAINING_STEP): "DeepLabv3-ResNet50, a step of training",
    ("upsample_argmax", "ADE20K", FORWARD): "logits to labels, ADE20K (`upsample_argmax`)",
    ("upsample_argmax", "Cityscapes", FORWARD): "the same, Cityscapes",
    ("upsample_argmax", "ADE20K, noise", FORWARD): "the same, ADE20K, white noise",
    ("upsample_cross_entropy", "ADE20K", BOTH): "loss and gradient, ADE20K (`upsample_cross_entropy`)",
    ("pyramid_conv2d", "PSPNet 473", FORWARD): "PSPNet's last 3x3 convolution (`pyramid_conv2d`)",
    ("pyramid_conv2d", "PSPNet 473", BOTH): "the same with its gradients",
    ("deconv2d", "FCN-32s", FORWARD): "FCN-32s' deconvolution (`deconv2d`)",
    ("deconv2d", "FCN-8s", FORWARD): "FCN-8s' deconvolution",
}


def put_in(text, results):
    """The README with its table made anew. results: [(path, result)]."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the comments {BEGIN} and {END}")
    tables = [line for path, result in results for line in _table(path, result)]
    return "\n".join([before + BEGIN, "", *tables, END + after])


def _table(path, result):
    rows = list(filter(None, (_row(what, _find(result, *where)) for where, what in SHOWN.items())))
    if not rows:
        return
    yield from markdown(("", "PyTorch at its best", "fastseg", "faster"), rows)
    yield ""
    said = result["machine"]
    caption = (
        f"{report.place(result)}; fastseg in its faster memory format, PyTorch's time and memory each the least of "
        f"eager and `torch.compile` in both. {report.versions(said)}, {said['date'][:10]}; "
        f"[its file](bench/results/{path.name}), [all figures](bench/RESULTS.md)."
    )
    yield from (*textwrap.wrap(caption, 120, break_long_words=False, break_on_hyphens=False), "")


def _find(result, name, case_name, which):
    for bench in result["benches"]:
        for case in bench["cases"]:
            if (bench["name"], reading.base_name(case), case["pass"]) == (name, case_name, which):
                return case
    return None


def _row(what, case):
    """None where either side has no time."""
    if case is None:
        return None
    peers = reading.timed(case, peer=True)
    chosen = reading.our_names(case)[:1]  # what dispatch takes first
    ours = reading.fastest([entry for entry in reading.timed(case, peer=False) if entry["provider"] in chosen])
    if not peers or ours is None:
        return None
    best = reading.fastest(peers)["median_ms"], reading.least_memory(peers)
    cells = (_cost(*best), _cost(ours["median_ms"], ours["peak_bytes"]))
    return what, *cells, times(reading.speedup(ours, peers))


def _cost(milliseconds, memory):
    return f"{significant(milliseconds)} ms" + (f", {significant(memory, unit=1e6)} MB" if memory is not None else "")
