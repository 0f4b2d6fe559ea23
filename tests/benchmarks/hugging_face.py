"""Cost of the callback for Hugging Face's Trainer: trainings that take turns in one process.

    python tests/benchmarks/hugging_face.py [--rounds 20] [--layers 2] [--width 64]

Each variant trains the same GPT-2, made from a configuration, on random tokens. A turn is 50 steps, so that the default
measures one of them; the first 20, which it measures all, come before the first turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from gradwatch.integrations.transformers import GradwatchCallback

DENSE, TURN = 20, 50
VARIANTS: dict[str, Callable[[], list[Any]]] = {
    "bare": list,
    "default": lambda: [GradwatchCallback(summary=False)],
    "every 10 steps": lambda: [GradwatchCallback(every_n_steps=10, summary=False)],
    "every step": lambda: [GradwatchCallback(every_n_steps=1, summary=False)],
}


class Baton(TrainerCallback):
    """Pauses a training after each turn, and tells what the turn has cost: seconds, and seconds of all processors."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        late = state.global_step - DENSE - 1
        if late < 0 or late % TURN:
            return
        cost = (0.0, 0.0)
        if self._began is not None:
            cost = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        getcurrent().parent.switch(cost)
        self._began = time.perf_counter(), time.process_time()


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random texts, made before the training."""

    def __init__(self, length: int) -> None:
        self._tokens = torch.randint(0, 512, (512, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        tokens = self._tokens[place % len(self._tokens)]
        return {"input_ids": tokens, "labels": tokens}


def train(options: argparse.Namespace, callbacks: list[Any]) -> None:
    torch.manual_seed(0)
    shape = {"n_layer": options.layers, "n_embd": options.width, "n_head": 4, "n_positions": options.length}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=512, loss_type="ForCausalLM", bos_token_id=1, eos_token_id=1, **shape)
    )
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    steps = DENSE + 2 + TURN * (options.rounds + 1)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=options.batch, **quiet
    )
    Trainer(model, arguments, train_dataset=Tokens(options.length), callbacks=[Baton(), *callbacks]).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rounds": 20, "layers": 2, "width": 64, "length": 64, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    fits = {name: greenlet(partial(train, options, make())) for name, make in VARIANTS.items()}
    for fit in fits.values():
        fit.switch()  # up to the first turn
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
    for turn in range(options.rounds):
        names = list(fits)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # each is first, second, ... in its turn
            costs[name].append(fits[name].switch())
    bare = costs["bare"]
    print(f"{'variant':16} {'ms a step':>9} {'ratio':>6} {'quartiles':>14} {'of processor time':>18}")
    for name, taken in costs.items():
        ratios = sorted(one[0] / other[0] for one, other in zip(taken, bare, strict=True))
        processor = statistics.median(one[1] / other[1] for one, other in zip(taken, bare, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(seconds for seconds, _ in taken) / TURN * 1e3
        print(f"{name:16} {median:9.2f} {statistics.median(ratios):6.3f} {low:6.3f} - {high:5.3f} {processor:18.3f}")


if __name__ == "__main__":
    main()
