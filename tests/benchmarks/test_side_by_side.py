"""The arithmetic of the side-by-side benchmark, its file and its tables; nothing asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from side_by_side import cases, docs, products, table
from side_by_side.bars import BARS, Bar
from side_by_side.comparison import Result
from side_by_side.limits import BUFFER, Work
from side_by_side.optimizers import state_bytes
from side_by_side.report import Report, load
from side_by_side.timing import Call, Settings, Times, interleaved, takes_part

RESULTS = sorted(Path(__file__).parents[2].glob("benchmarks/results/*"))


def result(name: str = "gemm_4bit M=1", **times: float) -> Result:
    """A result whose minima are half its medians, on a machine that copies in half a second."""
    sides = {side.replace("_", " "): Times(t, t / 2, 5) for side, t in times.items()}
    work = Work(2 * BUFFER, "copy", "n / copy")
    labels = {"operation": "gemm_4bit", "M": 1, "N": 8, "K": 16}
    return Result(name, "products", 2, work, sides, {"copy": Times(0.5, 0.2, 5)}, {}, labels)


def report() -> Report:
    results = [result(bnbx_amx=1.0, bnbx_avx2=4.0, torch_bf16=3.0)]
    machine = {"cpu": "a", "cpus": 2, "caches": "", "isas": ["amx"], "system": "s", "rounds": 11}
    machine |= {"versions": {"bnbx": "0"}, "date": "2000-01-01", "clock": "wall clock"}
    return Report(machine, results=results, left_out=["Adam4bit: not in this version of bnbx"])


def test_limit_is_the_slower_of_memory_and_arithmetic():
    work = Work(moved=100, memory="read", formula="", operations=600, unit="bf16")
    assert work.limit({"read": 10.0, "bf16": 100.0}) == 10
    assert work.limit({"read": 100.0, "bf16": 100.0}) == 6
    assert Work(100, "copy", "").limit({"copy": 50.0}) == 2


def test_work_of_a_product():
    work = products.work_4bit(2, 64, 128)
    assert work.moved == 2 * (2 * 128 + 2 * 64) + 64 * 128 // 2 + 4 * 64 * 128 // 64
    assert work.operations == 2 * 2 * 64 * 128


def test_ratios():
    r = result(bnbx_amx=1.0, bnbx_avx2=4.0, torch_bf16=3.0)
    assert r.ours == "bnbx amx"
    assert r.ratio("torch bf16", r.ours) == 3
    assert r.limit() == 0.5
    assert r.ratio("bnbx amx", None) == 2
    assert r.ratio("bnbx amx", None, "minimum") == 2.5


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1 / 3, "met"), (1 / 4, "missed by 1.33x"), (2, "met")]
)
def test_verdict(factor, verdict):
    r = result(bnbx_amx=1.0, torch_bf16=3.0)
    assert Bar(r.name, factor, "torch bf16").verdict(r) == verdict
    assert Bar(r.name, factor, "torchao").verdict(r) == "not measured"


def test_every_bar_has_a_case():
    assert {bar.name for bar in BARS} <= set(cases.operations())


def test_file_round_trip(tmp_path):
    file = tmp_path / "folder" / "results.json"
    report().save(file)
    assert load(file) == report()


def test_tables():
    limits, bars, by_isa, peers = table.tables(report())
    assert limits.rows[0][-1] == f"{2 * BUFFER / 0.5 / 1e9:.1f} GB/s"
    assert bars.rows[0][1:] == [
        "3x faster than torch bf16",
        "1000 ms",
        "3000 ms",
        "0.33",
        "0.33",
        "met",
    ]
    assert by_isa.rows[0][2:] == ["1000 ms (2x)", "4000 ms (8x)"]
    assert peers.rows[0][1:] == ["1000 ms", "3000 ms (3x)"]
    markdown = bars.text(markdown=True).splitlines()[2:]
    assert [line.count("|") for line in markdown] == [8, 8, 8]


def test_document_shows_the_committed_results():
    assert any(docs.RESULTS.shows(docs.section(folder)) for folder in RESULTS)


@pytest.mark.parametrize("samples", [1, 3, 4, 11])
def test_slow_sides_take_part_as_often_as_they_should(samples):
    assert sum(takes_part(index, 11, samples) for index in range(11)) == samples


def test_interleaved_calls_each_side_in_every_round():
    counts = dict.fromkeys("ab", 0)

    def call(side: str) -> Call:
        def count() -> None:
            counts[side] += 1
            torch.randn(1000)

        return Call([count])

    times = interleaved({side: call(side) for side in "ab"}, Settings(rounds=2, budget=0.1))
    assert all(t.samples == 2 and 0 < t.minimum <= t.median for t in times.values())
    assert all(count > 2 for count in counts.values())


def test_state_bytes_counts_shared_tensors_once():
    parameters = [torch.nn.Parameter(torch.zeros(10)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters)
    shared = torch.zeros(5)
    for p in parameters:
        optimizer.state[p] = {"state1": torch.zeros(10, dtype=torch.uint8), "map": shared}
    assert state_bytes(optimizer) == (2 * 10 + 5 * 4) / 20
