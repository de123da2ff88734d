"""What changed from one run to another: `fastseg bench --compare BEFORE.json AFTER.json`.

Times of two runs are not comparable, ratios within each are. So ours is compared by its speed-up over the best peer
that both runs timed: a slow minute of the machine cancels. Peers are compared by their times; that tells how far the
machine or PyTorch changed, and is never a regression.

A change counts only beyond noise: if it is more than 5 % and the intervals from the 20 to the 80 % quantile do not
overlap. The interval of a ratio has the quotients of our and the peer's quantiles as ends. More memory is a regression
too, by more than 5 % and 1 MB, and so is what ran before and does not after. What is in one run only is listed.
"""

from dataclasses import dataclass
from operator import truediv

from fastseg.bench import reading

LEAST_CHANGE = 0.05
LEAST_BYTES = 1e6  # memory is good to some 0.3 MB
REGRESSION, IMPROVEMENT, SLOWER, FASTER = "regression", "improvement", "slower", "faster"


@dataclass(frozen=True)
class Change:
    bench: str
    case: str  # with its pass
    provider: str
    layout: str
    before: dict  # entries, as in schema.py
    after: dict
    speedups: tuple  # of ours over the best peer of both runs, before and after; (None, None) of a peer, or without one
    verdicts: tuple  # such as "regression: memory"; none where nothing changed beyond noise

    @property
    def regressed(self):
        return any(verdict.startswith(REGRESSION) for verdict in self.verdicts)


def changes(before, after):
    """([Change], [what is in one run only, a line each]) of two results that schema.read gave."""
    found, alone = [], []
    for key, old, new in _paired(_cases(before), _cases(after), alone):
        where = []
        pairs = list(_paired(_providers(old), _providers(new), where))
        alone += [", ".join((*key, line)) for line in where]
        peers = [(a, b) for _, a, b in pairs if a["peer"] and a["status"] == b["status"] == "ok"]
        best = [reading.fastest(entries) for entries in zip(*peers, strict=True)]
        for who, a, b in pairs:
            speedups = _speedups(best, a, b)
            found.append(Change(*key, *who, a, b, speedups, tuple(_verdicts(best, a, b))))
    return found, alone


def warnings(before, after):
    """Why the two are hardly comparable, a line each."""
    wheres = {
        "device": lambda result: result["machine"]["device"],
        "dtype": lambda result: result["dtype"],
        "threads": lambda result: result["machine"]["threads"],
        "torch": lambda result: result["machine"]["torch"],
        "--quick": lambda result: "yes" if result["quick"] else "no",
    }
    said = [
        f"{name} differs: {of(before)} before, {of(after)} after"
        for name, of in wheres.items()
        if of(before) != of(after)
    ]
    ends = [when for when, result in (("before", before), ("after", after)) if not result["complete"]]
    return said + [f"the run {when} did not end: cases are missing" for when in ends]


def _cases(result):
    """{(bench, case): what was measured of it}."""
    return {
        (bench["name"], case["name"]): case
        for bench in result["benches"]
        for case in bench["cases"]
        if not case["skipped"]
    }


def _providers(case):
    return {(entry["provider"], entry["layout"]): entry for entry in case["providers"]}


def _paired(old, new, alone):
    """(key, old, new) of the keys of both; adds lines to `alone` for the others."""
    for when, keys in (("before", old.keys() - new.keys()), ("after", new.keys() - old.keys())):
        alone += [f"{', '.join(key)}: only {when}" for key in sorted(keys)]
    return [(key, old[key], new[key]) for key in old if key in new]


def _speedups(best, *entries):
    if not best or entries[0]["peer"] or any(entry["status"] != "ok" for entry in entries):
        return None, None
    return tuple(reading.speedup(entry, [peer]) for entry, peer in zip(entries, best, strict=True))


def _verdicts(best, before, after):
    """What changed beyond noise. best: the best peer, as it was in each run; [] without one."""
    worse, better = (SLOWER, FASTER) if before["peer"] else (REGRESSION, IMPROVEMENT)
    ran = [entry["status"] == "ok" for entry in (before, after)]
    if not all(ran):
        if ran[0] != ran[1]:
            yield f"{worse if ran[0] else better}: {after['status']}"
        return
    intervals = [(entry["p20_ms"], entry["median_ms"], entry["p80_ms"]) for entry in (before, after)]
    what = "time"
    if best and not before["peer"]:  # the time in units of the best peer's
        of_peers = [(peer["p80_ms"], peer["median_ms"], peer["p20_ms"]) for peer in best]
        intervals = [tuple(map(truediv, ours, peer)) for ours, peer in zip(intervals, of_peers, strict=True)]
        what = "vs best"
    (low, middle, high), (new_low, new_middle, new_high) = intervals
    if new_low > high and new_middle > middle * (1 + LEAST_CHANGE):
        yield f"{worse}: {what}"
    elif new_high < low and new_middle < middle * (1 - LEAST_CHANGE):
        yield f"{better}: {what}"
    old, new = before["peak_bytes"], after["peak_bytes"]
    if None not in (old, new) and not before["peer"] and abs(new - old) > max(LEAST_BYTES, LEAST_CHANGE * old):
        yield f"{worse if new > old else better}: memory"
