"""What `fastseg bench --compare` prints."""

from rich import box
from rich.table import Table

from fastseg.bench import compare, report, screen
from fastseg.bench.formats import significant, times

RULE = f"""\
Ours is judged by its speed-up over the best peer that both runs timed, peers by their times. A change counts if it is
more than {compare.LEAST_CHANGE:.0%} and the intervals from the 20 to the 80 % quantile do not overlap; of memory, if it
is more than {compare.LEAST_CHANGE:.0%} and {compare.LEAST_BYTES / 1e6:.0f} MB."""
STYLES = {compare.REGRESSION: "bold red", compare.IMPROVEMENT: "green", compare.SLOWER: "dim", compare.FASTER: "dim"}


def show(before, after, width):
    """Print how two results differ; whether something regressed."""
    out = screen.output(width)

    def say(line, **how):
        out.print(line, soft_wrap=True, markup=False, **how)

    for when, result in (("before", before), ("after", after)):
        say(f"{when + ':':<8}{report.place(result)}; {report.versions(result['machine'])}, {result['machine']['date']}")
    for warning in compare.warnings(before, after):
        say(f"WARNING: {warning}", style="bold yellow")
    say(RULE)
    found, alone = compare.changes(before, after)
    for bench in dict.fromkeys(change.bench for change in found):
        say(f"\n{bench}", style="bold")
        out.print(_table([change for change in found if change.bench == bench]))
    for line in alone:
        say(line)
    regressions = [change for change in found if change.regressed]
    for change in regressions:
        where = (change.bench, change.case, change.provider, change.layout)
        say(f"{', '.join(where)}: {', '.join(change.verdicts)}", style=STYLES[compare.REGRESSION])
    improved = sum(verdict.startswith(compare.IMPROVEMENT) for change in found for verdict in change.verdicts)
    say(f"{len(found)} compared: {len(regressions)} regressed, {improved} improved; {len(alone)} in one run only")
    return bool(regressions)


def _table(changes):
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("case", "provider", "layout"):
        drawn.add_column(name, no_wrap=True)
    for name in ("median ms", "change", "vs best", "peak MB"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("beyond noise")
    last = None
    for change in changes:
        case = change.case if change.case != last else ""
        last = change.case
        style = STYLES[change.verdicts[0].partition(":")[0]] if change.verdicts else None
        drawn.add_row(case, change.provider, change.layout, *_cells(change), ", ".join(change.verdicts), style=style)
    return drawn


def _cells(change):
    both = change.before, change.after
    if any(entry["status"] != "ok" for entry in both):
        return " -> ".join(entry["status"] for entry in both), "", "", ""
    return (
        _arrow(significant(entry["median_ms"]) for entry in both),
        f"{100 * (change.after['median_ms'] / change.before['median_ms'] - 1):+.1f} %",
        _arrow(map(times, change.speedups)),
        _arrow(significant(entry["peak_bytes"], unit=1e6) for entry in both),
    )


def _arrow(cells):
    before, after = cells
    return f"{before} -> {after}" if before and after else ""
