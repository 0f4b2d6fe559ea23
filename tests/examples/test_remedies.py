"""Every remedy runs from the command line on digits, and does to the gradient what its card says."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gradwatch import Snapshot
from gradwatch.examples.activation_dying_relu import DyingReLU
from gradwatch.examples.activation_elu import ELU
from gradwatch.examples.activation_relu import ReLU
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.clip_vanishing import Clipping
from gradwatch.examples.combination import Combination
from gradwatch.examples.gradient_ascent import GradientAscent
from gradwatch.examples.gradient_normalization import NormalizedGradients
from gradwatch.examples.init_he import He
from gradwatch.examples.init_normal import LargerWeights
from gradwatch.examples.init_orthogonal import Orthogonal
from gradwatch.examples.init_xavier import Xavier
from gradwatch.examples.layerwise import LayerByLayer
from gradwatch.examples.mixed_precision import HalfPrecision
from gradwatch.examples.norm_batch import BatchNorm
from gradwatch.examples.norm_layer import LayerNorm
from gradwatch.examples.norm_tensor import TensorNorm
from gradwatch.examples.normalize_by_norm import UnitGradients
from gradwatch.examples.optimizer_adam import Adam
from gradwatch.examples.run import main
from gradwatch.examples.schedule_cosine import WarmupCosine
from gradwatch.examples.schedule_plateau import ReduceOnPlateau
from gradwatch.examples.skip_connection import SkipConnections
from gradwatch.examples.skip_residual import Residual
from gradwatch.examples.weight_decay import WeightDecay
from gradwatch.records import Finding
from gradwatch.reporting.record import read_record

pytestmark = pytest.mark.filterwarnings("ignore::gradwatch.GradientWarning")


@dataclass
class Run:
    """The results of a run of 30 steps."""

    snapshots: list[Snapshot]
    findings: list[Finding] = field(default_factory=list)

    @property
    def first_to_last(self) -> float:
        """Gradient norm of the first Linear over that of the head, at the first step."""
        return self.of("network.block1.linear") / self.of("network.head")

    @property
    def kinds(self) -> set[str]:
        return {str(finding.kind) for finding in self.findings}

    def of(self, layer: str, column: str = "grad_norm", at: int = 0) -> float:
        snapshot = self.snapshots[at]
        return float(getattr(snapshot, column)[snapshot.layers.index(layer)])

    def moved(self, layer: str) -> float:
        """Relative change of a layer's weight norm over the run."""
        return abs(self.of(layer, "weight_norm", -1) / self.of(layer, "weight_norm", 0) - 1)


def run(model_class: type[Baseline], folder: Path, *options: str) -> Run:
    main(model_class, ["--fast", "--log-dir", str(folder), *[f"--model.{option}" for option in options]])
    return Run(*read_record(next(folder.rglob("gradwatch.jsonl"))))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(Baseline, tmp_path_factory.mktemp("baseline"))


def test_the_baseline_vanishes(baseline: Run) -> None:
    assert baseline.first_to_last < 1e-5
    assert "vanishing" in baseline.kinds
    assert baseline.moved("network.block1.linear") < 1e-6


@pytest.mark.parametrize(
    ("model_class", "options", "factor"),
    [
        (LargerWeights, ("std=1.0",), 1e4),
        (LargerWeights, ("std=10.0",), 10),
        (Xavier, (), 10),
        (Orthogonal, (), 10),
        (He, ("activation=relu",), 1e5),
        (He, ("activation=tanh",), 1e5),
        (ReLU, ("init_std=0.05",), 1e3),
        (ELU, ("init_std=0.05",), 1e3),
        (BatchNorm, ("init_std=0.05",), 1e4),
        (TensorNorm, ("init_std=0.05",), 500),
        (LayerNorm, ("init_std=0.05",), 500),
        (SkipConnections, ("init_std=0.05",), 100),
        (Residual, ("init_std=0.05",), 1e4),
        (NormalizedGradients, ("init_std=0.05",), 1e5),
        (LayerByLayer, (), 1e4),
        (Combination, (), 1e4),
    ],
)
def test_the_first_layer_gets_a_gradient(
    model_class: type[Baseline], options: tuple[str, ...], factor: float, baseline: Run, tmp_path: Path
) -> None:
    remedied = run(model_class, tmp_path, *options)
    assert remedied.first_to_last > factor * baseline.first_to_last


@pytest.mark.parametrize("model_class", [WeightDecay, Clipping, GradientAscent])
def test_what_does_not_cure_leaves_the_first_layer_without(
    model_class: type[Baseline], baseline: Run, tmp_path: Path
) -> None:
    treated = run(model_class, tmp_path)
    assert treated.first_to_last < 2 * baseline.first_to_last
    assert "vanishing" in treated.kinds


@pytest.mark.parametrize("model_class", [Adam, WarmupCosine, ReduceOnPlateau])
def test_adam_moves_a_layer_whose_gradient_is_tiny(model_class: type[Baseline], baseline: Run, tmp_path: Path) -> None:
    remedied = run(model_class, tmp_path, "init_std=0.05", "lr=1e-3")
    assert remedied.first_to_last < 1e-3  # it is as small as before
    assert remedied.moved("network.block1.linear") > 1e3 * baseline.moved("network.block1.linear")


def test_unit_gradients_move_all_layers_alike(tmp_path: Path) -> None:
    remedied = run(UnitGradients, tmp_path, "init_std=0.05")
    after = [snapshot.total_norm_after for snapshot in remedied.snapshots]
    np.testing.assert_allclose(after, 16**0.5, rtol=1e-3)  # 16 parameters, each with a gradient of norm 1


def test_a_dead_relu_passes_nothing_and_an_elu_does(tmp_path: Path) -> None:
    dying = run(DyingReLU, tmp_path / "relu")
    assert "dead" in dying.kinds
    assert dying.of("network.block1.linear") == 0
    remedied = run(DyingReLU, tmp_path / "elu", "activation=elu")
    assert remedied.first_to_last > 1e-3


def test_loss_scaling_saves_small_gradients_from_fp16(tmp_path: Path) -> None:
    options = ("init_std=0.05", "lr=1e-3")
    plain = run(HalfPrecision, tmp_path / "plain", *options, "loss_scaling=false")
    scaled = run(HalfPrecision, tmp_path / "scaled", *options, "loss_scaling=true")
    assert plain.of("network.block1.linear") == 0
    assert "vanishing" in plain.kinds  # "stalled" takes 40 steps
    assert 0 < scaled.of("network.block1.linear") < 1e-4
    assert "stalled" not in scaled.kinds
