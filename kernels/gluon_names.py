"""Names that Triton's Gluon changed between the releases 3.6 and 3.9."""

from triton.experimental.gluon.language.nvidia.hopper import tma

# From global to shared memory, by the tensor memory accelerator. 3.9 has the old name, too, but only to refuse it.
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
