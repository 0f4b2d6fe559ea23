"""Errors and operations of the watching end where it works: the training, and modes of the user's, see neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradwatch.containment import RaisedOnPurpose
from gradwatch.pipeline.contained import Contained


class Dispatched(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """Counts the calls of torch's functions."""

    seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Dispatched, Called])
def test_a_mode_of_the_users_sees_what_is_outside(kind: type[Any]) -> None:
    with kind() as mode:
        with Contained(pytest.fail):
            torch.ones(2).sum()
        assert mode.seen == 0
        with Contained(lambda error: None):
            raise KeyError
        torch.ones(2)
        assert mode.seen == 1


def test_an_error_ends_in_it() -> None:
    errors: list[Exception] = []
    with Contained(errors.append):
        raise KeyError("a")
    assert [repr(error) for error in errors] == ["KeyError('a')"]


@pytest.mark.parametrize("kind", [RaisedOnPurpose, KeyboardInterrupt])
def test_what_is_meant_for_the_user_goes_on(kind: type[BaseException]) -> None:
    with pytest.raises(kind), Contained(pytest.fail):
        raise kind


def test_what_fail_raises_goes_on() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError), Contained(fail):
        raise KeyError


def test_numpy_is_silent_where_it_is_used() -> None:
    errors: list[Exception] = []
    with np.errstate(all="raise"):
        for with_numpy in (True, False):
            with Contained(errors.append, with_numpy=with_numpy):
                np.log(np.zeros(1))
        with pytest.raises(FloatingPointError):
            np.log(np.zeros(1))
    assert [type(error) for error in errors] == [FloatingPointError]
