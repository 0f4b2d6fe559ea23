"""The contract of every remedy: the original stays, the copy trains, copies and pickles, and the code is Python."""

from __future__ import annotations

import ast
import copy
import pickle
import warnings

import pytest
import torch
from every_remedy import CASES, EXPORTED
from lightning.pytorch import Trainer
from torch import nn

from gradwatch.remedies import Advice, NotApplicable, Remedy, Setup
from gradwatch.short_runs.batches import SameBatches

MODEL_CHANGES = [name for name, (remedy, _) in CASES.items() if remedy.changes_model]
COMPARED = [name for name in MODEL_CHANGES if not name.startswith(("RescaleInputs", "RescaleTargets", "ScaleBranches"))]


def fit_one_step(setup: Setup) -> None:
    options = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **setup.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(enable_progress_bar=False, enable_model_summary=False, **options)
        trainer.fit(setup.module, SameBatches([setup.batch], 0))


def test_every_exported_remedy_is_tested() -> None:
    assert {name.split("-")[0] for name in CASES} == EXPORTED


@pytest.mark.parametrize("name", CASES)
class TestContract:
    def test_the_original_and_the_random_numbers_stay(self, name: str) -> None:
        remedy, make = CASES[name]
        setup = make()
        before = {key: value.clone() for key, value in setup.module.state_dict().items()}
        shown, hooks, random = str(setup.module), setup.module._forward_hooks, torch.get_rng_state()
        needs = [param.requires_grad for param in setup.module.parameters()]
        remedy.apply(setup)
        assert torch.equal(torch.get_rng_state(), random)
        assert str(setup.module) == shown
        assert not hooks
        assert [param.requires_grad for param in setup.module.parameters()] == needs
        assert "configure_optimizers" not in vars(setup.module)
        after = setup.module.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert after.keys() == before.keys()

    def test_it_is_the_same_each_time(self, name: str) -> None:
        remedy, make = CASES[name]
        setup = make()
        first, again = (remedy.apply(setup).module.state_dict() for _ in range(2))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)

    def test_the_copy_trains_a_step(self, name: str) -> None:
        remedy, make = CASES[name]
        changed = remedy.apply(make())
        before = {key: value.clone() for key, value in changed.module.state_dict().items()}
        fit_one_step(changed)
        after = changed.module.state_dict()
        assert any(not torch.equal(after[key], value) for key, value in before.items())
        assert all(torch.isfinite(value).all() for value in after.values())

    def test_a_copy_and_a_pickle_of_the_copy_train_alike(self, name: str) -> None:
        remedy, make = CASES[name]
        changed = remedy.apply(make())
        copies = [changed.copy(), Setup(pickle.loads(pickle.dumps(changed.module)), (), changed.options, changed.batch)]
        for one in [changed, *copies]:
            torch.manual_seed(0)
            fit_one_step(one)
        states = [one.module.state_dict() for one in [changed, *copies]]
        for state in states[1:]:
            assert all(torch.equal(state[key], value) for key, value in states[0].items())

    def test_mode_and_type_are_kept(self, name: str) -> None:
        remedy, make = CASES[name]
        setup = make()
        setup.module.eval()
        module = remedy.apply(setup).module
        assert not any(part.training for part in module.modules())
        assert {param.dtype for param in module.parameters()} == {torch.float32}

    def test_the_code_is_python(self, name: str) -> None:
        remedy, make = CASES[name]
        setup = make()
        code = remedy.code(setup.module)
        assert ast.parse(code).body or code.startswith("# ")
        if not remedy.changes_model:
            assert ast.parse(remedy.code(setup.module.network)).body

    def test_it_treats_something(self, name: str) -> None:
        remedy, _ = CASES[name]
        assert isinstance(remedy.treats, frozenset)
        assert remedy.treats or name == "Combination"
        assert all(0 <= remedy.fit_for(cause) <= 1 for cause in remedy.treats)

    def test_what_it_does_not_fit_is_refused_with_a_sentence(self, name: str) -> None:
        remedy, _ = CASES[name]
        with pytest.raises(NotApplicable) as caught:
            remedy.apply(nn.Identity())
        assert len(str(caught.value).split()) > 8


@pytest.mark.parametrize("name", COMPARED)
def test_the_code_does_what_the_remedy_does(name: str) -> None:
    remedy, make = CASES[name]
    setup = make()
    by_hand = copy.deepcopy(setup.module)
    torch.manual_seed(3)
    exec(remedy.code(by_hand), {"model": by_hand, "nn": nn, "torch": torch})
    by_remedy = remedy.apply(setup).module
    assert str(by_hand) == str(by_remedy)
    mine, theirs = by_remedy.state_dict(), by_hand.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        spread = value.std().item() if value.numel() > 20 else 0.0
        assert spread == pytest.approx(theirs[key].std().item() if spread else 0.0, rel=0.5), key


@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_a_plain_module_is_changed_too(name: str) -> None:
    remedy, make = CASES[name]
    if name in ("RescaleInputs", "RescaleTargets", "KeepGraph", "ScaleBranches", "SmoothSteps"):
        pytest.skip("without a batch there is nothing to see")
    network = make().module.network
    before = str(network), [value.requires_grad for value in network.parameters()]
    changed = remedy.apply(network)
    assert changed is not network
    assert (str(network), [v.requires_grad for v in network.parameters()]) == before


def test_an_advice_can_not_be_applied() -> None:
    advice: Remedy = Advice("unguarded operation", "Add an epsilon.", "x = (x + 1e-6).sqrt()")
    with pytest.raises(NotApplicable, match="epsilon"):
        advice.apply(nn.Linear(1, 1))
    assert ast.parse(Advice("outlier batch", "Look at it.").code(nn.ReLU())) is not None
    assert advice.fit_for("unguarded operation") == 1
    assert advice.fit_for("dead ReLU") == 0
