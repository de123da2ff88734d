"""Benchmarks: every op and network against stock PyTorch. Run `fastseg bench` or `pytest bench`.

All figures are ratios within one run: the providers take turns, so that a slow minute of the machine hits
them all. Times of two runs, let alone of two machines, are not comparable.

To add a bench, write bench_<op>.py; it is found by its name. It only declares, harness.py does the rest:

    TITLE                        one line, for the table
    CASES                        objects with .name, .detail (shapes, one short line), .quick (for --quick)
    inputs(case, device, dtype)  tuple of tensors; random, never zeros; the same on every device
    ours(case), peer(case)       a function of the inputs, or an nn.Module; ours goes through dispatch
    checker(case, inputs)        judge(output) -> None, or why it is wrong; float64 PyTorch is the truth
and, where they make sense:
    OP                           the op's name: each backend is timed; without it, what dispatch chooses
    bytes(case, dtype)           what any implementation must read and write at least
    flops(case)                  of the straightforward algorithm, a multiply-add counting 2
    missing()                    why this machine cannot run the bench, or None
    SLOW_TO_COMPILE = True       leave torch.compile out of --quick

The harness sets the memory format: it converts 4-d inputs and modules, in advance and outside the timing.
"""
