"""Fixtures that make hundreds of small fits quick, quiet and comparable."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def only_what_is_new_is_collected() -> Iterator[None]:
    """Exempt existing objects from collection, which follows each run and would take longer than it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def lightning_is_quick_and_quiet() -> Iterator[None]:
    """Keep Lightning from searching installed packages for callbacks, and from its messages."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning.fabric.utilities.registry.entry_points", lambda group: [])
        yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def warned_each_time() -> Iterator[None]:
    """Have torch repeat its once-per-process warnings, so that the second run gives them too."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")
