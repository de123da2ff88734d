"""Benchmarks: every op and network against stock PyTorch. Run `fastseg bench` or `pytest bench`.

All figures are ratios within one run: the providers take turns, so that a slow minute of the machine hits
them all. Times of two runs, let alone of two machines, are not comparable.

To add a bench, write bench_<op>.py; it is found by its name. It only declares, harness.py does the rest:

    TITLE                        one line, for the table
    CASES                        objects with .name, .detail (shapes, one short line), .quick (for --quick)
    inputs(case, device, dtype)  tuple of tensors; random, never zeros; the same on every device
    ours(case), peer(case)       a function of the inputs, or an nn.Module; ours goes through dispatch
    checker(case, inputs)        judge(output) -> Verdict (verdict.py); float64 PyTorch is the truth
and, where they make sense:
    OP                           the op's name: beside what dispatch chooses each backend is timed, if there are several
    bytes(case, dtype)           what any implementation must read and write at least
    flops(case)                  of the straightforward algorithm, a multiply-add counting 2
    executed_flops(case)         of ours, where kernels leave some out
    memory(case, dtype)          bytes that the peer and the check need: with fewer the case is skipped
    fits(case, device)           False to leave a case out on a device where it takes minutes
    missing()                    why this machine cannot run the bench, or None
    absent(case)                 why this machine cannot run a case, or None
    SLOW_TO_COMPILE = True       leave torch.compile out of --quick
    compiles(case, pass, device) False to leave torch.compile out there; --quick compiles no gradients anyway

A differentiable op declares its passes (passes.py says what each does), and each case is measured in each of them:
    PASSES = ("forward", "backward", "both")    # or ("training step",), of networks: needs nothing of what follows
    upstream(case, device, dtype)               gradient of the output; random; not for a scalar, where it is 1
    gradient_checker(case, inputs, upstream)    judge(gradients of the floating-point inputs, a tuple), as checker
    bytes(case, dtype, pass)                    and so flops, executed_flops and memory, with the pass as one more
                                                argument

The harness sets the memory format: it converts 4-d inputs and modules, in advance and outside the timing.
"""
