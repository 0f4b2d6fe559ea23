"""The course of a loss: learning, noise, chance, plateaus, and losses that measure no progress."""

import math

import numpy as np
import pytest

from gradwatch.progress import Judgement, Learning, Progress, judge_run
from gradwatch.records import Snapshot

RANDOM = np.random.default_rng(0)
LONG = 400  # losses


def course(losses: object, **settings: object) -> Judgement:
    progress = Progress()
    progress.add(losses)
    return progress.judge(60, **settings)


def noise(steps: int, spread: float = 0.1) -> np.ndarray:
    return 2.3 * RANDOM.lognormal(0, spread, size=steps)


def run(losses: object, step: int = 0, **columns: object) -> Snapshot:
    losses = np.asarray(losses, float)
    usual = {"grad_norm": [0.1], "weight_norm": [1.0], "update_norm": [1e-3], "size": [10], "optimizer": "SGD"}
    steps = np.arange(step, step + len(losses))
    return Snapshot(int(steps[-1]), ("fc",), trace_step=steps, trace_loss=losses, **(usual | columns))


@pytest.mark.parametrize("steps", [40, 100, LONG, 5_000])
def test_a_loss_that_falls_learns(steps: int) -> None:
    fall = np.linspace(1.0, 0.3, steps)
    assert course(noise(steps) * fall).course == "learns"
    assert course(noise(steps, 0.7) * np.linspace(1.0, 0.1, steps)).course == "learns"


def test_noise_alone_hardly_ever_seems_to_come_down() -> None:
    random, seem = np.random.default_rng(1), 0
    for steps in (10, 20, 60, 100, 300, 1_000):
        for _ in range(100):
            seem += course(2.3 + 0.1 * random.normal(size=steps)).course == "learns"
            seem += course(random.lognormal(0, 0.7, size=steps)).course == "learns"
    assert seem <= 6  # of 1,200


def test_too_few_losses_are_not_judged() -> None:
    judged = course([2.3, 2.2, 2.4])
    assert (judged.course, str(judged)) == ("too few steps", "too few steps to tell whether it learns: 3 of 60")
    assert course([]).course == "no loss"


def test_a_loss_that_rests_at_chance_has_not_learned() -> None:
    from_above = np.concatenate([np.linspace(8.0, 2.3, 40), np.full(160, 2.3)]) + 1e-3 * RANDOM.normal(size=200)
    assert course(from_above).course == "learns"  # where chance is not known
    assert course(from_above, chance=math.log(10)).course == "not learning"
    assert course(noise(200) * np.linspace(1, 0.2, 200), chance=math.log(10)).course == "learns"


@pytest.mark.parametrize(
    "losses",
    [
        -noise(200),  # a likelihood, a reward
        np.concatenate([np.linspace(2, 1, 100), np.linspace(1, 2, 100)]),  # it was lower: annealing, adversaries
    ],
)
def test_some_losses_measure_no_progress(losses: np.ndarray) -> None:
    assert course(losses).course == "no loss"


def test_memory_is_bounded_and_goes_on_from_a_state() -> None:
    losses, whole, resumed = noise(3_000) * np.linspace(1, 0.5, 3_000), Progress(), Progress()
    whole.add(losses)
    resumed.add(losses[:1_234])
    state = resumed.state_dict()
    assert len(state["means"]) < 128
    again = Progress()
    again.load_state_dict(state)
    again.add(losses[1_234:])
    assert again.judge() == whole.judge()


class TestLearning:
    """The steps that are needed, from what the updates say."""

    def test_a_plateau_may_last_while_the_updates_are_ordinary(self) -> None:
        assert judge_run([run(noise(200))]).course == "too few steps"
        assert judge_run([run(noise(LONG))]).course == "no loss"  # it may be a fine-tune at its end
        assert judge_run([run(noise(LONG))], chance=2.3).course == "not learning"

    def test_a_cross_entropy_tells_what_a_constant_prediction_has(self) -> None:
        assert judge_run([run(noise(LONG), chance=math.log(10))]).course == "not learning"
        assert judge_run([run(noise(LONG), chance=math.log(100))]).course == "no loss"  # it has learned before

    def test_a_constant_prediction_is_told_by_several_batches(self) -> None:
        rest = [run(noise(10), 10 * i, chance=c) for i, c in enumerate([1.8, 3.0] * 8)]
        judged = judge_run([*rest, run(noise(LONG), 160)])
        assert judged.course == "not learning"
        assert 2.3 < judged.chance < 2.4

    def test_all_that_is_known_goes_into_a_state(self) -> None:
        learning, restored = Learning(), Learning()
        learning.add(run(noise(20), chance=math.log(10), classes=10))
        restored.load_state_dict(learning.state_dict())
        assert restored.state_dict() == learning.state_dict()
        assert restored.state_dict()["of_classes"] is True

    def test_targets_that_change_tell_nothing(self) -> None:
        history = [run(noise(12), 12 * i, chance=2.3 if i < 16 else 0.5) for i in range(30)]
        judged = judge_run(history)
        assert judged.course == "no loss"
        assert math.isnan(judged.chance)

    def test_next_to_no_updates_need_60_steps(self) -> None:
        assert judge_run([run(noise(80), update_norm=[1e-9])]).course == "not learning"
        assert judge_run([run(noise(80), update_norm=[1e-9], grad_norm=[1e-9])]).course != "not learning"  # converged

    def test_huge_updates_need_20_steps(self) -> None:
        first = run(noise(2), update_norm=[5.0])
        assert judge_run([first, run(noise(30), step=2, update_norm=[5.0])]).course == "not learning"

    def test_a_loss_that_jumped_and_comes_down_is_told_from_its_first_value(self) -> None:
        losses = [1.5, 1e6, 5e5, 2e5, 1e5, *np.geomspace(5e4, 20, 40)]
        judged = judge_run([run(losses[:2], update_norm=[5.0]), run(losses[2:], step=2, update_norm=[5.0])])
        assert judged.course == "not learning"
        assert str(judged).startswith("not learning: loss 1.5 -> ")

    def test_weights_that_start_at_zero_make_no_huge_update(self) -> None:
        first = run(noise(2), weight_norm=[1e-4], update_norm=[1e-3])  # LoRA's second factor: ten times its size
        assert judge_run([first, run(noise(30), step=2)]).course == "too few steps"

    def test_unknown_updates_are_not_taken_for_none(self) -> None:
        assert judge_run([run(noise(80), update_norm=[math.nan])]).course == "too few steps"

    def test_a_rate_that_grows_for_ever_and_moves_nothing_is_not_waited_for(self) -> None:
        history = [run(noise(10), 10 * i, learning_rate=1e-9 * (i + 1), update_norm=[1e-9]) for i in range(32)]
        assert judge_run(history).course == "not learning"
        assert judge_run(history[:29]).course == "too few steps"

    def test_steps_of_a_rate_that_grows_do_not_count(self) -> None:
        history = [run(noise(10), 10 * i, learning_rate=1e-4 * (i + 1), update_norm=[1e-9]) for i in range(8)]
        assert judge_run(history).course == "too few steps"

    @pytest.mark.parametrize("case", ["resumed", "two optimizers", "two of a class", "turns", "diverged"])
    def test_runs_that_cannot_be_judged_are_not_accused(self, case: str) -> None:
        start = 5_000 if case == "resumed" else 0
        more: dict[str, object] = {
            "two optimizers": {"optimizer": "Adam"},
            "two of a class": {"groups": ("SGD 0", "SGD-1 0"), "group_learning_rate": [0.1, 0.1]},
            "turns": {"params": ("critic.weight",), "param_grad_norm": [0.1]},
        }
        losses = noise(80)
        if case == "diverged":
            losses[40] = math.inf
        tiny: dict[str, object] = {"update_norm": [1e-9]}
        first = run(losses, start, **tiny, params=("actor.weight",), param_grad_norm=[0.1])
        history = [first, run(noise(20), start + 80, **(tiny | more.get(case, {})))]
        assert judge_run(history).course == "no loss"

    def test_it_goes_on_from_a_state(self) -> None:
        whole, part = Learning(), Learning()
        history = [run(noise(50), 50 * i, update_norm=[1e-9]) for i in range(4)]
        for snapshot in history:
            whole.add(snapshot)
        for snapshot in history[:2]:
            part.add(snapshot)
        again = Learning()
        again.load_state_dict(part.state_dict())
        for snapshot in history[2:]:
            again.add(snapshot)
        assert again.judge() == whole.judge()
