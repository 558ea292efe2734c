"""The training study: its text, its model, one short run of each optimizer, and its arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from training_study import docs, table, text
from training_study.contenders import CONTENDERS, Contender, baseline, matrices
from training_study.model import LanguageModel, Shape, rotated
from training_study.results import Comparison, Study, load
from training_study.train import Point, Run, Settings, sample, train, windows

RESULTS = sorted(Path(__file__).parents[2].glob("benchmarks/results/*"))
#: Every matrix has 4096 elements or more, so that its states are quantized.
TINY = Settings(steps=4, batch=2, shape=Shape(64, 1, 2, 32), watched=2, judged=4, dtype="float32")
SENTENCE = torch.tensor(list(b"The quick brown fox jumps over the lazy dog. " * 50)).byte()
TEXT = text.Text(SENTENCE, SENTENCE.flip(0))
PRESENT = [contender for contender in CONTENDERS if contender.factory]


@pytest.fixture(scope="module")
def library() -> text.Text:
    return text.load()


def paragraphs(part: torch.Tensor) -> list[str]:
    return bytes(part.tolist()).decode().split("\n\n")


def test_the_text_is_long_enough_and_held_out_paragraphs_are_new(library):
    training, held_out = map(paragraphs, (library.training, library.held_out))
    settings = Settings()
    length = settings.shape.length
    assert library.training.numel() > settings.steps * settings.batch * length
    assert len(windows(library.held_out, length)) >= settings.judged
    assert len(set(training)) == len(training)
    assert not {p.strip() for p in training} & {p.strip() for p in held_out}


def test_the_text_is_identified_by_its_digest():
    about = TEXT.about()
    assert about["training_bytes"] == SENTENCE.numel()
    assert about["sha256"] != text.Text(TEXT.held_out, TEXT.training).about()["sha256"]


def test_windows_and_samples():
    assert windows(torch.arange(10), 3).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    batches = [sample(TEXT.training, TINY, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert batches[0].shape == (TINY.batch, TINY.shape.length + 1)
    assert batches[0].equal(batches[1])
    assert not batches[0].equal(batches[2])
    assert bytes(batches[2][0].tolist()) in bytes(TEXT.training.tolist())


def test_learning_rate_rises_and_falls():
    settings = Settings(steps=100, warmup=0.1)
    rates = [settings.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_the_model_sees_what_came_before_and_nothing_else():
    torch.manual_seed(0)
    model = LanguageModel(Shape(64, 2, 2, 16))
    tokens = torch.randint(256, (1, 16))
    logits = model(tokens)
    tokens[0, 9] ^= 1
    changed = (model(tokens) - logits).abs().sum(-1)[0] > 0
    assert changed.tolist() == [False] * 9 + [True] * 7


def test_rotation_keeps_lengths_and_depends_on_distance():
    x = torch.randn(8).expand(6, 8)
    turned = rotated(x)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    products = turned @ turned.T
    assert products[0, 2] == pytest.approx(products[3, 5].item(), rel=1e-5)
    assert products[0, 2] != pytest.approx(products[0, 3].item(), rel=1e-3)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {c.name: train(c, 0, TINY, TEXT, lambda: None) for c in PRESENT}


def test_every_optimizer_starts_from_the_same_loss_and_improves_it(runs):
    starts = {run.points[0].training for run in runs.values()}
    assert len(starts) == 1
    for run in runs.values():
        assert [point.step for point in run.points] == [1, 2, 3, 4]
        assert run.points[-1].training < run.points[0].training


@pytest.mark.parametrize("contender", PRESENT, ids=lambda c: c.name)
def test_states_have_their_bits(runs, contender):
    # Scales and the maps add to them; the latter count in a model as small as this one.
    size = runs[contender.name].bytes_per_parameter
    assert 1 <= size / (contender.states * contender.bits / 8) < 1.2


def test_states_of_other_bits_are_refused():
    contender = next(c for c in PRESENT if c.name == "AdamW8bit")
    model = LanguageModel(TINY.shape)
    model.loss(windows(TEXT.training, 32)[:1], torch.float32).backward()
    for size, bits in ((0, 8), (10**9, 32)):
        optimizer = contender.factory(matrices(model), min_8bit_size=size)
        optimizer.step()
        if bits == contender.bits:
            contender.check(optimizer, model)
        else:
            with pytest.raises(SystemExit, match="expected 2 x 8, got 64 bits"):
                contender.check(optimizer, model)


def test_each_family_begins_with_32_bits():
    assert {baseline(c).bits for c in CONTENDERS} == {32}
    assert baseline(CONTENDERS[1]) is CONTENDERS[0]


@pytest.mark.parametrize(
    ("losses", "difference", "within"),
    [([1.1, 1.3, 1.2], 0.0, True), ([1.4, 1.3, 1.2], 0.1, True), ([1.5, 1.5, 1.5], 0.3, False)],
)
def test_difference_beside_the_spread(losses, difference, within):
    found = Comparison(losses, [1.1, 1.2, 1.3])
    assert found.difference == pytest.approx(difference)
    assert found.differences[1] == pytest.approx(losses[1] - 1.2)
    assert found.within is within


def study() -> Study:
    def run(contender: Contender, seed: int, final: float) -> Run:
        return Run(contender.name, seed, 1e-3, final, 8.0, 60.0, [Point(1, 3.0, 3.5)])

    machine = {"cpu": "a", "threads": 2, "system": "s", "versions": {"bnbx": "0"}, "date": "d"}
    families = {"AdamW": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.99)}}
    settings = {**dataclasses.asdict(TINY), "parameters": 10, "families": families}
    first, second = CONTENDERS[:2]
    finals = [(first, 0, 2.0), (first, 1, 2.5), (second, 1, 2.25), (second, 0, 2.0)]
    runs = [run(*entry) for entry in finals]
    return Study(machine, settings, TEXT.about(), [run(first, 9, 3.0)], runs, ["AdamW4bit: no"])


def test_file_round_trip(tmp_path):
    file = tmp_path / "folder" / "study.json"
    study().save(file)
    loaded = load(file)
    assert loaded.runs == study().runs
    assert loaded.sweep == study().sweep
    assert loaded.left_out == study().left_out


def test_tables():
    sweep, finals, differences = table.tables(study())
    assert sweep.rows == [["torch AdamW", "[0.001: 3.0000]"]]
    assert finals.rows[1] == [
        "AdamW8bit",
        "8.00",
        "2.0000",
        "2.2500",
        "2.1250 +- 0.1768",
        "0.2500",
    ]
    assert differences.rows == [
        ["AdamW8bit - torch AdamW", "-0.1250", "-0.2500 to +0.0000", "0.5000", "within"]
    ]
    assert "AdamW: lr 0.001, weight_decay 0.1, betas (0.9, 0.99)" in table.about(study())


def test_document_shows_the_committed_results():
    assert any(docs.EVIDENCE.shows(docs.EVIDENCE.section(folder)) for folder in RESULTS)
