"""Triton kernels, one file per op, installed as fastseg.kernels. Imported when first used."""
