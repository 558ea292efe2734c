"""The commands: their arguments, reports and exit statuses."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

import bnbx
from bnbx.checkpoint import optional
from bnbx.cli import MISSING_PACKAGE, REFUSED, SYSTEM_ERROR, bench, main
from bnbx.cli.arguments import dtype, positive, size
from bnbx.evaluation import evaluate


def run(capsys, *arguments, status=0):
    """Run a command and return what it printed: to standard output, or of an error."""
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    if status:
        assert captured.out == ""
        return captured.err
    return captured.out


def states(path):
    """Return the statistics of a quantized checkpoint by name."""
    return {n for n in load_file(path / "model.safetensors") if ".weight." in n}


# quantize ----------------------------------------------------------------------------------------


def test_quantize(capsys, tmp_path, model_path):
    out = run(capsys, "quantize", model_path, tmp_path / "dst", "--double-quant")
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["nf4"][1] == "14"
    assert lines["total"][1] == "21"
    assert "by transformers' model" in out
    assert any(name.endswith("nested_absmax") for name in states(tmp_path / "dst"))
    names = {path.name for path in (tmp_path / "dst").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < names


def test_every_argument_of_quantize(capsys, tmp_path, model_path):
    settings = "--format fp4 --blocksize 128 --compute-dtype float16 --storage-dtype bfloat16"
    more = "--skip q_proj layers.1 --max-shard-size 20KB --layers-from names --no-progress --json"
    arguments = (*settings.split(), *more.split())
    report = json.loads(run(capsys, "quantize", model_path, tmp_path / "dst", *arguments))
    assert report["layers_from"] == "names"
    quantized = [tensor for tensor in report["tensors"] if tensor["kind"] == "fp4"]
    assert len(quantized) == 6
    assert report["bytes_before"] == sum(t["bytes_before"] for t in report["tensors"])
    config = json.loads((tmp_path / "dst" / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_compute_dtype"] == "float16"
    assert config["bnb_4bit_quant_storage"] == "bfloat16"
    assert "model.layers.0.self_attn.q_proj" in config["llm_int8_skip_modules"]
    files = sorted((tmp_path / "dst").glob("*.safetensors"))
    assert len(files) > 3
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    name = quantized[0]["name"]
    statistics = {key: t for key, t in tensors.items() if key.startswith(f"{name}.")}
    state = bnbx.functional.QuantState.from_dict(statistics, "cpu")
    assert (state.blocksize, state.quant_type) == (128, "fp4")
    assert tensors[name].dtype == torch.bfloat16


def test_quantize_int8(capsys, tmp_path, model_path):
    run(capsys, "quantize", model_path, tmp_path / "dst", "--format", "int8", "--threshold", "4")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())["quantization_config"]
    assert config["load_in_8bit"]
    assert config["llm_int8_threshold"] == 4.0


def errors(capsys, path, model_path):
    """Return the relative errors of a quantized checkpoint by weight."""
    report = json.loads(run(capsys, "inspect", path, "--reference", model_path, "--json"))
    return {weight["name"]: weight["relative_error"] for weight in report["weights"]}


def test_quantize_with_searched_scales(capsys, tmp_path, model_path):
    run(capsys, "quantize", model_path, tmp_path / "plain")
    run(capsys, "quantize", model_path, tmp_path / "searched", "--scale-search")
    plain = errors(capsys, tmp_path / "plain", model_path)
    searched = errors(capsys, tmp_path / "searched", model_path)
    assert all(searched[name] < 0.95 * plain[name] for name in plain)
    report = json.loads(run(capsys, "inspect", model_path, "--scale-search", "--json"))
    assert {w["name"]: w["relative_error"] for w in report["weights"]} == searched


@pytest.mark.parametrize("method", ["imatrix", "gptq"])
def test_quantize_with_a_text(capsys, tmp_path, model_path, text_path, method):
    given = ("--calibrate", text_path, "--calibration-tokens", "200", "--double-quant")
    run(capsys, "quantize", model_path, tmp_path / "a", *given, "--calibration-method", method)
    tokens = torch.tensor([int(word[1:]) for word in text_path.read_text().split()])
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype="auto").eval()
    batches = [{"input_ids": window.unsqueeze(0)} for window in tokens.split(128)]
    bnbx.quantize_(
        model, skip="lm_head", calibration=batches, calibration_method=method, progress=False
    )
    found = load_file(tmp_path / "a" / "model.safetensors")
    expected = model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_quantize_refuses_a_text_that_is_too_short(capsys, tmp_path, model_path, text_path):
    given = ("--calibrate", text_path)
    err = run(capsys, "quantize", model_path, tmp_path / "a", *given, status=REFUSED)
    assert "calibration_tokens: expected at most 200, got 16384. Take a longer text" in err
    assert not (tmp_path / "a").exists()


def test_quantize_says_what_it_refuses(capsys, tmp_path, model_path):
    err = run(capsys, "quantize", model_path, model_path, status=REFUSED)
    assert err.startswith("bnbx quantize: dst: expected a path where there is nothing, got ")
    err = run(capsys, "quantize", tmp_path / "no", tmp_path / "dst", status=REFUSED)
    assert "got nothing at" in err


def test_the_system_says_no(capsys, tmp_path, model_path):
    err = run(capsys, "quantize", model_path, tmp_path / ("n" * 300), status=SYSTEM_ERROR)
    assert "name too long" in err


# inspect -----------------------------------------------------------------------------------------


def test_inspect(capsys, tmp_path, model_path):
    run(capsys, "quantize", model_path, tmp_path / "dst", "--double-quant")
    picture = tmp_path / "errors.svg"
    arguments = ("inspect", tmp_path / "dst", "--reference", model_path, "--plot", picture)
    table = run(capsys, *arguments).splitlines()
    assert len(table) == 16
    errors = [float(line.split()[5]) for line in table[1:-1]]
    assert errors == sorted(errors, reverse=True)
    assert 0.08 < errors[-1] <= errors[0] < 0.11
    assert "q_proj" in picture.read_text()
    report = json.loads(run(capsys, "inspect", model_path, "--double-quant", "--json"))
    assert len(report["weights"]) == 14
    assert report["weights"][0]["relative_error"] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("options", [("--format", "int8"), ("--blocksize", "4096")])
def test_inspect_on_the_fly(capsys, model_path, options):
    report = json.loads(run(capsys, "inspect", model_path, *options, "--json"))
    errors = [weight["relative_error"] for weight in report["weights"]]
    assert all(error < 0.015 for error in errors) == ("int8" in options)
    assert all(error > 0.09 for error in errors) == ("4096" in options)


def test_inspect_refuses(capsys, tmp_path, model_path):
    err = run(capsys, "inspect", model_path, "--plot", "errors.txt", status=REFUSED)
    assert "--plot: expected a name that ends in" in err
    run(capsys, "quantize", model_path, tmp_path / "dst")
    picture = tmp_path / "errors.png"
    err = run(capsys, "inspect", tmp_path / "dst", "--plot", picture, status=REFUSED)
    assert "plot: expected errors" in err
    assert not picture.exists()


# eval --------------------------------------------------------------------------------------------


def test_eval(capsys, model_path, text_path):
    arguments = ("eval", model_path, "--text", text_path, "--window", "64", "--stride", "16")
    report = json.loads(run(capsys, *arguments, "--dtype", "float32", "--json"))
    assert report["tokens"] == 199
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    words = text_path.read_text().split()
    tokens = torch.tensor([int(word[1:]) for word in words])
    losses = {}
    for begin in range(0, len(tokens), 16):
        piece = tokens[begin : begin + 64]
        logits = model(piece[None]).logits[0].log_softmax(-1)
        for i in range(1, len(piece)):
            losses.setdefault(begin + i, -logits[i - 1, piece[i]].item())
    assert report["loss"] == pytest.approx(sum(losses.values()) / 199, rel=1e-5)
    out = run(capsys, *arguments[:4], "--window", "50", "--limit-tokens", "120")
    assert out.startswith("perplexity ")
    assert "on 117 tokens" in out  # the first of each of three windows is not predicted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "129"], "window: expected at most 128"),
        (["--window", "64", "--stride", "65"], "stride: expected 1 to 64"),
        (["--dtype", "uint8"], "dtype: expected one of"),
        (["--window", "64", "--limit-tokens", "1"], "text: expected at least 2 tokens"),
    ],
)
def test_eval_refuses(capsys, model_path, text_path, arguments, message):
    err = run(capsys, "eval", model_path, "--text", text_path, *arguments, status=REFUSED)
    assert message in err


def test_eval_needs_a_model_and_a_text(capsys, tmp_path, model_path, text_path):
    err = run(capsys, "eval", tmp_path, "--text", text_path, status=REFUSED)
    assert "model: expected a directory with config.json" in err
    err = run(capsys, "eval", model_path, "--text", tmp_path, status=REFUSED)
    assert "text: expected a file" in err
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    err = run(capsys, "eval", model_path, "--text", tmp_path / "latin.txt", status=REFUSED)
    assert "text: expected UTF-8" in err


def test_eval_says_what_to_install(capsys, monkeypatch, model_path, text_path):
    monkeypatch.setattr(optional, "available", lambda _: False)
    err = run(capsys, "eval", model_path, "--text", text_path, status=MISSING_PACKAGE)
    assert "needs transformers, which is not installed; the extra 'cli' of bnbx brings it" in err


@pytest.mark.skipif(
    importlib.util.find_spec("bnbx.compat") is None, reason="needs bnbx under bitsandbytes' name"
)
def test_eval_of_a_quantized_model(capsys, tmp_path, model_path, text_path):
    run(capsys, "quantize", model_path, tmp_path / "dst")
    arguments = ["eval", tmp_path / "dst", "--text", text_path, "--window", "100", "--json"]
    done = subprocess.run(  # noqa: S603 (in a process of its own: the name stays registered)
        [sys.executable, "-m", "bnbx", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    exact = evaluate(model_path, text_path, window=100, progress=False)
    loss = json.loads(done.stdout)["loss"]
    assert loss != exact.loss
    assert loss == pytest.approx(exact.loss, abs=0.05)


# bench -------------------------------------------------------------------------------------------


def test_bench(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SAMPLE", 0.0)
    monkeypatch.setattr(bench, "ROTATION", 1)
    report = json.loads(run(capsys, "bench", "--size", "64", "--threads", "1", "--json"))
    assert (report["size"], report["threads"], report["dtype"]) == (64, 1, "bfloat16")
    assert len(report["seconds"]) == 11
    for times in report["seconds"].values():
        assert times["bnbx"] > 0.0
        assert times["torch"] > 0.0
        assert ("bitsandbytes" in times) == (bench.bitsandbytes() is not None)
    table = run(capsys, "bench", "--size", "64", "--only", "Linear4bit", "--only", " 8 rows")
    lines = table.splitlines()
    assert len(lines) == 3
    ours, dense, ratio = (float(cell) for cell in lines[2].split()[4:7])
    assert ratio == pytest.approx(dense / ours, rel=0.1)


def test_bench_refuses(capsys):
    assert "--only: expected" in run(capsys, "bench", "--only", "nothing", status=REFUSED)
    assert "--dtype: expected" in run(capsys, "bench", "--dtype", "uint8", status=REFUSED)


# all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5e9), ("1.5 MB", 1.5e6), ("64kib", 2**16), ("2GiB", 2**31), ("17", 17), ("9B", 9)],
)
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [(size, "5 apples"), (size, "IB"), (size, "-1"), (size, "3I"), (dtype, "int4")]
    + [(positive, text) for text in ("0", "-3", "1.5", "x")],
)
def test_arguments_that_are_none(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected .* got"):
        kind(text)


def test_json_in_front_of_the_command(capsys):
    assert main(["--json", "info"]) == 0
    assert "backends" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["quantize"], ["quantize", "a", "b", "--format", "nf5"]])
def test_a_wrong_command_line(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: bnbx quantize" in capsys.readouterr().err


def test_help_starts_quickly():
    """The packages of the extra are not imported before they are needed."""
    program = "import sys, bnbx.cli; print({'transformers', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "set()\n"
