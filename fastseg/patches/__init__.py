"""What `fastseg.patch` makes faster: a file for each library, whose classes are found by their names.

Add one: a file here, or `fastseg.register` in a package of your own.
"""

from fastseg.patches import mmseg, semseg, smp, torch_nn, torchvision, transformers, vainf

__all__ = ["mmseg", "semseg", "smp", "torch_nn", "torchvision", "transformers", "vainf"]
