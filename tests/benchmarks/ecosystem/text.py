"""Language models and classifiers of text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from ecosystem.data import CHARACTERS, characters, code, hits, loader, prose, topics
from ecosystem.task import Learner, Program, Rule, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

ADAMW = partial(AdamW, lr=1e-3)
WARM = partial(LambdaLR, lr_lambda=lambda at: min(1.0, (at + 1) / 20))  # the start of Hugging Face's usual schedules


def own_loss(network: Any, batch: list[Tensor]) -> Tensor:
    """Return the loss that a causal model of transformers computes from its labels."""
    return network(input_ids=batch[0], labels=batch[0]).loss


def language_model(
    make: Callable[[], nn.Module],
    rule: Rule = ADAMW,
    *,
    steps: int = 150,
    length: int = 32,
    loss: Callable[[Any, Any], Tensor] = own_loss,
    text: Callable[[], str] = prose,
) -> Task:
    """Learn the next character."""
    learned, held = characters(text(), length)
    network = make()
    learner = Learner(network, loss, rule, WARM)
    return Task(
        learner,
        loader(learned, batch=16),
        lambda: float(loss(network, [held])),
        steps,
        {"gradient_clip_val": 1.0},
    )


def of_transformers(kind: str, **config: Any) -> nn.Module:
    """Build a model of transformers from its configuration."""
    import transformers

    settings = transformers.AutoConfig.for_model(kind.lower(), **config)
    return transformers.AutoModelForCausalLM.from_config(settings)


def gpt2(**more: Any) -> nn.Module:
    return of_transformers(
        "gpt2", vocab_size=CHARACTERS, n_positions=64, n_embd=64, n_layer=2, n_head=4, **ENDS, **more
    )


ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
NARROW = {"vocab_size": CHARACTERS, "hidden_size": 64, "num_hidden_layers": 2, **ENDS}
HEADS = {**NARROW, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64}


def llama(**more: Any) -> nn.Module:
    return of_transformers("llama", **HEADS, num_key_value_heads=4, **more)


def adapted(tune: str = "LoraConfig", rate: float = 3e-3) -> Task:
    """Teach a small Llama prose, and then adapt it to code with PEFT."""
    import peft

    first = language_model(partial(llama), steps=150)
    first.train()
    base = first.network
    settings = getattr(peft, tune)(task_type="CAUSAL_LM")
    return language_model(lambda: peft.get_peft_model(base, settings), partial(AdamW, lr=rate), text=code)


def wrapped(**more: Any) -> nn.Module:
    """Build the model of the README of x-transformers."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=2, heads=4, **more)
    return AutoregressiveWrapper(TransformerWrapper(num_tokens=CHARACTERS, max_seq_len=64, attn_layers=layers))


def plain(network: Any, batch: list[Tensor]) -> Tensor:
    return network(batch[0])


def classifier(kind: str, rule: Rule = ADAMW, steps: int = 120, **config: Any) -> Task:
    """Tell the topic of a text with a classifier of transformers."""
    import transformers

    settings = transformers.AutoConfig.for_model(kind, vocab_size=64, num_labels=4, pad_token_id=0, **config)
    network = transformers.AutoModelForSequenceClassification.from_config(settings)
    data = topics()

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return network(input_ids=batch[0], labels=batch[1]).loss

    def score() -> float:
        return hits(network(input_ids=data.test_inputs).logits, data.test_targets)

    return Task(Learner(network, loss, rule, WARM), loader(data.inputs, data.targets), score, steps)


def translator(kind: str, rule: Rule, steps: int = 200, **config: Any) -> Task:
    """Write each sequence with every word replaced by its neighbour, with an encoder and a decoder."""
    import transformers

    marks = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    settings = transformers.AutoConfig.for_model(kind, vocab_size=24, **marks, **config)
    network = transformers.AutoModelForSeq2SeqLM.from_config(settings)
    words = torch.randint(2, 23, (2000, 6), generator=torch.Generator().manual_seed(0))

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return network(input_ids=batch[0], labels=batch[0] + 1).loss

    def score() -> float:
        return hits(network(input_ids=words[1800:], labels=words[1800:] + 1).logits, words[1800:] + 1)

    return Task(Learner(network, loss, rule, WARM), loader(words[:1800]), score, steps, {"gradient_clip_val": 1.0})


def sentences() -> Task:
    """Bring texts of one topic together with a contrastive loss of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import NTXentLoss
    from transformers import BertConfig, BertModel

    network = BertModel(BertConfig(**{**HEADS, "vocab_size": 64}), add_pooling_layer=False)
    data, near = topics(), NTXentLoss(0.07)

    def embedded(inputs: Tensor) -> Tensor:
        return network(input_ids=inputs).last_hidden_state.mean(1)

    def loss(_: Any, batch: list[Tensor]) -> Tensor:
        return near(embedded(batch[0]), batch[1])

    def score() -> float:
        known, asked = (functional.normalize(embedded(x), dim=-1) for x in (data.inputs, data.test_inputs))
        found = data.targets[(asked @ known.T).argmax(-1)]
        return (found == data.test_targets).float().mean().item()

    return Task(Learner(network, loss, partial(AdamW, lr=5e-4), WARM), loader(data.inputs, data.targets), score, 100)


lm = partial(Program, "transformers", "the course's chapter on training a causal language model from scratch")
small_bert = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
small_bart = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64, "forced_eos_token_id": None,
}  # fmt: skip

TEXT: dict[str, Program] = {
    "GPT-2": lm(partial(language_model, gpt2), "loss", 3.0),
    "Llama": lm(partial(language_model, llama), "loss", 2.9),
    "Mixtral": lm(
        partial(
            language_model,
            partial(of_transformers, "mixtral", **HEADS, num_key_value_heads=2, num_local_experts=4),
        ),
        "loss", 2.9,
    ),
    "GPT-NeoX": lm(partial(language_model, partial(of_transformers, "gpt_neox", **HEADS)), "loss", 3.0),
    "RWKV": lm(
        partial(language_model, partial(of_transformers, "rwkv", **NARROW, attention_hidden_size=64), steps=100),
        "loss", 3.0,
    ),
    "Mamba": lm(partial(language_model, partial(of_transformers, "mamba", **NARROW), steps=80, length=24), "loss", 3.0),
    "Llama with LoRA": Program("peft", "PEFT's quicktour", adapted, "loss", 2.9),
    "Llama with IA3": Program("peft", "PEFT's guide on IA3", partial(adapted, "IA3Config", 3e-2), "loss", 2.97),
    "x-transformers, decoder": Program(
        "x_transformers", "the README's decoder, and train_enwik8.py",
        partial(language_model, wrapped, partial(Adam, lr=1e-3), loss=plain), "loss", 3.0,
    ),
    "BERT, topics": Program(
        "transformers", "the task guide on text classification", partial(classifier, "bert", **small_bert),
        "accuracy", 0.8,
    ),
    "DistilBERT, topics": Program(
        "transformers", "the task guide on text classification",
        partial(classifier, "distilbert", dim=64, n_layers=2, n_heads=4, hidden_dim=128), "accuracy", 0.8,
    ),
    "BART": Program(
        "transformers", "the task guide on summarization",
        partial(translator, "bart", partial(AdamW, lr=1e-3), **small_bart), "accuracy", 0.5,
    ),
    "BERT, contrastive": Program(
        "pytorch_metric_learning", "the documentation of NTXentLoss", sentences, "accuracy", 0.9,
    ),
}  # fmt: skip
