"""transformers' Trainer with each of its names for a bitsandbytes optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.clients import models
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS

NAMES = [name.value for name in _BITSANDBYTES_OPTIMIZERS]


class Lines(torch.utils.data.Dataset):
    """Rows of tokens that follow a rule which can be learned."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = (torch.arange(16) * 3 + index) % models.VOCABULARY
        return {"input_ids": row, "labels": row}


def trainer(
    model: Any, folder: Any, steps: int, learning_rate: float = 1e-3, **settings: Any
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        save_strategy="steps",
        save_steps=3,
        use_cpu=True,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=Lines())


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def family(name: str) -> str:
    for part, kind in (("ademamix", "AdEMAMix"), ("adam", "AdamW"), ("lion", "Lion")):
        if part in name:
            return kind
    return "RMSprop"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_name(name, checkpointing, checkpoint, tmp_path, bnb):
    model = models.load(checkpoint("llama"))
    before = {key: value.clone() for key, value in model.named_parameters()}
    run = trainer(model, tmp_path, 1, optim=name, gradient_checkpointing=checkpointing)
    run.train()
    optimizer = run.optimizer.optimizer
    assert type(optimizer) is getattr(bnb.optim, family(name))
    assert optimizer.is_paged == ("paged" in name)
    assert not any(torch.equal(value, before[key]) for key, value in model.named_parameters())

    linear = model.model.layers[0].mlp.up_proj.weight
    dtype = torch.uint8 if "8bit" in name else torch.float32
    states = optimizer.state[linear]
    assert {states[key].dtype for key in ("state1", "state2") if key in states} == {dtype}
    # The embedding has more than enough elements for 8-bit states, and must not get them.
    assert optimizer.state[model.model.embed_tokens.weight]["state1"].dtype == torch.float32


def test_32_bit_adamw_is_torchs(checkpoint, tmp_path):
    found = {}
    for name in ("paged_adamw_32bit", "adamw_torch"):
        run = trainer(models.load(checkpoint("llama")), tmp_path, 6, optim=name)
        run.train()
        found[name] = losses(run)
    assert found["paged_adamw_32bit"] == pytest.approx(found["adamw_torch"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_a_checkpoint(name, checkpoint, tmp_path):
    """The same losses as without a break."""
    settings = {"optim": name, "seed": 5, "warmup_steps": 1}
    whole = trainer(models.load(checkpoint("llama")), tmp_path / "whole", 6, **settings)
    whole.train()
    again = trainer(models.load(checkpoint("llama")), tmp_path / "again", 6, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(losses(whole)) == 6
    assert losses(again) == losses(whole)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["nf4 nested", "int8"])
def test_qlora(quantization, checkpointing, checkpoint, tmp_path):
    import peft

    model = models.load(checkpoint("llama"), quantization)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), config)
    settings = {"optim": "paged_adamw_8bit", "gradient_checkpointing": checkpointing}
    run = trainer(model, tmp_path, 6, 1e-2, **settings)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
