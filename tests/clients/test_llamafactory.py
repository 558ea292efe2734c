"""LlamaFactory: a run with ``quantization_bit``, as its users start it.

It wants older releases of the other clients: ``nox -s llamafactory`` has an environment for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tests.clients import models

pytest.importorskip("llamafactory")

FACTS = [
    {"instruction": "How many values have four bits?", "input": "", "output": "Sixteen."},
    {"instruction": "How many values have eight bits?", "input": "", "output": "256."},
]


def test_versions_in_the_document():
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| LlamaFactory "))
    named = dict(re.findall(r"(\w+) (\d+\.\d+\.\d+)", row.split("|")[1]))
    assert named.keys() == {"LlamaFactory", "transformers", "peft", "trl", "accelerate"}
    assert named == {name: metadata.version(name) for name in named}


@pytest.mark.parametrize("bits", [4, 8])
def test_fine_tuning(bits, checkpoint, tmp_path):
    folder = checkpoint("llama")
    models.tokenizer().save_pretrained(folder)
    (tmp_path / "dataset_info.json").write_text('{"facts": {"file_name": "facts.json"}}')
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    # It imports torchaudio, whose wheels need CUDA, for models that listen.
    (tmp_path / "torchaudio.py").touch()
    settings = {
        "model_name_or_path": str(folder),
        "quantization_bit": bits,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "template": "default",
        "dataset_dir": str(tmp_path),
        "dataset": "facts",
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "out"),
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "optim": "paged_adamw_8bit",
        "report_to": "none",
        "use_cpu": True,
    }
    file = tmp_path / "run.yaml"  # JSON is YAML, and it fails on the name *.json
    file.write_text(json.dumps(settings))
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = (sys.executable, "-m", "bnbx.compat", "-m", "llamafactory.cli", "train", str(file))
    run = subprocess.run(  # noqa: S603 (our own program)
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"Quantizing model to {bits} bit with bitsandbytes" in run.stdout + run.stderr
    lines = (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 0
