"""fastseg: fast, exact, memory-lean semantic segmentation.

Kernels in `fastseg.ops`, modules in `fastseg.nn`, networks in `fastseg.models`, images in windows and at several
scales in `fastseg.inference`, scores in `fastseg.metrics`.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

_root = _Path(__file__).resolve().parent.parent
if (_root / "kernels" / "__init__.py").exists() and (_root / "setup.py").exists():
    # A source checkout: kernels/ and bench/ lie beside this folder, not in it as they do once installed.
    __path__.append(str(_root))

from fastseg import inference, metrics, models, nn, ops  # noqa: E402
from fastseg.dispatch import backends, use_backend  # noqa: E402
from fastseg.extension import build_info  # noqa: E402
from fastseg.folding import fold  # noqa: E402
from fastseg.models import load_checkpoint  # noqa: E402
from fastseg.nn.freezing import freeze_bn  # noqa: E402
from fastseg.patch import is_patched, patch, patched, register, report, unpatch  # noqa: E402
from fastseg.tail import loss, predict  # noqa: E402

__all__ = [
    "backends",
    "build_info",
    "fold",
    "freeze_bn",
    "inference",
    "is_patched",
    "load_checkpoint",
    "loss",
    "metrics",
    "models",
    "nn",
    "ops",
    "patch",
    "patched",
    "predict",
    "register",
    "report",
    "unpatch",
    "use_backend",
]
