"""The study of quality: its losses, its variants, its tables."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from quality_study import docs, measures, results, scales
from quality_study.results import Gain, Loss, Row, Study
from quality_study.variants import VARIANTS, Variant

RESULTS = sorted(Path(__file__).parents[2].glob("benchmarks/results/*"))
STUDY = Study(
    {"cpu": "a", "threads": 1, "system": "b", "versions": {"bnbx": "1"}, "date": "c"},
    [1024, 3072],
    [Gain("nf4", "some", 0.25, 0.3, 0.2, 0.04, {"bfloat16": 14.3})],
    [
        Row("bf16", 0, (Loss(10.0, 0.0), Loss(12.0, 0.0)), 200_000_000),
        Row("NF4, random signs 1", 0, (Loss(11.0, 0.1), Loss(13.0, 0.1)), 0),
        Row("FP4, GPTQ", 4096, (Loss(11.0, 0.1), Loss(13.0, 0.3)), 90_000_000, 2.5, 3_000_000),
    ],
)


class Model(nn.Module):
    """Predicts from one token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 128)
        self.layer = nn.Linear(128, 128)
        self.lm_head = nn.Linear(128, 50)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        logits = self.lm_head(self.layer(self.embedding(input_ids)))
        return types.SimpleNamespace(logits=logits)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def test_losses_against_naive_sums(model, tmp_path):
    other = copy.deepcopy(model)
    Variant("NF4").quantize(other, [])
    windows = torch.randint(0, 50, (3, 40))
    expected = measures.predictions(model, windows, tmp_path / "logits")
    loss = measures.loss(other, windows, expected)
    nats, divergence = [], []
    for window in windows:
        with torch.no_grad():
            p = other(window).logits.softmax(-1)
            q = model(window).logits.softmax(-1)
        for i in range(39):
            nats.append(-math.log(p[i, window[i + 1]]))
            divergence.append(float((q[i] * (q[i] / p[i]).log()).sum()))
    assert loss.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert loss.divergence == pytest.approx(sum(divergence) / len(divergence), rel=1e-3)
    assert loss.divergence > 0
    assert measures.loss(model, windows, expected).divergence == 0.0


def error(model, variant, windows):
    changed = copy.deepcopy(model)
    variant.quantize(changed, windows)
    x = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (changed(x).logits - model(x).logits).square().mean().item()


def test_every_variant_quantizes(model):
    torch.manual_seed(1)
    windows = list(torch.randint(0, 50, (4, 64)))
    errors = {v.name: error(model, v, windows[: 1 + v.tokens // 8192]) for v in VARIANTS}
    assert len(errors) == len(VARIANTS) == len(set(errors.values()))
    assert 0 < errors["int8"] < errors["NF4, GPTQ"] < errors["NF4"] < errors["FP4"]


def test_random_signs_have_the_size_of_plain_errors(model):
    plain, *draws = (error(model, Variant("", signs=s), []) for s in (None, 1, 2, 3))
    assert len({plain, *draws}) == 4
    assert all(0.5 < draw / plain < 2 for draw in draws)


def test_gains_of_a_search(model, monkeypatch):
    monkeypatch.setattr(scales, "PER_LAYER", 128 * 64)
    found = list(scales.gains(model))
    assert [(g.values, g.kind) for g in found][1:3] == [("normal", "fp4"), ("the model's", "nf4")]
    for gain in found:
        assert 0.1 < gain.searched < gain.exhaustive < 0.5
        assert 0.9 * gain.searched < gain.nested < 1.1 * gain.searched
        assert 0 <= gain.nested_worse < 0.2
        assert gain.times.keys() == {"bfloat16", "float32"}
        assert min(gain.times.values()) > 0
    assert found[0].nested_worse > 0  # of normal values


def test_peak_of_memory():
    before = measures.reset_peak()
    if not before:
        pytest.skip("not on this system")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    assert measures.peak() - before > 60 << 20
    assert measures.reset_peak() < before + (30 << 20)


def test_results_survive_their_file(tmp_path):
    STUDY.save(tmp_path / "new" / "quality.json")
    assert results.load(tmp_path / "new" / "quality.json") == STUDY


def test_a_row_replaces_the_one_of_its_name():
    study = dataclasses.replace(STUDY)
    again = Row("NF4, random signs 1", 0, (), 7)
    study.put(again)
    assert study.rows == [STUDY.rows[0], again, STUDY.rows[2]]
    study.put(Row("NF4", 0, (), 5))
    assert [row.name for row in study.rows][:2] == ["bf16", "NF4"]


def test_tables():
    gains, table = results.tables(STUDY)
    assert gains.rows == [["some", "nf4", "-25.0%", "-30.0%", "-20.0%", "4.0%", "x 14.3"]]
    assert len(gains.header) == 7
    assert len(table.header) == 9
    assert table.rows[0] == ["bf16", "-", "200.0", "10.00", "-", "12.00", "-", "-", "-"]
    assert table.rows[2] == [
        *("FP4, GPTQ", "4,096", "90.0", "11.00", "0.100", "13.00", "0.300", "2.5", "3")
    ]


def test_plot(tmp_path):
    plot = pytest.importorskip("quality_study.plot")
    plot.draw(STUDY, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text()
    assert "FP4, GPTQ" in picture
    assert "random signs" not in picture
    assert plot._divergence(STUDY, STUDY.rows[2]) == pytest.approx(0.25)
    expected = math.exp(0.25 * math.log(11) + 0.75 * math.log(13))
    assert plot._perplexity(STUDY, STUDY.rows[2]) == pytest.approx(expected)


def test_without_results_there_is_nothing_to_show(tmp_path):
    assert docs.EVIDENCE.section(tmp_path) == ""


def test_document_shows_the_committed_results():
    assert any(docs.EVIDENCE.shows(docs.EVIDENCE.section(folder)) for folder in RESULTS)
