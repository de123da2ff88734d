"""What is read out of a run's JSON: tables, pictures, comparisons, targets, and the published pages."""

import json
import types
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastseg import cli
from fastseg.bench import (
    bench_upsample_bilinear,
    compare,
    harness,
    headline,
    heads,
    plot,
    plot_bars,
    plot_roofline,
    publish,
    report,
    results_page,
    schema,
    targets,
    targets_met,
)
from fastseg.bench.passes import passes_of

ROOT = Path(__file__).parent.parent
LAYOUTS = ("NCHW", "channels_last")


def entry(provider, layout="NCHW", ms=1.0, peak=1e6, spread=0.001, **more):
    return {
        "provider": provider,
        "layout": layout,
        "peer": not provider.startswith("fastseg"),
        "status": "ok",
        "reason": None,
        "median_ms": ms,
        "p20_ms": ms * (1 - spread),
        "p80_ms": ms * (1 + spread),
        "peak_bytes": peak,
        **more,
    }


def case(*entries, name="VOC", which="forward", **more):
    """One pass of a case, with the ratios the harness adds."""
    best = min((e["median_ms"] for e in entries if e["peer"] and e["status"] == "ok"), default=None)
    for e in entries:
        e["speedup"] = best and best / e["median_ms"]
    of_pass = {"name": name if which == "forward" else f"{name}, {which}", "pass": which, "detail": "1x2x8x8"}
    return {**of_pass, "skipped": None, "providers": list(entries), **more}


def run(**benches):
    """A result with {bench: cases}."""
    machine = {"date": "2026-11-24T00:00:00+00:00", "device": "a CPU", "threads": 2, "torch": "2.13", "fastseg": "1"}
    return schema.filled(
        {
            "schema": 2,
            "complete": True,
            "quick": False,
            "machine": machine,
            "ceilings": {"copy_gb_per_s": 20.0, "matmul_tflop_per_s": 0.3},
            "device": "cpu",
            "dtype": "float32",
            "benches": [
                {"name": name, "title": f"{name}: something", "skipped": None, "cases": cases}
                for name, cases in benches.items()
            ],
        }
    )


def argmax(eager=10.0, ours=0.2, **more):
    """A run of one case of upsample_argmax: eager in both layouts, ours in NCHW."""
    return run(
        upsample_argmax=[
            case(
                entry("eager", ms=eager),
                entry("eager", "channels_last", ms=2 * eager),
                entry("fastseg", ms=ours, **more),
            )
        ]
    )


@pytest.fixture
def measured(monkeypatch):
    """A run of the harness itself: one pass that is right, one that is wrong, one that is skipped."""
    found = {"copy_gb_per_s": 10.0, "matmul_tflop_per_s": 0.1}
    monkeypatch.setattr(harness.machine, "ceilings", lambda device, dtype, with_flops: found)
    monkeypatch.setattr(harness.memory.CpuProcess, "peaks", lambda self, name: {})
    tiny = vars(bench_upsample_bilinear) | {
        "CASES": (heads.Case("tiny", (1, 2, 5, 4), (35, 28)),),
        "SLOW_TO_COMPILE": True,
    }
    big = types.SimpleNamespace(**tiny | {"memory": lambda case, dtype, which: 1e18})
    wrong = types.SimpleNamespace(**tiny | {"ours": lambda case: lambda x: 2 * tiny["peer"](case)(x)})
    benches = {"right": types.SimpleNamespace(**tiny), "wrong": wrong, "big": big}
    brief = harness.Effort(quick=True, seconds=0, least_rounds=1)
    return harness.run(benches, torch.device("cpu"), torch.float32, brief)


def test_a_real_result_has_the_documented_fields(measured):
    statuses = {e["status"] for bench in measured["benches"] for case in bench["cases"] for e in case["providers"]}
    assert statuses == {"ok", "wrong"} and measured["benches"][2]["cases"][0]["skipped"]
    assert schema.departures(measured) == []


def test_an_undocumented_and_a_missing_field_are_told(measured):
    measured["machine"]["mood"] = "good"
    del measured["benches"][0]["cases"][0]["bytes"]
    del next(e for e in measured["benches"][0]["cases"][0]["providers"] if e["status"] == "ok")["p20_ms"]
    told = ["machine has mood, which is not documented", "case lacks bytes", "provider lacks p20_ms"]
    assert schema.departures(measured) == told


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "No such file"),
        ("# fastseg", "is no JSON"),
        ("[1, 2]", 'has no number as "schema"'),
        ('{"schema": 1, "profile": true}', "is a profile"),
        ('{"schema": 99}', "has schema 99, this fastseg reads 2"),
        ('{"schema": 2, "machine": {}}', "is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text, said, tmp_path, capsys):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(schema.ResultError, match="run.json.*" + said):
        schema.read(path)
    good = tmp_path / "good.json"
    good.write_text(json.dumps(argmax()))
    assert cli.main(["bench", "--compare", str(good), str(path)]) == 2
    assert said in capsys.readouterr().err


def verdicts(before, after):
    found, _ = compare.changes(before, after)
    return {(change.provider, change.layout): change.verdicts for change in found}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ()),
        ({"ours": 0.208}, ()),  # apart, but not by 5 %
        ({"ours": 0.22}, ("regression: vs best",)),
        ({"ours": 0.18}, ("improvement: vs best",)),
        ({"ours": 0.22, "spread": 0.2}, ()),  # by 5 %, but not apart
        ({"ours": 0.44, "eager": 20.0}, ("regression: vs best",)),
        ({"ours": 0.40, "eager": 20.0}, ()),  # a slow machine cancels
        ({"peak": 1.9e6}, ()),
        ({"peak": 2.1e6}, ("regression: memory",)),
        ({"ours": 0.18, "peak": 2.1e6}, ("improvement: vs best", "regression: memory")),
        ({"status": "wrong"}, ("regression: wrong",)),
    ],
)
def test_only_what_is_beyond_noise_is_a_change(change, expected):
    assert verdicts(argmax(), argmax(**change))["fastseg", "NCHW"] == expected


def test_a_slower_peer_is_told_and_is_no_regression():
    before, after = argmax(), argmax(eager=11.0, ours=0.22)
    found, _ = compare.changes(before, after)
    assert verdicts(before, after)["eager", "NCHW"] == ("slower: time",)
    assert not any(change.regressed for change in found)


def test_ours_is_compared_with_a_peer_that_both_runs_have():
    """A quick run compiles little: without this, its best peer would be another one."""
    before, after = argmax(), argmax()
    after["benches"][0]["cases"][0]["providers"].append(entry("torch.compile", ms=1.0))
    assert verdicts(before, schema.filled(after))["fastseg", "NCHW"] == ()
    _, alone = compare.changes(before, after)
    assert alone == ["upsample_argmax, VOC, torch.compile, NCHW: only after"]


def test_the_command_compares(tmp_path, capsys):
    def compared(before, after):
        paths = [tmp_path / name for name in ("before.json", "after.json")]
        for path, result in zip(paths, (before, after), strict=True):
            path.write_text(json.dumps(result))
        return cli.main(["bench", "--compare", *map(str, paths)]), capsys.readouterr().out

    code, said = compared(argmax(), argmax())
    assert code == 0 and "3 compared: 0 regressed, 0 improved; 0 in one run only" in said and "WARNING" not in said
    after = argmax(ours=0.4)
    after["machine"] |= {"device": "another CPU", "threads": 4}
    after["dtype"] = "bfloat16"
    after["benches"][0]["cases"].append(case(entry("eager"), name="ADE20K"))
    code, said = compared(argmax(), after)
    assert code == 1 and "upsample_argmax, VOC, fastseg, NCHW: regression: vs best" in said
    assert "0.200 -> 0.400  +100.0 %  50.0x -> 25.0x" in said
    assert "upsample_argmax, ADE20K: only after" in said
    for what in ("device", "dtype", "threads"):
        assert f"WARNING: {what} differs" in said


@pytest.mark.parametrize(
    "ours, verdict",
    [
        ((0.39, 0.4), targets_met.HIT),
        ((0.39, 0.41), targets_met.PARTLY),
        ((0.41, 0.41), targets_met.MISSED),
        ((), targets_met.NOT_MEASURED),
    ],
)
def test_a_target_is_hit_in_both_layouts_or_missed(ours, verdict):
    peers = [entry("eager", ms=20), entry("torch.compile", "channels_last", ms=10)]
    fastseg = [entry("fastseg native", layout, ms=ms) for layout, ms in zip(LAYOUTS, ours, strict=False)]
    rows = [
        row.split(" | ")
        for row in targets_met.lines(run(upsample_argmax=[case(*peers, *fastseg)]))
        if row.startswith("| upsample_argmax | VOC | ")
    ]
    ((*_, wanted, figures, said, why),) = rows
    assert wanted == "at least 25x" and said == verdict
    assert figures == " / ".join(f"{10 / ms:.1f}x" for ms in ours)
    assert (why == "not known |") is ("MISSED" in verdict)


def test_misses_come_first_and_give_their_reason():
    slow = [case(entry("eager"), *(entry("fastseg", layout, ms=2) for layout in LAYOUTS), name="FCN-8s")]
    wrong = [case(entry("eager"), entry("fastseg", status="wrong"), name="PSPNet 473", which="backward")]
    lines = targets_met.lines(run(deconv2d=slow, pyramid_pool=wrong))
    assert "MISSED: 2; not measured: " in lines[0]
    assert lines[4].startswith(
        "| deconv2d | FCN-8s | forward | at least 1.8x | 0.500x / 0.500x | MISSED | The products"
    )
    assert lines[5] == "| pyramid_pool | PSPNet 473 | backward | at least 2x | wrong | MISSED | not known |"


def test_a_target_of_memory_is_against_the_leanest_peer():
    peers = [entry("eager", ms=1, peak=400e6), entry("torch.compile", ms=2, peak=100e6)]
    target = targets.Target("upsample_cross_entropy", "ADE20K", "both", 1 / 20, targets.MEMORY)
    of = case(*peers, *(entry("fastseg", layout, peak=4e6) for layout in LAYOUTS))
    assert targets_met.measured(target, of) == [0.04, 0.04]


def test_targets_are_for_two_threads_of_a_cpu():
    result = argmax()
    assert targets.apply(result)
    for change in ({"device": "cuda"}, {"dtype": "bfloat16"}, {"machine": {**result["machine"], "threads": 8}}):
        assert not targets.apply({**result, **change})


def test_targets_and_headlines_speak_of_cases_that_exist():
    """As far as their benches and passes do."""
    benches = harness.discover()
    known = [(name, case.name, which) for name, b in benches.items() for case in b.CASES for which in passes_of(b)]
    passes = {which for *_, which in known} | {targets.ANY_PASS}
    wanted = [(target.bench, target.case, target.which) for target in targets.TARGETS] + list(headline.SHOWN)
    wanted = [want for want in wanted if want[0] in benches and want[2] in passes]
    assert len(wanted) > 30
    assert [want for want in wanted if not any(all(map(fnmatchcase, there, want)) for there in known)] == []


def sections(page):
    return [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]


def test_the_page_begins_with_networks_and_hides_no_miss():
    result = run(
        aspp=[case(entry("eager"), entry("fastseg", ms=0.5))],
        deconv2d=[
            case(
                entry("eager", peak=2e6, error=2e-7),
                entry("fastseg native", ms=4, peak=3e6, error=1e-7, tflop_per_s_of_ceiling=0.25),
                entry("fastseg native", "channels_last", ms=0.5, error=3e-7, tflop_per_s_of_ceiling=0.5),
                entry("fastseg triton", ms=0.25),
            ),
            case(entry("eager"), entry("fastseg native", status="wrong", reason="not a <number>"), name="bad"),
        ],
        networks=[case(entry("eager"), entry("fastseg"), which="training step", name="net")],
    )
    page = results_page.page([(Path("a_cpu.json"), result)])
    assert sections(page) == ["Targets", "networks", "aspp", "deconv2d"]
    assert "[a_cpu.json](results/a_cpu.json)" in page
    assert "of 5 passes of a case" in page and "in 3, in one of them in 1, in none in 1" in page
    row = [
        "VOC: 1x2x8x8",
        "forward",
        "eager, NCHW: 1.00 ms, 2.00 MB",
        "fastseg native: 4.00 ms, 3.00 MB / 0.500 ms, 1.00 MB",
        "**0.250x** / 2.00x",
        "**1.50x** / 0.500x",
        "1.0e-07 / 3.0e-07 (2.0e-07)",
        "25 % / 50 % of matmul",
    ]
    assert f"| {' | '.join(row)} |" in page
    assert "| fastseg triton: 0.250 ms, 1.00 MB | 4.00x |" in page
    assert (
        "| fastseg native: **wrong** |  |" in page and "- bad, fastseg native, NCHW: wrong: not a &lt;number>" in page
    )
    assert "| net: 1x2x8x8 | training step |" in page


def test_the_headline_takes_each_at_its_best():
    result = run(
        upsample_argmax=[
            case(
                entry("eager", ms=8, peak=2e6),
                entry("torch.compile", ms=16, peak=1e6),
                entry("fastseg native", ms=4, peak=3e5),
                entry("fastseg native", "channels_last", ms=2, peak=4e5),
                entry("fastseg composed", ms=1),
                name="ADE20K",
            )
        ]
    )
    readme = headline.put_in(f"above\n{headline.BEGIN}\nold\n{headline.END}\nbelow\n", [(Path("a.json"), result)])
    assert readme.startswith(f"above\n{headline.BEGIN}\n") and readme.endswith(f"\n{headline.END}\nbelow\n")
    assert "| 8.00 ms, 1.00 MB | 2.00 ms, 0.400 MB | 4.00x |" in readme and "old" not in readme
    assert headline.put_in(readme, [(Path("a.json"), result)]) == readme
    with pytest.raises(ValueError, match="README.md lacks the comments"):
        headline.put_in("above", [])


def test_the_published_pages_are_not_stale():
    for path, text in publish.pages(ROOT).items():
        assert path.read_text() == text, f"{path.name}: run python -m fastseg.bench.publish"


def test_a_narrow_terminal_keeps_what_matters_most():
    full = {"gb_per_s": 1.0, "gb_per_s_of_ceiling": 0.1, "error": 1e-7, "executed_tflop_per_s": 0.1, "tflop_per_s": 0.2}
    (bench,) = run(op=[case(entry("eager", **full), entry("fastseg", **full))])["benches"]

    def headings(width):
        return [str(column.header) for column in report.table(bench, Console(width=width)).columns][3:]

    every = ["median ms", "vs best", "peak MB", "of copy", "error", "20..80 %", "GB/s", "TFLOP/s", "executed"]
    assert headings(200) == every
    assert 2 < len(headings(70)) < len(every) and headings(70) == every[: len(headings(70))]
    assert set(every) < set(report.COLUMNS) and all(f"  {name} " in report.header(argmax()) for name in every)


MATRIX = {"bytes": 1e9, "flops": 1e10, "executed_flops": 5e9}


def test_the_roofline_has_ours_twice_and_the_fastest_peer():
    entries = [entry("eager", ms=40, tflop_per_s=0.25), entry("eager", "channels_last", ms=50, tflop_per_s=0.2)]
    ours = entry("fastseg", ms=25, tflop_per_s=0.4, executed_tflop_per_s=0.2)
    result = run(conv=[case(*entries, ours, **MATRIX)], pool=[case(entry("eager"), bytes=1e9)])
    assert plot_roofline._points(result["benches"][0]["cases"][0]) == {
        "fastest peer": (10, 0.25),
        "ours, effective": (10, 0.4),
        "ours, executed": (5, 0.2),
    }
    assert len(plot_roofline.panels(result)) == 1
    result["ceilings"]["matmul_tflop_per_s"] = None
    assert plot_roofline.panels(result) == []


def test_bars_of_memory_are_of_training_and_of_the_leaner_layout():
    entries = [entry("eager", peak=9e6), entry("eager", "channels_last", peak=5e6), entry("fastseg", status="failed")]
    result = run(op=[case(*entries, which="both"), case(entry("eager"), name="forward only")])
    (panel,) = plot_bars.memory(result)
    labels = [label for label, _ in panel.draw.keywords["rows"]]
    assert labels == ["op: VOC, both, 1x2x8x8", "eager, channels_last", "fastseg, NCHW"]


def test_a_picture_of_everything_and_of_nothing(tmp_path):
    trained = [
        case(
            entry("eager", tflop_per_s=0.1),
            entry("fastseg", ms=0.1, tflop_per_s=0.9, executed_tflop_per_s=0.2),
            entry("fastseg", "channels_last", status="wrong"),
            which="both",
            **MATRIX,
        )
    ]
    heights = []
    for result in (run(conv=trained), run(conv=[case(entry("eager", status="failed"))]), run()):
        path = tmp_path / "run.png"
        plot.write_png(result, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        heights.append(int.from_bytes(path.read_bytes()[20:24], "big"))
    assert heights[0] > 1000 > heights[1] == heights[2]


def test_a_picture_of_very_many_cases_is_drawn_coarser(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "MOST_DOTS", 200)
    plot.write_png(argmax(), tmp_path / "run.png")
    assert int.from_bytes((tmp_path / "run.png").read_bytes()[20:24], "big") <= 200
