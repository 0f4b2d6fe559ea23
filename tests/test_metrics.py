"""GradientNorm against a naive norm, in collections, in a Trainer and over two ranks."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection

from gradwatch.metrics import GradientNorm


def network(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    (model(torch.randn(5, 4)).square().sum() * scale).backward()
    return model


def naive(params: list[nn.Parameter]) -> float:
    return sum(entry**2 for param in params for entry in param.grad.double().flatten().tolist()) ** 0.5


@pytest.mark.parametrize(("pattern", "layers"), [("*", [0, 2]), ("0.*", [0]), ("2.*", [2])])
def test_it_is_the_norm_of_the_matching_gradients(pattern: str, layers: list[int]) -> None:
    model = network()
    norm = GradientNorm(pattern)(model)
    assert float(norm) == pytest.approx(naive([p for i in layers for p in model[i].parameters()]), rel=1e-6)


def test_it_averages_over_updates_and_starts_anew_after_reset() -> None:
    metric, weak, strong = GradientNorm(), network(1.0), network(3.0)
    metric.update(weak)
    now = metric(strong)
    assert float(now) == pytest.approx(3 * naive(list(weak.parameters())), rel=1e-6)
    assert float(metric.compute()) == pytest.approx(2 * naive(list(weak.parameters())), rel=1e-6)
    metric.reset()
    metric.update(weak)
    assert float(metric.compute()) == pytest.approx(naive(list(weak.parameters())), rel=1e-6)


def test_a_frozen_layer_is_left_out_and_a_huge_gradient_is_finite() -> None:
    model = network()
    model[0].weight.grad = None
    model[2].bias.grad = torch.full((2,), 3e38)
    assert float(GradientNorm()(model)) == pytest.approx(3e38 * 2**0.5, rel=1e-6)


def test_a_nan_shows_until_reset() -> None:
    metric, model = GradientNorm(), network()
    model[0].bias.grad[0] = float("nan")
    metric.update(model)
    metric.update(network())
    assert not metric.compute().isfinite()
    metric.reset()
    assert metric(network()).isfinite()


def test_vanished_gradients_of_two_layers_stay_apart_in_a_collection() -> None:
    both = MetricCollection({"first": GradientNorm("0.*"), "last": GradientNorm("2.*")})
    both.update(network(1e-12))  # norms below 1e-8: torchmetrics would take these for one and the same
    both.reset()
    model = network()
    both.update(model)
    norms = both.compute()
    assert float(norms["first"]) == pytest.approx(naive(list(model[0].parameters())), rel=1e-6)
    assert float(norms["last"]) == pytest.approx(naive(list(model[2].parameters())), rel=1e-6)


def test_it_survives_pickling_and_a_checkpoint() -> None:
    metric = GradientNorm("0.*")
    metric.persistent(True)
    metric.update(network())
    resumed = GradientNorm("0.*")
    resumed.persistent(True)
    resumed.load_state_dict(metric.state_dict())
    for copy in (resumed, pickle.loads(pickle.dumps(metric))):
        copy.update(network(3.0))
        assert float(copy.compute()) == pytest.approx(2 * float(metric.compute()), rel=1e-6)


def test_the_error_of_bad_input_names_the_expectation() -> None:
    with pytest.raises(TypeError, match="pattern is a list; expected one shell pattern"):
        GradientNorm(["0.*"])
    with pytest.raises(TypeError, match=r"updated with a Tensor; expected a torch\.nn\.Module"):
        GradientNorm().update(torch.ones(1))
    with pytest.raises(ValueError, match=r"'0\.wieght' matches no .*'0\.weight'"):
        GradientNorm("0.wieght").update(network())
    with pytest.raises(ValueError, match=r"Linear that matches '\*' has a gradient; .* after loss\.backward"):
        GradientNorm().update(nn.Linear(2, 1))


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func)
        return func(*args, **(kwargs or {}))


def test_an_update_reads_nothing_back() -> None:
    metric, model = GradientNorm(), network()
    with NoSync():
        metric.update(model)


class Logged(LightningModule):
    """One step an epoch; logs the norm of the gradients it steps on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.norm = GradientNorm("layer.*")
        self.seen: list[float] = []

    def train_dataloader(self) -> Tensor:
        return torch.randn(3, 8, 4)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(float(self.norm(self)))
        self.log("grad_norm", self.norm, on_step=True, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_lightning_module_logs_it(tmp_path: Path) -> None:
    model = Logged()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **options)
    trainer.fit(model)
    assert float(trainer.callback_metrics["grad_norm_step"]) == pytest.approx(model.seen[-1], rel=1e-6)
    assert float(trainer.callback_metrics["grad_norm_epoch"]) == pytest.approx(sum(model.seen) / 3, rel=1e-6)


def on_rank(rank: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=2)
    layer, metric = nn.Linear(1, 1, bias=False), GradientNorm()
    for norm in ([3.0], [5.0, 6.0, 10.0])[rank]:
        layer.weight.grad = torch.full((1, 1), norm)
        metric.update(layer)
    assert metric.compute().item() == pytest.approx(6.0)
    dist.destroy_process_group()


def test_over_ranks_it_is_the_mean_over_all_updates(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=((tmp_path / "meeting").as_uri(),), nprocs=2)


def test_it_plots_one_value_and_a_sequence() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="plots need the report extra")
    pyplot.switch_backend("agg")
    metric = GradientNorm()
    norms = [metric(network(scale)) for scale in (1.0, 2.0)]
    for shown in (norms, norms[0], None):
        figure, _ = metric.plot(shown)
        pyplot.close(figure)
