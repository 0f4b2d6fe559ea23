"""Private names of torch: each with the version it was seen in, and what is done where it is missing."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_C: Any = torch._C


def _zero() -> int:
    return 0


def _attribute(path: str, fallback: Any) -> Any:
    """Return an attribute of ``torch._C`` by its dotted path, or the fallback."""
    found: Any = _C
    for name in path.split("."):
        found = getattr(found, name, None)
    return fallback if found is None else found


# Seen in torch 2.13. Without it, code under torch.func is taken for ordinary code; reading it fails, and that is
# contained.
functorch_level: Callable[[], Any] = _attribute("_functorch.peek_interpreter_stack", lambda: None)

# Seen in torch 2.13. Without them, modes of the user's see the operations of the watching.
dispatch_mode_count: Callable[[], int] = _attribute("_len_torch_dispatch_stack", _zero)
function_mode_count: Callable[[], int] = _attribute("_len_torch_function_stack", _zero)
is_tracing: Callable[[], bool] = _attribute("_is_tracing", lambda: False)

# Seen in torch 2.13: True for a gradient of many losses at once (autograd.grad(is_grads_batched=True)), which
# has no values. Without it, such a gradient switches the layer off.
is_batched: Callable[[torch.Tensor], bool] = _attribute("_functorch.is_legacy_batchedtensor", lambda _: False)

# Seen in torch 2.13: operations go by the data of tensors, past subclasses' __torch_function__ and past modes.
# Without it, they go through both.
past_torch_function: Callable[[], AbstractContextManager[Any]] = _attribute("DisableTorchFunction", nullcontext)


def is_transformed() -> bool:
    """Return True inside of ``torch.func`` (vmap, grad, jvp), ``torch.jit.trace`` and ``torch.compile``.

    Tensors have no values there that could be read.

    Example:
        >>> seen = []
        >>> output = torch.vmap(lambda x: seen.append(is_transformed()) or x)(torch.ones(2))
        >>> seen, is_transformed()
        ([True], False)
    """
    return functorch_level() is not None or is_tracing() or torch.compiler.is_compiling()


def past_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context in which no ``TorchDispatchMode`` sees an operation.

    Selective checkpointing, FLOP counters and fake tensors are such modes.
    """
    return _without_dispatch_modes() if dispatch_mode_count() else nullcontext()


def _without_dispatch_modes() -> AbstractContextManager[Any]:
    module = importlib.import_module("torch.utils._python_dispatch")
    disable: Any = getattr(module, "_disable_current_modes", nullcontext)  # seen in torch 2.13
    context: AbstractContextManager[Any] = disable()
    return context


def at_end_of_backward(function: Callable[[], object]) -> None:
    """Call a function when the backward pass that is running ends; call this from a hook in the backward pass.

    Seen in torch 2.13; DDP and FSDP do the same. Where it is missing, the function is not called.
    """
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    if hasattr(engine, "queue_callback"):
        engine.queue_callback(function)  # type: ignore[union-attr]


def has_global_hooks() -> bool:
    """Return True if somebody has registered hooks for all modules of the process.

    Seen in torch 2.13; where a table is missing, nobody has.

    Example:
        >>> has_global_hooks()
        False
    """
    module = torch.nn.modules.module
    return bool(getattr(module, "_global_forward_hooks", ()) or getattr(module, "_global_forward_pre_hooks", ()))


def hide_from_script(kind: type) -> None:
    """Let ``torch.jit.script`` and ``torch.jit.trace`` pass over hooks of a class.

    They would try to compile them, and their cache of types would keep them alive. A module's hooks are looked at in
    two private functions (seen in torch 2.13), which are wrapped once for the process. Where one is missing,
    nothing is wrapped, and a module is scripted with its hooks as before.
    """
    recursive: Any = importlib.import_module("torch.jit._recursive")
    for name in ("get_hook_stubs", "infer_concrete_type_builder"):
        original = getattr(recursive, name, None)
        if original is not None and getattr(original, "passes_over", None) is not kind:
            setattr(recursive, name, _without_hooks(original, kind))


def _without_hooks(original: Callable[..., Any], kind: type) -> Callable[..., Any]:
    @functools.wraps(original)
    def look(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tables = [module.__dict__.get(name, {}) for name in ("_forward_hooks", "_forward_pre_hooks")]
        before = [dict(table) for table in tables]
        for table in tables:
            for key in [key for key, hook in table.items() if isinstance(hook, kind)]:
                del table[key]
        try:
            return original(module, *args, **kwargs)
        finally:  # in their order, as they were
            for table, hooks in zip(tables, before, strict=True):
                table.clear()
                table.update(hooks)

    look.passes_over = kind  # type: ignore[attr-defined]
    return look


def record_writer_of(summary_writer: Any) -> tuple[Any, Any] | None:
    """Return the writer of records in a SummaryWriter's thread, and its file; None where either is built otherwise.

    tensorboardX is, and so is a SummaryWriter that is closed. ``file_writer`` and ``event_writer`` are attributes of
    torch's SummaryWriter, seen in torch 2.13. The others are private in TensorBoard, and the same in 2.15 to 2.21.

    Example:
        >>> record_writer_of(object()) is None
        True
    """
    part = summary_writer
    for name in ("file_writer", "event_writer", "_async_writer", "_worker", "_record_writer"):
        part = getattr(part, name, None)
    is_known = type(part).__module__ == "tensorboard.summary.writer.record_writer"
    file = getattr(part, "_writer", None) if is_known else None
    return None if file is None else (part, file)


def saved(node: Any, name: str) -> Any:
    """Return what an autograd node keeps for its backward pass, such as ``target``; None where it keeps no such thing.

    ``_saved_*`` is described in torch's notes on autograd, "Saved tensors", and seen in 2.4 to 2.13. The names are
    those of the derivative formulas, which may change. A tensor that was changed in place raises when it is read.

    Example:
        >>> loss = torch.nn.functional.mse_loss(torch.ones(2, requires_grad=True), torch.zeros(2))
        >>> saved(loss.grad_fn, "target"), saved(loss.grad_fn, "nothing")
        (tensor([0., 0.]), None)
    """
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None
