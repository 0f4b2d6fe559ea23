"""Private names of torch, Lightning and TensorBoard, each with the versions it was seen in and a fallback.

No other file of gradwatch reads a private name of these libraries; tests/test_torch_internals.py takes each one away.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_C: Any = torch._C
_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks")


def _attribute(path: str, fallback: Any) -> Any:
    """Return an attribute of ``torch._C`` by its dotted path, or the fallback."""
    found = functools.reduce(lambda owner, name: getattr(owner, name, None), path.split("."), _C)
    return fallback if found is None else found


# Seen in torch 2.13. Without it, code under torch.func is taken for ordinary code; reading it fails, and that is
# contained.
functorch_level: Callable[[], Any] = _attribute("_functorch.peek_interpreter_stack", lambda: None)

# Seen in torch 2.13. Without them, modes of the user's see the operations of the watching.
dispatch_mode_count: Callable[[], int] = _attribute("_len_torch_dispatch_stack", lambda: 0)
function_mode_count: Callable[[], int] = _attribute("_len_torch_function_stack", lambda: 0)
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


# Seen in torch 2.13: the node of autograd's graph that is being run, None outside of a backward pass. Without it, the
# graph of layers that run in the backward pass (reentrant checkpointing) is not known.
current_node: Callable[[], Any] = _attribute("_current_autograd_node", lambda: None)

# Seen in torch 2.13: the number of the backward pass that is running, -1 outside of one. Without it there is none.
current_backward_pass: Callable[[], int] = _attribute("_current_graph_task_id", lambda: -1)


def will_accumulate(params: Sequence[Tensor]) -> list[bool]:
    """Return for each parameter if the backward pass that is running will add to its gradient.

    ``torch.autograd.grad`` adds to none, and ``backward(inputs=...)`` to some. Call this from a hook in the pass. Seen
    in torch 2.13, in whose own ``register_multi_grad_hook``. Where it is missing, none is added to.
    """
    with torch.enable_grad():  # the node that adds to a leaf is known only to what is computed from it
        views: list[Any] = [param.view_as(param) for param in params]
    return [view.grad_fn is not None and _will_run(view.grad_fn) for view in views]


def _will_run(node: Any) -> bool:
    try:
        return bool(_C._will_engine_execute_node(node.next_functions[0][0]))
    except (AttributeError, RuntimeError):  # a RuntimeError where autograd.grad returns this gradient
        return False


def has_global_hooks() -> bool:
    """Return True if somebody has registered hooks for all modules of the process.

    Seen in torch 2.13; where a table is missing, nobody has.
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
        tables = [module.__dict__.get(name, {}) for name in _HOOK_TABLES]
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


def output_shape(node: Any, number: int) -> tuple[int, ...] | None:
    """Return the shape of an output of an autograd node; None where the node does not tell.

    ``_input_metadata`` is what a node knows of the gradients that it will be given. Seen in torch 2.13.

    Example:
        >>> output_shape(torch.nn.Linear(2, 3)(torch.ones(5, 2)).grad_fn, 0), output_shape(object(), 0)
        ((5, 3), None)
    """
    try:
        return tuple(int(size) for size in node._input_metadata[number].shape)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None


# Fused operations on many tensors, seen in torch 2.4 to 2.13. Without them, one operation a tensor.
def _norms(tensors: Sequence[Tensor], ord: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, ord, dtype=dtype) for tensor in tensors]


def _quotients(tensors: Sequence[Tensor], divisors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor / divisor for tensor, divisor in zip(tensors, divisors, strict=True)]


def _products(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    return [tensor * factor for tensor in tensors]


def _multiply(tensors: Sequence[Tensor], factor: Tensor) -> None:
    for tensor in tensors:
        tensor.mul_(factor)


def _subtract(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for tensor, other in zip(tensors, others, strict=True):
        tensor.sub_(other)


def _copy(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for tensor, other in zip(tensors, others, strict=True):
        tensor.copy_(other)


foreach_norm: Callable[..., list[Tensor]] = getattr(torch, "_foreach_norm", _norms)
foreach_div: Callable[..., list[Tensor]] = getattr(torch, "_foreach_div", _quotients)
foreach_mul: Callable[..., list[Tensor]] = getattr(torch, "_foreach_mul", _products)
foreach_mul_: Callable[..., object] = getattr(torch, "_foreach_mul_", _multiply)
foreach_sub_: Callable[..., object] = getattr(torch, "_foreach_sub_", _subtract)
foreach_copy_: Callable[..., object] = getattr(torch, "_foreach_copy_", _copy)

# What a TorchFunctionMode is given for no_grad(), seen in torch 2.4 to 2.13. Without it, no_grad() is not noticed.
set_grad_enabled: Any = getattr(_C, "_set_grad_enabled", object())
NO_GRAD_MODULES = ("torch.autograd.grad_mode", "torch.utils._contextlib")  # where no_grad() runs as a decorator

# Attributes under which compiling, checkpointing and FSDP1 keep the module they wrap, seen in torch 2.4 to 2.13. Under
# another name, that name would stay a part of the layers' names.
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def version_of(tensor: Tensor) -> int | None:
    """Return the counter that autograd moves at each write to a tensor; None where missing (in torch since 0.4)."""
    version: int | None = getattr(tensor, "_version", None)
    return version


def is_flat_piece(tensor: Tensor) -> bool:
    """Return True if a parameter is a piece of one of FSDP1's flat parameters (mark seen in torch 2.4 to 2.13).

    Without the mark, its norm is that of the piece that this process holds.
    """
    return bool(getattr(tensor, "_fsdp_flattened", False))


def ignored_by_ddp(module: nn.Module) -> Sequence[str]:
    """Return the names of the parameters and buffers that DDP was told to leave alone (seen in torch 2.4 to 2.13).

    Without the mark, none: they are taken for weights that all processes share.
    """
    return tuple(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))


def fsdp2_class() -> Any:
    """Return the class that ``fully_shard`` gives a module; in torch 2.4 and 2.5 it is private, or () where neither."""
    modules = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")
    return next(filter(None, (_attribute_of(module, "FSDPModule") for module in modules)), ())


def dtensor_class(name: str) -> Any:
    """Return ``DTensor`` or a placement of it; torch 2.4 has them in a private module. None where neither has it."""
    if not torch.distributed.is_available():
        return None
    return _attribute_of("torch.distributed.tensor", name) or _attribute_of("torch.distributed._tensor", name)


def _attribute_of(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def hooks_on(module: nn.Module) -> list[Any]:
    """Return the forward hooks and pre-hooks of a module (tables seen in torch 2.4 to 2.13); none where missing."""
    return [hook for name in _HOOK_TABLES for hook in module.__dict__.get(name, {}).values()]


def drop_hooks(module: nn.Module, is_unwanted: Callable[[Any], bool]) -> None:
    """Remove hooks from a module whose handles nobody has; none where the tables are missing."""
    for name in _HOOK_TABLES:
        hooks = module.__dict__.get(name, {})
        for key in [key for key, hook in hooks.items() if is_unwanted(hook)]:
            del hooks[key]
            module.__dict__.get(f"{name}_with_kwargs", {}).pop(key, None)


def is_compiled_function(function: Any) -> bool:
    """Return True for a function that ``torch.compile`` returned (mark seen in torch 2.4 to 2.13).

    Without the mark, layers in compiled code are taken for layers that nobody calls, and a warning names them.
    """
    return hasattr(function, "_torchdynamo_orig_callable")


def run_eagerly() -> AbstractContextManager[Any]:
    """Return a context in which compiled code runs as it is written (torch 2.6 and newer).

    Where nothing has been compiled, nothing is imported for it, which takes seconds (module seen in torch 2.4 to 2.13;
    under another name, compiled code stays compiled).
    """
    has_compiler = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    return torch.compiler.set_stance("force_eager") if has_compiler else nullcontext()


def is_compiled_in_place(module: nn.Module) -> bool:
    """Return True after ``module.compile()`` (seen in torch 2.4 to 2.13); without it, as above."""
    return getattr(module, "_compiled_call_impl", None) is not None


def unscales_itself(optimizer: Any) -> bool:
    """Return True if an optimizer divides by the loss scale in its step (a fused one; seen in torch 2.4 to 2.13).

    Without the mark, its gradients are taken for unscaled before the step.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def has_unscaled(scaler: Any, optimizer: Any) -> bool:
    """Return True if the user has called ``scaler.unscale_(optimizer)`` in this step (seen in torch 2.4 to 2.13).

    Where the state is kept otherwise, gradients are taken for scaled.
    """
    states = getattr(scaler, "_per_optimizer_states", {})
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", None) == "UNSCALED"


def chained_schedulers(scheduler: Any) -> Any:
    """Return the schedulers of a SequentialLR or ChainedScheduler (seen in torch 2.4 to 2.13); None for others.

    Without the name, the rates of the inner schedulers stay as they are.
    """
    return getattr(scheduler, "_schedulers", None)


_CLIP = "_clip_grads_with_norm_"  # what clip_grad_norm_ calls by its module's globals; seen in torch 2.6 to 2.13
_clip_lock = threading.RLock()  # a listener that dies may take it again, in the middle of this
_clip_listeners: weakref.WeakSet[Any] = weakref.WeakSet()
_clip_wrapper: list[Callable[..., Any]] = []  # the one in place, and what it wraps; empty where nobody listens


def listen_to_clips(listener: Any) -> None:
    """Call a listener with parameters, bound and total norm after each ``clip_grad_norm_``, until it is stopped.

    Before it, its method ``before`` is called with the parameters. It is not kept alive.
    Without the private name (in torch 2.4 and 2.5) it is never called.
    """
    module: Any = importlib.import_module("torch.nn.utils.clip_grad")
    with _clip_lock:
        original = getattr(module, _CLIP, None)
        if original is None:
            return
        _clip_listeners.add(listener)
        if not _clip_wrapper:
            _clip_wrapper[:] = [_telling(original), original]
            setattr(module, _CLIP, _clip_wrapper[0])


def stop_listening_to_clips(listener: Any) -> None:
    """Stop calling a listener; the last one that stops puts torch's function back."""
    module: Any = importlib.import_module("torch.nn.utils.clip_grad")
    with _clip_lock:
        _clip_listeners.discard(listener)
        if _clip_wrapper and not _clip_listeners:
            wrapper, original = _clip_wrapper
            if getattr(module, _CLIP, None) is wrapper:  # else somebody has wrapped it once more, and it stays
                setattr(module, _CLIP, original)
            _clip_wrapper.clear()


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
        listeners = [] if torch.compiler.is_compiling() else list(_clip_listeners)
        for listener in listeners:
            listener.before(parameters)
        result = original(parameters, max_norm, total_norm, *args, **kwargs)
        for listener in listeners:
            listener(parameters, max_norm, total_norm)
        return result

    return clip
