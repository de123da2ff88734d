"""Whether a run has what targets.py wants, as a table in Markdown."""

from fnmatch import fnmatchcase

from fastseg.bench import reading, targets
from fastseg.bench.formats import markdown, pair, times
from fastseg.bench.passes import FORWARD
from fastseg.ops.atrous_conv2d_plan import axis, executed_work

VERDICTS = MISSED, PARTLY, NOT_MEASURED, HIT = "MISSED", "MISSED in one layout", "not measured", "hit"


def lines(result):
    """Misses first, with their reasons."""
    rows = [row for target in targets.TARGETS for row in _rows(target, result)] + [
        _planned(plan) for plan in targets.PLANS
    ]
    rows.sort(key=lambda row: VERDICTS.index(row[-2]))  # stable
    counts = [(verdict, sum(row[-2] == verdict for row in rows)) for verdict in VERDICTS]
    return [
        "Ours over the fastest of eager and torch.compile in either layout, or over the memory of the leanest. "
        + "; ".join(f"{verdict}: {count}" for verdict, count in counts if count)
        + ".",
        "",
        *markdown(("bench", "case", "pass", "wanted", "NCHW / channels_last", "", "why"), rows),
    ]


def _rows(target, result):
    """One row per case and pass that the target speaks of."""
    cases = [
        case
        for bench in result["benches"]
        if bench["name"] == target.bench
        for case in bench["cases"]
        if fnmatchcase(reading.base_name(case), target.case) and fnmatchcase(case["pass"], target.which)
    ]
    for case in cases:
        yield _row(target, reading.base_name(case), case["pass"], measured(target, case))
    if not cases:
        yield _row(target, target.case, target.which, [])


def measured(target, case):
    """The figure, or else the status, of ours in each layout; [] if there is nothing to compare."""
    ratio = {targets.SPEEDUP: reading.speedup, targets.MEMORY: reading.memory_ratio}[target.quantity]
    ours = [entry for name in reading.our_names(case)[:1] for entry in reading.by_layout(case, name)]
    figures = [
        entry["status"] if entry["status"] != "ok" else ratio(entry, _peers(target, case, entry)) for entry in ours
    ]
    return [] if None in figures else figures


def _peers(target, case, ours):
    peers = reading.timed(case, peer=True)
    return [peer for peer in peers if not target.same_layout or peer["layout"] == ours["layout"]]


def _row(target, case, which, figures):
    reached = [not isinstance(figure, str) and _reaches(target, figure) for figure in figures]
    verdict = NOT_MEASURED
    if reached:
        verdict = HIT if all(reached) else PARTLY if any(reached) else MISSED
    return (
        target.bench,
        case,
        "any" if which == targets.ANY_PASS else which,
        (
            f"at least {target.wanted:g}x" + (" of the same layout" if target.same_layout else "")
            if target.quantity == targets.SPEEDUP
            else f"at most {target.wanted:g}x the memory"
        ),
        pair([figure if isinstance(figure, str) else times(figure) for figure in figures]),
        verdict,
        (target.why or "not known") if verdict in (MISSED, PARTLY) else "",
    )


def _reaches(target, figure):
    return figure >= target.wanted if target.quantity == targets.SPEEDUP else figure <= target.wanted


def _planned(plan):
    axes = [axis(plan.side, 3, 1, rate, rate) for rate in plan.rates]
    share = sum(executed_work(plan.batch, side, side) for side in axes) / len(axes)
    rates = "/".join(map(str, plan.rates))
    case = f"three branches, batch {plan.batch}, {plan.side}x{plan.side}, rates {rates}"
    verdict = HIT if share <= plan.wanted else MISSED
    wanted = f"at most {plan.wanted:g} of the dense work"
    return "atrous_pyramid", case, FORWARD, wanted, f"{share:.3f}, by the plan", verdict, ""
