"""trl: supervised fine-tuning of a quantized model through adapters."""

from __future__ import annotations

import datasets
import peft
import pytest
import torch
import trl
from tests.clients import models

TEXT = ["Four bits hold sixteen values.", "Eight bits hold 256 of them."] * 4


@pytest.mark.parametrize("quantization", ["nf4 nested", "int8"])
@pytest.mark.parametrize("packing", [False, True])
def test_sft(packing, quantization, checkpoint, tmp_path, bnb):
    config = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        max_length=32,
        packing=packing,
        logging_steps=1,
        optim="paged_adamw_8bit",
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    run = trl.SFTTrainer(
        model=models.load(checkpoint("llama"), quantization),
        args=config,
        train_dataset=datasets.Dataset.from_dict({"text": TEXT}),
        processing_class=models.tokenizer(),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    )
    base = run.model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    before = base.weight.data.clone()
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert isinstance(base, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))
    assert torch.equal(base.weight.data, before)
    assert type(run.optimizer.optimizer) is bnb.optim.AdamW
