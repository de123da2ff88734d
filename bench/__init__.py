"""Benchmarks, one file per op, installed as fastseg.bench."""
