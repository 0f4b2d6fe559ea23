"""Bad settings fail when they are given, and the message names value and expectation; combinators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from every_transform import network, set_gradients
from torch import nn

from gradwatch.transforms import (
    AdaptiveClip,
    AddNoise,
    Chain,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    NormalizeByGlobalNorm,
    NormalizeByNorm,
    Only,
    PercentileClip,
    ScaleByTrustRatio,
    SkipNonFinite,
    Standardize,
    StepContext,
    When,
    ZScoreClip,
)

BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: ClipByValue(0.0), "bound is 0.0; expected a finite number above 0"),
    (lambda: ClipByValue(), "either a bound, or a lowest and a highest"),
    (lambda: ClipByValue(1.0, lowest=-1.0), "either a bound, or a lowest and a highest"),
    (lambda: ClipByValue(lowest=0.5, highest=1.0), "lowest=0.5, highest=1.0: expected both"),
    (lambda: ClipByValue(lowest=-0.5), "lowest=-0.5, highest=None: expected both"),
    (lambda: ClipByNorm(-1), "max_norm is -1; expected a finite number above 0"),
    (lambda: ClipByNorm(True), "max_norm is True"),
    (lambda: ClipByNorm("1"), "max_norm is '1'"),
    (lambda: ClipByGlobalNorm(float("nan")), "max_norm is nan"),
    (lambda: ClipByGlobalNorm(1.0, p=0), "p is 0; expected"),
    (lambda: AdaptiveClip(0.0), "clip_factor is 0.0"),
    (lambda: AdaptiveClip(eps=0), "eps is 0"),
    (lambda: AdaptiveClip(exclude="head.*"), "expected a list of patterns"),
    (lambda: PercentileClip(101), "percentile is 101; expected a finite number of at least 0 and at most 100"),
    (lambda: PercentileClip(history=0), "history is 0; expected a whole number of at least 1"),
    (lambda: ZScoreClip(z_max=0), "z_max is 0"),
    (lambda: ZScoreClip(alpha=1.0), "alpha is 1.0"),
    (lambda: ZScoreClip(warmup=1), "warmup is 1; expected a whole number of at least 2"),
    (lambda: ZScoreClip(max_norm=0), "max_norm is 0"),
    (lambda: NormalizeByGlobalNorm(0), "target is 0"),
    (lambda: NormalizeByNorm(eps=0), "eps is 0"),
    (lambda: ScaleByTrustRatio(-1), "coefficient is -1"),
    (lambda: Standardize(eps=-1), "eps is -1"),
    (lambda: SkipNonFinite(0), "budget is 0"),
    (lambda: AddNoise(eta=0), "eta is 0"),
    (lambda: AddNoise(gamma=-1), "gamma is -1"),
    (lambda: When("explode", ClipByNorm(1.0)), "kind is 'explode'; expected one of vanishing, exploding"),
    (lambda: Chain([]), "the list of transforms is empty"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("item", [1.0, None, "clip", ClipByNorm])
def test_what_is_no_transform(item: object) -> None:
    with pytest.raises(TypeError, match="expected a transform, or a function"):
        Chain([item])


def test_a_pattern_without_a_match_names_the_nearest() -> None:
    params = set_gradients(network())
    with pytest.raises(ValueError, match=r"'liner.\*' matches no parameter; the nearest of the 8 .*'linear"):
        Only("liner.*", ClipByNorm(1.0))(params)
    with pytest.raises(ValueError, match=r"'haed.\*' matches no parameter"):
        AdaptiveClip(exclude=["haed.*"])(params)
    with pytest.raises(ValueError, match=r"'conv.\*' matches no parameter; the nearest of the 2"):
        Chain([Only("linear.*", Only("conv.*", ClipByNorm(1.0)))]).check(list(params))


def test_with_a_context_another_optimizers_pattern_is_passed_over() -> None:
    params = set_gradients(network())
    assert Only("generator.*", ClipByNorm(1.0))(params, StepContext()) is None


def test_only_leaves_the_others_alone() -> None:
    params = set_gradients(network())
    before = params["conv.weight"].grad.clone()
    Only("linear.*", ClipByGlobalNorm(1e-3))(params)
    assert torch.equal(params["conv.weight"].grad, before)
    chosen = [params["linear.weight"].grad, params["linear.bias"].grad]
    assert torch.cat([grad.flatten() for grad in chosen]).norm().item() == pytest.approx(1e-3)


def test_when_waits_for_its_finding() -> None:
    clip = When("spike", ClipByNorm(1e-3))
    params = set_gradients(network())
    with pytest.raises(ValueError, match="pass context=StepContext"):
        clip(params)
    assert clip(params, StepContext(open_kinds=frozenset({"dead"}))) is None
    assert clip(params, StepContext(open_kinds=frozenset({"spike"}))).clipped
    When("plateau", ClipByNorm(1.0), own_kind=True)


def test_functions_are_transforms_and_chains_report_all_coefficients() -> None:
    def double(params, context):
        for param in params.values():
            param.grad.mul_(2)

    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([4.0])
    outcome = Chain([double, ClipByGlobalNorm(4.0), ClipByGlobalNorm(1.0)])({"weight": weight})
    assert weight.grad.item() == 1.0
    assert outcome.coefficient.item() == pytest.approx(1 / 8)
    assert outcome.clipped


def test_skip_removes_all_gradients_and_gives_up_beyond_its_budget() -> None:
    skip, model = SkipNonFinite(budget=2), network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5)
    before = [param.detach().clone() for param in model.parameters()]
    for _ in range(2):
        params = set_gradients(model)
        model.conv.weight.grad[0, 0, 0, 0] = float("inf")
        assert skip(params).skipped
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    params = set_gradients(model)
    model.conv.weight.grad[0, 0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*budget=2.*conv.weight"):
        skip(params)


def test_a_good_step_renews_the_budget() -> None:
    skip, model = SkipNonFinite(budget=1), network()
    for step in range(6):
        params = set_gradients(model)
        if step % 2:
            model.conv.weight.grad[0, 0, 0, 0] = float("nan")
        skip(params)
    assert skip.skipped == 3


def test_a_history_of_another_length_is_refused() -> None:
    clip = PercentileClip(history=3)
    clip(set_gradients(network()))
    with pytest.raises(ValueError, match="has 3 norms; expected 4"):
        PercentileClip(history=4).load_state_dict(clip.state_dict())
    zclip = ZScoreClip(warmup=3)
    zclip(set_gradients(network()))
    with pytest.raises(ValueError, match="has 3 norms; expected 4"):
        ZScoreClip(warmup=4).load_state_dict(zclip.state_dict())


def test_a_finite_gradient_beyond_float32_is_clipped() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 1e20)
    ClipByGlobalNorm(1.0)({"weight": weight})
    assert weight.grad.tolist() == pytest.approx([0.5] * 4)
