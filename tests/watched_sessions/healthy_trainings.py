"""Tests as projects have them, each with a training that is as it should be; run under ``pytest --gradwatch``.

The numbers of steps, 1 to 60, go round over the networks, and the seed comes from ``SESSION_SEED``.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

SEED = int(os.environ.get("SESSION_SEED", "0"))
STEPS = (1, 2, 3, 5, 8, 13, 20, 30, 45, 60)


@pytest.fixture(autouse=True)
def seeded() -> None:
    seed_everything(SEED, verbose=False)


def trainer(**options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": -1, **quiet, **options})


def loader(x: Tensor, y: Tensor, batch: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)


def vectors(classes: int = 3, samples: int = 320) -> DataLoader[Any]:
    x = torch.randn(samples, 8)
    return loader(x, (x[:, :classes] + 0.1 * torch.randn(samples, classes)).argmax(1))


def numbers(samples: int = 320) -> DataLoader[Any]:
    x = torch.randn(samples, 8)
    return loader(x, x[:, :1] * 0.8 - x[:, 1:2] + 0.1 * torch.randn(samples, 1))


def images(samples: int = 128) -> DataLoader[Any]:
    x = torch.randn(samples, 1, 8, 8)
    y = torch.randint(0, 2, (samples,))
    x[y == 1, :, 2:6, 2:6] += 1.0
    return loader(x, y)


def series(samples: int = 160) -> DataLoader[Any]:
    x = torch.randn(samples, 10, 4)
    return loader(x, (x[:, -3:, 0].sum(1) > 0).long())


def tokens(samples: int = 160) -> DataLoader[Any]:
    x = torch.randint(0, 20, (samples, 8))
    return loader(x, (x < 5).sum(1).clamp(max=2))


class Classifier(LightningModule):
    def __init__(self, network: nn.Module, lr: float = 1e-2, optimizer: type = torch.optim.Adam) -> None:
        super().__init__()
        self.network, self.lr, self.optimizer = network, lr, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.network(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", functional.cross_entropy(self.network(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network(batch[0])

    def configure_optimizers(self) -> Any:
        return self.optimizer([each for each in self.parameters() if each.requires_grad], lr=self.lr)


class Regressor(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.mse_loss(self.network(batch[0]), batch[1])


class Lambda(nn.Module):
    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.parts)


def mlp(activation: type[nn.Module] = nn.ReLU, depth: int = 2) -> nn.Module:
    layers = [each for i in range(depth) for each in (nn.Linear(16 if i else 8, 16), activation())]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def cnn() -> nn.Module:
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))


def residual() -> nn.Module:
    def forward(x: Tensor, parts: Any) -> Tensor:
        x = parts["stem"](x)
        for name in ("a", "b", "c"):
            x = x + parts[name](x)
        return parts["head"](x.mean((2, 3)))

    def block() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    stem = nn.Conv2d(1, 8, 3, padding=1)
    return Lambda(forward, stem=stem, a=block(), b=block(), c=block(), head=nn.Linear(8, 2))


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    def forward(x: Tensor, parts: Any) -> Tensor:
        return parts["head"](parts["cells"](x)[0][:, -1])

    return Lambda(forward, cells=kind(4, 16, batch_first=True), head=nn.Linear(16, 2))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)

    def forward(x: Tensor, parts: Any) -> Tensor:
        return parts["head"](parts["encoder"](parts["embedding"](x)).mean(1))

    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Lambda(forward, embedding=nn.Embedding(20, 16), encoder=encoder, head=nn.Linear(16, 3))


def experts() -> nn.Module:
    """Each sample goes to the expert that the gate prefers, so one of them may see none."""

    def forward(x: Tensor, parts: Any) -> Tensor:
        weights = parts["gate"](x).softmax(-1)
        best = weights.argmax(-1)
        rows = [weights[i, k] * parts[f"expert{k}"](x[i : i + 1]) for i, k in enumerate(best.tolist())]
        return torch.cat(rows)

    parts = {f"expert{k}": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)) for k in range(3)}
    return Lambda(forward, gate=nn.Linear(8, 3), **parts)


def frozen() -> nn.Module:
    network = mlp()
    for each in network[:-1].parameters():
        each.requires_grad = False
    return network


NETWORKS = {
    "linear": (lambda: nn.Linear(8, 3), vectors),
    "mlp": (mlp, vectors),
    "mlp with tanh": (lambda: mlp(nn.Tanh), vectors),
    "mlp with sigmoid": (lambda: mlp(nn.Sigmoid, 1), vectors),
    "mlp of six layers": (lambda: mlp(nn.GELU, 6), vectors),
    "mlp with norm and dropout": (
        lambda: nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)),
        vectors,
    ),
    "cnn": (cnn, images),
    "residual": (residual, images),
    "rnn": (lambda: recurrent(nn.RNN), series),
    "lstm": (lambda: recurrent(nn.LSTM), series),
    "gru": (lambda: recurrent(nn.GRU), series),
    "transformer": (transformer, tokens),
    "bag of words": (lambda: nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 3)), tokens),
    "experts": (experts, vectors),
    "frozen": (frozen, vectors),
}
CASES = [(name, STEPS[(place * 3 + turn * 5) % len(STEPS)]) for place, name in enumerate(NETWORKS) for turn in range(2)]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_classifier(name: str, steps: int) -> None:
    network, data = NETWORKS[name]
    run = trainer(max_steps=steps)
    run.fit(Classifier(network()), data())
    assert run.global_step == steps


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_a_regression(steps: int) -> None:
    trainer(max_steps=steps).fit(Regressor(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))), numbers())


@pytest.mark.parametrize("steps", [1, 10, 40])
def test_random_inputs_and_random_labels(steps: int) -> None:
    data = loader(torch.randn(64, 8), torch.randint(0, 3, (64,)))
    trainer(max_steps=steps).fit(Classifier(mlp(), optimizer=torch.optim.SGD), data)


@pytest.mark.parametrize("steps", [1, 4])  # its loss rises from 0.6 to 150 within 30
def test_the_model_of_lightnings_own_tests(steps: int) -> None:
    trainer(max_steps=steps, num_sanity_val_steps=0).fit(BoringModel())


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"fast_dev_run": 3}, {"max_epochs": 1}])
def test_a_smoke_test(options: dict[str, Any]) -> None:
    trainer(**options).fit(Classifier(cnn()), images(), images())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 1.0},
        {"accumulate_grad_batches": 4},
        {"precision": "bf16-mixed"},
        {"overfit_batches": 1},
        {"limit_train_batches": 2, "max_epochs": 3},
        {"detect_anomaly": True},
        {"val_check_interval": 2},
    ],
    ids=str,
)
def test_an_option_of_the_trainer(options: dict[str, Any]) -> None:
    trainer(max_steps=15, **options).fit(Classifier(mlp()), vectors(), vectors())


class WithSchedule(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("steps", [2, 25])
def test_a_warm_up(steps: int) -> None:
    trainer(max_steps=steps).fit(WithSchedule(transformer()), tokens())


class Autoencoder(LightningModule):
    def __init__(self, is_variational: bool) -> None:
        super().__init__()
        self.is_variational = is_variational
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean, log_var = self.encoder(batch[0]).chunk(2, -1)
        if not self.is_variational:
            return functional.mse_loss(self.decoder(mean + 0 * log_var), batch[0])
        code = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
        return functional.mse_loss(self.decoder(code), batch[0], reduction="sum") / len(batch[0]) + divergence

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("is_variational", [True])
@pytest.mark.parametrize("steps", [1, 20, 60])
def test_an_autoencoder(steps: int, is_variational: bool) -> None:
    trainer(max_steps=steps).fit(Autoencoder(is_variational), vectors())


class Gan(LightningModule):
    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, (of_generator, of_critic) = batch[0], self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        self.toggle_optimizer(of_critic)
        scores = self.critic(torch.cat([real, fake.detach()]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        self._step(of_critic, functional.binary_cross_entropy_with_logits(scores, truth))
        self.untoggle_optimizer(of_critic)
        self.toggle_optimizer(of_generator)
        wanted = torch.ones(len(real), 1)
        self._step(of_generator, functional.binary_cross_entropy_with_logits(self.critic(fake), wanted))
        self.untoggle_optimizer(of_generator)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999)) for part in (self.generator, self.critic)
        ]


@pytest.mark.parametrize("steps", [2, 20, 60])
def test_two_networks_that_train_against_each_other(steps: int) -> None:
    trainer(max_steps=steps).fit(Gan(), vectors())


class Manual(Classifier):
    """Steps every second batch, clips by itself and changes the rate."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(functional.cross_entropy(self.network(batch[0]), batch[1]) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_manual_optimization(steps: int) -> None:
    trainer(max_steps=steps).fit(Manual(mlp()), vectors(samples=1200))


class TwoTasks(LightningModule):
    """A batch trains one of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.heads[batch_idx // 5 % 2](self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.parametrize("steps", [3, 10, 40])
def test_heads_that_train_by_turns(steps: int) -> None:
    trainer(max_steps=steps).fit(TwoTasks(), vectors())


class Teacher(Classifier):
    """A student follows the average of its own weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.teacher = copy.deepcopy(network).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        with torch.no_grad():
            wanted = self.teacher(x + 0.1 * torch.randn_like(x)).softmax(-1)
        return functional.cross_entropy(self.network(x), wanted) + functional.cross_entropy(self.network(x), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.1)


@pytest.mark.parametrize("steps", [1, 25])
def test_a_teacher_that_is_an_average(steps: int) -> None:
    trainer(max_steps=steps).fit(Teacher(mlp()), vectors())


class FineTuned(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 3))
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(self.backbone(batch[0])), batch[1])


def test_a_backbone_that_is_unfrozen_later() -> None:
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    trainer(max_epochs=3, limit_train_batches=6, callbacks=[callback]).fit(FineTuned(), vectors())


def test_several_fits_in_one_test() -> None:
    for steps in (1, 4, 12):
        trainer(max_steps=steps).fit(Classifier(mlp()), vectors())
    run, model = trainer(max_epochs=1, limit_train_batches=4), Classifier(cnn())
    run.fit(model, images())
    run.fit_loop.max_epochs = 3
    run.fit(model, images())


def test_a_run_that_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    run = trainer(max_steps=6)
    run.fit(Classifier(mlp()), vectors())
    run.save_checkpoint(tmp_path / "six.ckpt")
    run = trainer(max_steps=12)
    run.fit(Classifier(mlp()), vectors(), ckpt_path=tmp_path / "six.ckpt", weights_only=False)
    assert run.global_step == 12


def test_a_search_for_the_learning_rate() -> None:
    run, model = trainer(max_steps=10), Classifier(mlp())
    found = Tuner(run).lr_find(model, vectors(), num_training=40)
    assert found is not None
    run.fit(model, vectors())


def test_a_search_for_the_batch_size() -> None:
    class Data(LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> DataLoader[Any]:
            return loader(*vectors().dataset.tensors, batch=self.batch_size)  # type: ignore[attr-defined]

        val_dataloader = train_dataloader

    run, model, data = trainer(max_steps=10), Classifier(mlp()), Data()
    Tuner(run).scale_batch_size(model, datamodule=data, max_trials=3, steps_per_trial=2)
    run.fit(model, datamodule=data)


def test_averaged_weights() -> None:
    callback = StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    trainer(max_epochs=3, limit_train_batches=5, callbacks=[callback]).fit(Classifier(mlp()), vectors())


def test_a_module_that_is_trained_by_two_trainers() -> None:
    model = Classifier(mlp())
    trainer(max_steps=10).fit(model, vectors())
    for each in model.network[:2].parameters():
        each.requires_grad = False
    trainer(max_steps=10).fit(model, vectors())


def test_callbacks_and_files_are_those_of_the_test(tmp_path: Any) -> None:
    callbacks = [ModelCheckpoint(tmp_path / "kept"), EarlyStopping("val_loss", patience=1)]
    options = {"enable_checkpointing": True, "logger": True, "default_root_dir": tmp_path, "callbacks": callbacks}
    run = trainer(max_epochs=4, **options)
    run.fit(Classifier(mlp()), vectors(), vectors())
    assert set(run.callback_metrics) == {"train_loss", "val_loss"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "lightning_logs"]


def test_no_training_at_all() -> None:
    model = Classifier(mlp())
    for act in ("validate", "test", "predict"):
        getattr(trainer(), act)(model, vectors(), **({} if act == "predict" else {"verbose": False}))
    trainer(limit_train_batches=0, max_epochs=1).fit(model, vectors())


def test_a_training_that_is_meant_to_crash() -> None:
    class Crashes(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise KeyError("label")
            return super().training_step(batch, batch_idx) * float("inf")

    with pytest.raises(KeyError, match="label"):
        trainer(max_steps=5).fit(Crashes(mlp()), vectors())


def test_one_that_fits_nothing() -> None:
    assert torch.ones(2).sum() == 2
