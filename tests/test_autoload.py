"""What is added to trainings that do not name gradwatch; tests/callbacks/test_added.py has Lightning's Trainer."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from gradwatch import autoload

TRAINER = """
class DefaultFlowCallback: ...

DEFAULT_CALLBACKS = [DefaultFlowCallback]

class Trainer:
    def __init__(self, callbacks=()):
        self.callbacks = [*DEFAULT_CALLBACKS, *callbacks]
"""


class Callback:
    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps


class AddedCallback(Callback):
    options: dict[str, int]

    def __init__(self) -> None:
        super().__init__(**self.options)


@pytest.fixture
def transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has the module of a Trainer as transformers has it, and is not imported yet."""
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "trainer.py").write_text(TRAINER)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    ours = types.ModuleType("gradwatch.integrations.transformers")
    ours.GradwatchCallback, ours.AddedCallback = Callback, AddedCallback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradwatch.integrations.transformers", ours)
    monkeypatch.setenv(autoload.ENVIRONMENT, "every_n_steps=7")


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("is_imported", [False, True], ids=["before the import", "after the import"])
def test_the_trainer_of_transformers_gets_one_callback(is_imported: bool) -> None:
    before = sys.meta_path[:]
    if is_imported:
        importlib.import_module("transformers.trainer")
    autoload.watch_transformers()
    autoload.watch_transformers()
    module = importlib.import_module("transformers.trainer")
    assert sys.meta_path == before
    assert module.__spec__.loader.name == "transformers.trainer"
    flow, added = module.Trainer().callbacks
    assert flow is module.DefaultFlowCallback
    assert added().every_n_steps == 7  # a class, of which each Trainer makes its own


def test_an_import_that_fails_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    sys.meta_path.insert(0, autoload._AfterImport("no_such_package", lambda module: None))
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        importlib.import_module("no_such_package")
