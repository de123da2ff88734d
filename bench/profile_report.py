"""What the user sees of a profile: tables on screen, a JSON file, Markdown."""

from rich import box
from rich.table import Table

from fastseg.bench.formats import significant
from fastseg.bench.report import write_json
from fastseg.bench.screen import Progress

SMALLEST = 0.01  # share of the time: rows below it are one
OTHERS = "others"
WIDTH = 120  # where there is no terminal


def tables(case, ceiling):
    """[(columns, rows)] of one case, all text: by place, and by kind. `ceiling`: TFLOP/s of a matrix product."""
    return [_by_place(case), _by_kind(case, ceiling)]


def _by_place(case):
    passes = list(dict.fromkeys(row["pass"] for row in case["rows"]))
    sums = _summed(case["rows"], "place")
    lines = []
    for place, found in _shown(sums, case["ms"]):
        each = [_percent(sum(r["ms"] for r in found if r["pass"] == which) / case["ms"]) for which in passes]
        milliseconds = sum(r["ms"] for r in found)
        lines.append([place, significant(milliseconds), *([] if len(passes) == 1 else each), *_share(case, found)])
    return ["place", "ms", *([] if len(passes) == 1 else passes), "share"], lines


def _by_kind(case, ceiling):
    lines = []
    for kind, found in _shown(_summed(case["rows"], "kind"), case["ms"], ordered=True):
        milliseconds, flops = (sum(r[what] for r in found) for what in ("ms", "flops"))
        rates = [""] * 3
        if flops:
            rate = flops / milliseconds / 1e9
            rates = [significant(rate), _percent(rate / ceiling), significant(flops / ceiling / 1e9)]
        lines.append([kind, significant(milliseconds), *_share(case, found), *rates])
    return ["kind", "ms", "share", "TFLOP/s", "of matmul", "ms at matmul"], lines


def _summed(rows, key):
    found = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _shown(sums, total, ordered=False):
    """Items of which each is a share of some size; the last is the sum of the others."""
    large = {name: found for name, found in sums.items() if sum(r["ms"] for r in found) >= SMALLEST * total}
    items = sorted(large.items(), key=lambda item: -sum(r["ms"] for r in item[1])) if ordered else list(large.items())
    small = [row for name, found in sums.items() if name not in large for row in found]
    return items + ([(OTHERS, small)] if small else [])


def _share(case, found):
    return [_percent(sum(row["ms"] for row in found) / case["ms"])]


def _percent(share):
    return f"{100 * share:.1f} %"


def title(case):
    shape = "x".join(map(str, case["images"]))
    cost = case["ms"] / case["unprofiled_ms"] - 1
    return (
        f"{case['network']}, {case['task']}, {shape}: {significant(case['ms'])} ms under the profiler, "
        f"{significant(case['unprofiled_ms'])} ms without ({100 * cost:+.1f} %)"
    )


def header(result):
    said, ceiling = result["machine"], result["ceilings"]["matmul_tflop_per_s"]
    version = said["fastseg"] + (f" ({said['commit']})" if said["commit"] else "")
    place = said["device"] if result["device"] != "cpu" else f"{said['device']}, {said['threads']} threads"
    return (
        f"fastseg {version}, torch {said['torch']}, {said['date']}, {place}, {result['dtype']}; "
        f"a large matrix product reaches {significant(ceiling)} TFLOP/s. FLOPs are those within the image."
    )


def markdown(result):
    """The tables of a profile's JSON in Markdown, without headings: who includes them has some."""
    parts = [header(result)]
    for case in result["cases"]:
        parts.append(f"**{title(case)}**")
        for columns, lines in tables(case, result["ceilings"]["matmul_tflop_per_s"]):
            rules = ["---", *["---:"] * (len(columns) - 1)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in (columns, rules, *lines)))
    return "\n\n".join(parts) + "\n"


class Screen(Progress):
    """Progress on stderr, each case's tables on stdout, and the JSON file, once it is measured."""

    def __init__(self, json_path):
        super().__init__(WIDTH)
        self.json_path, self.printed = json_path, 0

    def update(self, result):
        if self.json_path:
            write_json(result, self.json_path)
        if self.printed == 0:
            self.out.print(header(result), soft_wrap=True)
        for case in result["cases"][self.printed :]:
            self.out.print("\n" + title(case), style="bold", soft_wrap=True)
            for columns, lines in tables(case, result["ceilings"]["matmul_tflop_per_s"]):
                self.out.print(_drawn(columns, lines))
        self.printed = len(result["cases"])


def _drawn(columns, lines):
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for line in lines:
        drawn.add_row(*line)
    return drawn
