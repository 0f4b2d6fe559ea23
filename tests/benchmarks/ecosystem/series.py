"""Forecasts of series."""

from __future__ import annotations

from functools import partial
from typing import Any

from ecosystem.data import explained, loader, waves
from ecosystem.task import Learner, Program, Rule, Task
from torch import Tensor, ones_like
from torch.optim import AdamW

_AHEAD = 8
ADAMW = partial(AdamW, lr=1e-3)


def forecaster(kind: str, steps: int = 100, past: int = 24, **config: Any) -> Task:
    """Fit a model of pytorch-forecasting as its tutorials do; the score is the model's loss on later series."""
    import pandas
    import pytorch_forecasting as library

    length = past + 2 * _AHEAD
    rows = waves(60, length)
    frame = pandas.DataFrame(
        {
            "series": [str(i) for i in range(60) for _ in range(length)],
            "time": [at for _ in range(60) for at in range(length)],
            "value": rows.flatten().double().numpy(),
        }
    )
    columns = {"time_varying_unknown_reals": ["value"], "time_idx": "time", "target": "value", "group_ids": ["series"]}
    lengths = {"max_encoder_length": past, "min_encoder_length": past, "max_prediction_length": _AHEAD}
    if kind == "TemporalFusionTransformer":
        columns |= {"static_categoricals": ["series"], "time_varying_known_reals": ["time"]}
        lengths |= {"add_relative_time_idx": True, "add_target_scales": True, "add_encoder_length": True}
    elif kind == "DeepAR":
        columns |= {"static_categoricals": ["series"]}
    learned = frame[frame.time < length - _AHEAD]
    data = library.TimeSeriesDataSet(learned, **columns, **lengths)
    held = library.TimeSeriesDataSet.from_dataset(data, frame, predict=True, stop_randomization=True)
    network = getattr(library, kind).from_dataset(data, log_interval=-1, optimizer="adam", **config)
    feed = data.to_dataloader(train=True, batch_size=32, num_workers=0)

    def score() -> float:
        x, y = next(iter(held.to_dataloader(train=False, batch_size=60, num_workers=0)))
        network.train()  # else DeepAR answers with samples
        output = network(x)["prediction"]
        if kind == "NBeats":
            return float((output.squeeze(-1) - y[0]).abs().mean())
        return float(network.loss(output, y))

    return Task(network, feed, score, steps, {"gradient_clip_val": 0.1})


def of_transformers(kind: str, rule: Rule = ADAMW, steps: int = 150, **config: Any) -> Task:
    """Fit a model of transformers for series; it sees 32 steps and predicts 8."""
    import transformers

    lengths = {"context_length": 32, "prediction_length": _AHEAD, "num_input_channels": 1}
    network = getattr(transformers, f"{kind}ForPrediction")(getattr(transformers, f"{kind}Config")(**lengths, **config))
    rows = waves(800, 32 + _AHEAD)[..., None]

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return network(past_values=batch[0][:, :32], future_values=batch[0][:, 32:]).loss

    def score() -> float:
        return explained(network(past_values=rows[600:, :32]).prediction_outputs, rows[600:, 32:])

    return Task(Learner(network, loss, rule), loader(rows[:600]), score, steps)


def probabilistic(kind: str, steps: int = 100, **config: Any) -> Task:
    """Fit a probabilistic model of transformers; the score is its negative log likelihood."""
    import transformers

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    lengths = {"context_length": 24, "prediction_length": _AHEAD, "lags_sequence": [1, 2, 4], "num_time_features": 1}
    settings = getattr(transformers, f"{kind}Config")(**sizes, **lengths, **config)
    network = getattr(transformers, f"{kind}ForPrediction")(settings)
    rows = waves(800, 28 + _AHEAD)

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        values = batch[0]
        at = (0.1 * ones_like(values)).cumsum(1)[..., None]
        return network(
            past_values=values[:, :28],
            past_time_features=at[:, :28],
            past_observed_mask=ones_like(values[:, :28]),
            future_values=values[:, 28:],
            future_time_features=at[:, 28:],
        ).loss

    def score() -> float:
        return float(loss(network, [rows[600:]]))

    rule = partial(AdamW, lr=6e-4, betas=(0.9, 0.95), weight_decay=1e-1)
    return Task(Learner(network, loss, rule), loader(rows[:600]), score, steps)


forecast = partial(Program, "pytorch_forecasting")
series = partial(Program, "transformers")
tft = {"learning_rate": 0.03, "hidden_size": 16, "attention_head_size": 2, "hidden_continuous_size": 8}
patches = {"d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "scaling": None}

SERIES: dict[str, Program] = {
    "TFT": forecast(
        "the tutorial on demand forecasting", partial(forecaster, "TemporalFusionTransformer", 50, **tft), "loss", 0.35,
    ),
    "DeepAR": forecast(
        "the tutorial on DeepAR",
        partial(forecaster, "DeepAR", 80, 40, learning_rate=0.01, hidden_size=16, rnn_layers=2), "loss", 0.7,
    ),
    "DeepAR, a GRU over 59 steps": forecast(
        "the tutorial on DeepAR, with longer series",
        partial(forecaster, "DeepAR", 80, 59, learning_rate=0.01, hidden_size=16, cell_type="GRU"), "loss", 0.7,
    ),
    "N-BEATS": forecast(
        "the tutorial on N-BEATS",
        partial(forecaster, "NBeats", 60, learning_rate=3e-3, widths=[32, 64], backcast_loss_ratio=0.1), "loss", 0.4,
    ),
    "PatchTST": series("the blog on PatchTST", partial(of_transformers, "PatchTST", patch_length=8, patch_stride=8,
                                                       **patches), "R2", 0.5),
    "PatchTSMixer": series(
        "the blog on PatchTSMixer",
        partial(of_transformers, "PatchTSMixer", patch_length=8, patch_stride=8, d_model=16, num_layers=2), "R2", 0.4,
    ),
    "time series transformer": series(
        "the blog on probabilistic forecasting", partial(probabilistic, "TimeSeriesTransformer"), "loss", 0.6,
    ),
    "Informer": series(
        "the blog on Informer",
        partial(probabilistic, "Informer"), "loss", 0.6,
    ),
}  # fmt: skip
