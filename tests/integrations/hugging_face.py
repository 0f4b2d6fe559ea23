"""Small trainings with Hugging Face's Trainer; models are made from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

WORDS, LENGTH = 64, 16


class Texts(Dataset[dict[str, Tensor]]):
    """Texts in which each second token follows from the one before it; with ``ignored``, no label counts."""

    def __init__(self, count: int = 256, *, ignored: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(0, WORDS, (count, LENGTH // 2, 1), generator=generator)
        self.tokens = torch.cat([first, (first + 1) % WORDS], dim=2).reshape(count, LENGTH)
        self.labels = torch.full_like(self.tokens, -100) if ignored else self.tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[place], "labels": self.labels[place]}


def gpt2(layers: int = 2, width: int = 32, dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    shape = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 2 * LENGTH}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, loss_type="ForCausalLM", **shape, **ends, **drops))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends))


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words ``w0``, ``w1``, and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(WORDS - 3))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Return arguments of a quiet training of 30 steps on the CPU."""
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
    given = {"output_dir": str(folder), "max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    return {**quiet, **given, "seed": 1, **more}


def train(
    folder: Path, *callbacks: Any, model: Any = None, data: Any = None, resume: Any = None, **more: Any
) -> Trainer:
    arguments = TrainingArguments(**settings(folder, **more))
    trainer = Trainer(model or gpt2(), arguments, train_dataset=data or Texts(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: Trainer, key: str = "grad_norm") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def same_weights(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)
