"""The script for machines with a GPU: its command line, its cases in small, bars and tables."""

from __future__ import annotations

import pytest
import torch

import bnbx
from gpu import cases, cli, report
from gpu.report import Bar, Report, Row
from gpu.timing import Call, interleaved
from side_by_side.timing import Times

GEMM = {"operation": "gemm_4bit", "N": 64, "K": 64}
CPU = torch.device("cpu")


def row(labels, moved=0, **seconds):
    times = {side.replace("_", " "): Times(s, s / 2, 3) for side, s in seconds.items()}
    return Row(f"{labels['operation']} M={labels.get('M')}", labels, moved, times)


def recorded():
    return Report(
        {"device": "NVIDIA H100 80GB HBM3"},
        bandwidth=100.0,
        rows=[
            row({**GEMM, "M": 1}, 75, bnbx=1.0, bitsandbytes=2.0, torch_bf16=4.0),
            row({**GEMM, "M": 16}, 75, bnbx=1.0, bitsandbytes=0.5, torch_bf16=1.5),
            row({"operation": "Adam8bit", "count": 300, "numel": 50_000}, 5, bnbx=1.0),
        ],
        left_out=["nothing"],
    )


@pytest.mark.parametrize(
    ("labels", "bars"),
    [
        ({"operation": "quantize_4bit"}, [Bar("limit", 1 / 0.85)]),
        ({"operation": "dequantize_blockwise"}, [Bar("limit", 1 / 0.85)]),
        ({**GEMM, "M": 1}, [Bar("limit", 1 / 0.75)]),
        ({**GEMM, "M": 4}, []),
        ({**GEMM, "M": 16}, [Bar("torch bf16", 1 / 2)]),
        ({**GEMM, "M": 512}, [Bar("torch bf16", 1.15)]),
        ({"operation": "Linear8bitLt", "M": 512}, [Bar("torch bf16", 1 / 1.2)]),
        ({"operation": "Adam8bit", "count": 1}, [Bar("limit", 1 / 0.85)]),
        ({"operation": "Adam8bit", "count": 300}, [Bar("bitsandbytes", 1 / 5)]),
    ],
)
def test_what_is_asked(labels, bars):
    assert report.bars_of(row(labels)) == [*bars, Bar("bitsandbytes", 1.0)]


def test_verdicts():
    table = report.bars(recorded())
    found = [(line[1], line[-1]) for line in table.rows]
    assert found == [
        ("75% of the copy's bandwidth", "met"),
        ("at most 1x bitsandbytes", "met"),
        ("2x faster than torch bf16", "missed by 1.33x"),
        ("at most 1x bitsandbytes", "missed by 2.00x"),
        ("5x faster than bitsandbytes", "not measured"),
        ("at most 1x bitsandbytes", "not measured"),
        ("1.3x faster than bitsandbytes", "missed"),
    ]
    assert report.mean_speedup(recorded()) == pytest.approx(1.0)


def test_only_what_is_as_fast_as_another_is_given_a_tolerance():
    run = recorded()
    run.rows = [row({**GEMM, "M": 16}, 75, bnbx=1.01, bitsandbytes=1.0, torch_bf16=2.0)]
    assert [line[-1] for line in report.bars(run).rows[:2]] == ["missed by 1.01x", "met"]


def test_file_round_trip(tmp_path):
    file = tmp_path / "folder" / "results.json"
    recorded().save(file)
    assert report.load(file) == recorded()


def test_recorded_results_are_printed(tmp_path, capsys):
    file = tmp_path / "results.json"
    recorded().save(file)
    cli.main(["--from", str(file)])
    printed = capsys.readouterr().out
    assert "NVIDIA H100 80GB HBM3" in printed
    assert "4000 ms (4.00x)" in printed
    assert "75%" in printed


def test_steps_can_be_chosen():
    assert cli.arguments([]).steps == ("build", "test", "sanitize", "bench")
    assert cli.arguments(["--steps", "bench", "--only", "gemm"]).only == ["gemm"]
    with pytest.raises(SystemExit):
        cli.arguments(["--steps", "deploy"])


def test_what_is_not_installed_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setitem(cli.NEEDED, "build", ("torch",))
    monkeypatch.setitem(cli.NEEDED, "test", ("no_such_package",))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cli.sysconfig, "get_path", lambda _: "")
    assert cli.missing(["build", "test"]) == ["no_such_package", "cmake"]
    with pytest.raises(SystemExit, match="not installed: no_such_package"):
        cli.main(["--steps", "test"])


def test_every_case_runs():
    sizes = cases.small(CPU)
    for case in cases.all_cases(sizes, {"bnbx": bnbx}):
        times, failures = interleaved(case.sides, 1, CPU)
        assert not failures, case.name
        assert set(times) == set(case.sides)


def test_what_fails_is_said_and_the_others_are_timed():
    def broken():
        raise RuntimeError("no kernel\nfor this")

    sides = {"a": broken, "b": lambda: Call([lambda: None])}
    times, failures = interleaved(sides, 2, CPU)
    assert failures == {"a": "RuntimeError: no kernel"}
    assert times["b"].samples == 2


def test_the_shapes_with_bars_are_among_the_cases():
    names = {case.name for case in cases.all_cases(cases.Sizes(CPU), {"bnbx": bnbx})}
    for M in (1, 16, 128):
        for N, K in ((4096, 14336), (57344, 8192)):
            assert f"gemm_4bit {N}x{K} M={M}" in names
    assert {"Adam8bit 1 x 100000000", "Adam8bit 300 x 50000"} <= names
