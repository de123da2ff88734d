"""What the configuration that mmsegmentation stores beside its weights says, as keywords of our networks."""

import ast
import contextlib
import math

DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}  # of a ResNet's stages, by output stride
EPS = 1e-5  # PyTorch's, of a BatchNorm


def configuration(content):
    """Keywords of the network, all that its weights do not tell; empty if a file's content holds no configuration.

    Raises ValueError for strides, dilations and activations that no network here has, and for what cannot be read.
    """
    meta = content.get("meta")
    text = (meta.get("cfg") or meta.get("config")) if isinstance(meta, dict) else None
    model = _assigned("model", text) if isinstance(text, str) else None
    parts = [model.get(part) for part in ("backbone", "decode_head")] if isinstance(model, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        return {}
    try:
        return _keywords(*parts, model.get("auxiliary_head"))
    except (TypeError, LookupError) as error:
        raise ValueError(f"load_checkpoint: the file's configuration is damaged: {error}") from error


def _keywords(backbone, head, aux):
    """mmsegmentation's defaults where a part of the configuration is silent."""
    strides, dilations = tuple(backbone.get("strides", (1, 2, 2, 2))), tuple(backbone.get("dilations", (1, 1, 1, 1)))
    output_stride = 4 * math.prod(strides)
    if dilations != DILATIONS.get(output_stride):
        which = f"strides={strides}, dilations={dilations}, as the file's configuration says"
        raise ValueError(f"load_checkpoint: no network here has {which}")
    for part in (backbone, head):
        if isinstance(part.get("act_cfg"), dict) and part["act_cfg"].get("type") != "ReLU":
            raise ValueError(
                f"load_checkpoint: no network here has act_cfg={part['act_cfg']}, as the file's configuration says"
            )
    grid, rates = backbone.get("multi_grid"), tuple(head.get("dilations", (1, 6, 12, 18)))
    of_heads = {part.get("dilation", 1) for part in (head, aux) if isinstance(part, dict)}
    norms = [part.get("norm_cfg") for part in (backbone, head)]
    said = {
        "output_stride": output_stride,
        "contracted": backbone.get("contract_dilation", False) or output_stride == 32,  # where none is dilated
        "multi_grid": grid if grid is None else tuple(grid),
        "stride_first": backbone.get("style", "pytorch") == "caffe",
        "align_corners": head.get("align_corners", False),
        "head_dilation": of_heads.pop() if len(of_heads) == 1 else tuple(sorted(of_heads)),
        "eps": next((norm["eps"] for norm in norms if isinstance(norm, dict) and "eps" in norm), EPS),
    }
    if head.get("type") == "PSPHead" or "pool_scales" in head:
        said["bins"] = tuple(head.get("pool_scales", (1, 2, 3, 6)))
    if head.get("type") == "ASPPHead" or "dilations" in head:
        said["rates"] = rates[1:] if rates[0] == 1 else rates  # after that of the 1x1 convolution
    return said


def _assigned(name, text):
    """The value of a name in Python source of literals and dict(...), or None."""
    with contextlib.suppress(SyntaxError, ValueError):
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == name:
                return _value(statement.value)
    return None


def _value(node):
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
