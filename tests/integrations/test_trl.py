"""The trainers of TRL, with and without PEFT's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

from datasets import Dataset
from hugging_face import llama, logged, settings, tokenizer
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from gradwatch import GradientWarning
from gradwatch.integrations.transformers import GradwatchCallback

BATCH = {"per_device_train_batch_size": 4, "gradient_checkpointing": False, "bf16": False}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def sft(folder: Path, callback: Any, **more: Any) -> SFTTrainer:
    arguments = SFTConfig(max_length=16, **settings(folder, max_steps=12, **BATCH))
    texts = Dataset.from_dict({"text": ["w1 w2 w3 w4 w5", "w4 w5 w6 w7"] * 32})
    return SFTTrainer(
        llama(), args=arguments, train_dataset=texts, processing_class=tokenizer(), callbacks=[callback], **more
    )


def dpo(folder: Path, callback: Any) -> DPOTrainer:
    arguments = DPOConfig(max_length=16, **settings(folder, max_steps=12, **BATCH))
    pairs = {"prompt": ["w1 w2", "w3"] * 32, "chosen": ["w4 w5", "w6"] * 32, "rejected": ["w7 w8", "w9"] * 32}
    data, tools = Dataset.from_dict(pairs), {"processing_class": tokenizer(), "callbacks": [callback]}
    return DPOTrainer(llama(), ref_model=llama(), args=arguments, train_dataset=data, **tools)


def grpo(folder: Path, callback: Any, reward: Any) -> GRPOTrainer:
    arguments = GRPOConfig(num_generations=4, max_completion_length=8, **settings(folder, max_steps=12, **BATCH))
    prompts = Dataset.from_dict({"prompt": ["w1 w2 w3", "w4 w5 w6"] * 32})
    tools = {"processing_class": tokenizer(), "callbacks": [callback]}
    return GRPOTrainer(llama(), reward_funcs=reward, args=arguments, train_dataset=prompts, **tools)


def count_w1(completions: list[str], **_: Any) -> list[float]:
    return [float(completion.count("w1")) for completion in completions]


def always_one(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.mark.parametrize("make", [sft, dpo, lambda folder, callback: grpo(folder, callback, count_w1)])
def test_a_sound_training_is_measured_and_gets_no_word(tmp_path: Path, make: Any) -> None:
    callback = GradwatchCallback(summary=False, on_error="raise")
    trainer = make(tmp_path, callback)
    trainer.train()
    norms = logged(trainer)
    assert [snapshot.total_norm for snapshot in callback.history] == pytest.approx(norms, rel=1e-6)
    assert callback.steps == 12
    assert callback.findings == []
    assert callback.diagnosis() == []


def test_adapters_are_watched(tmp_path: Path) -> None:
    callback = GradwatchCallback(summary=False, on_error="raise")
    sft(tmp_path, callback, peft_config=LoraConfig(**LORA)).train()
    params = callback.history[-1].params
    assert len(params) == 8  # A and B, of two projections in two layers
    assert all("lora_" in name for name in params)
    assert callback.findings == []


def test_adapters_that_are_frozen_by_mistake_are_found(tmp_path: Path) -> None:
    callback = GradwatchCallback(summary=False)
    trainer = sft(tmp_path, callback, peft_config=LoraConfig(**LORA))
    for name, param in trainer.model.named_parameters():
        param.requires_grad_("lora_" not in name and False)
    trainer.model.enable_input_require_grads()  # as with gradient checkpointing: the loss has a graph
    with pytest.warns(GradientWarning, match=r"stalled: all .* are frozen|idle-clip"):
        trainer.train()
    found = next(finding for finding in callback.findings if finding.kind == "stalled")
    assert found.case == "frozen"
    assert all("lora_" in layer for layer in found.layers)
    assert callback.diagnosis()[0].cause == "frozen or detached part"
    assert any("is_trainable=True" in step for step in callback.diagnosis()[0].remedies)


def test_a_reward_without_spread_is_named(tmp_path: Path) -> None:
    callback = GradwatchCallback(summary=False)
    with pytest.warns(UserWarning, match="constant reward"):
        grpo(tmp_path, callback, always_one).train()
    assert callback.findings[0].kind == "stalled"
    assert callback.diagnosis()[0].cause == "constant reward"
