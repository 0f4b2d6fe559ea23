"""Private names of torch, Lightning and TensorBoard stand in one file, and each can be missing."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwatch
from gradwatch import torch_internals, trainer_internals
from gradwatch.probe.module_hooks import ModuleHook
from gradwatch.probe.norms import l2_norms, nonfinite_counts

ROOT = Path(gradwatch.__file__).parent
INTERNALS = ("torch_internals.py", "trainer_internals.py")
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.name not in INTERNALS]
PAIR = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, -2.0])]


def again() -> ModuleType:
    """The module as it would be imported now, beside the one that is in use."""
    spec = importlib.util.spec_from_file_location("torch_internals_again", torch_internals.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("owner", "private", "name", "expected"),
    [
        (torch._C._functorch, "peek_interpreter_stack", "functorch_level", None),
        (torch._C, "_len_torch_dispatch_stack", "dispatch_mode_count", 0),
        (torch._C, "_len_torch_function_stack", "function_mode_count", 0),
        (torch._C, "_is_tracing", "is_tracing", False),
    ],
)
def test_modes_that_cannot_be_asked_for_are_none(
    owner: Any, private: str, name: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, private)
    assert getattr(again(), name)() == expected


def test_without_functorch_no_gradient_is_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_functorch")
    module = again()
    assert not module.is_batched(torch.ones(1))
    assert module.functorch_level() is None


def test_without_a_way_past_modes_operations_go_through_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "DisableTorchFunction")
    assert again().past_torch_function is nullcontext
    monkeypatch.delattr(sys.modules["torch.utils._python_dispatch"], "_disable_current_modes")
    with torch_internals._without_dispatch_modes():
        assert torch.ones(1).item() == 1


def test_without_the_engines_queue_nothing_is_called_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", object())
    called: list[int] = []
    torch_internals.at_end_of_backward(lambda: called.append(1))
    assert not called


def test_without_the_engines_answer_no_gradient_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = []

    def ask(_: Tensor) -> None:
        answers.append(
            (torch_internals.current_backward_pass() >= 0, torch_internals.will_accumulate([weight, frozen]))
        )

    weight, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    for take_gradient in (Tensor.backward, lambda loss: torch.autograd.grad(loss, weight)):
        output = 2 * weight
        output.register_hook(ask)
        take_gradient(output)
    assert answers == [(True, [True, False]), (True, [False, False])]
    assert torch_internals.current_backward_pass() == -1
    for private in ("_current_graph_task_id", "_will_engine_execute_node"):
        monkeypatch.delattr(torch._C, private)
    module = again()
    assert module.current_backward_pass() == -1
    assert module.will_accumulate([weight]) == [False]


def test_without_their_tables_there_are_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(1, 1)
    layer.register_forward_hook(lambda *_: None)
    assert len(torch_internals.hooks_on(layer)) == 1
    monkeypatch.setattr(torch_internals, "_HOOK_TABLES", ("_other_hooks",))
    assert torch_internals.hooks_on(layer) == []
    torch_internals.drop_hooks(layer, lambda hook: True)
    assert layer(torch.ones(1, 1)).shape == (1, 1)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        monkeypatch.delattr(torch.nn.modules.module, name)
    assert not torch_internals.has_global_hooks()


def test_hooks_are_dropped_with_their_marks() -> None:
    layer, kept = nn.Linear(1, 1), lambda *_: None
    layer.register_forward_hook(kept)
    layer.register_forward_hook(lambda *_, **__: None, with_kwargs=True)
    torch_internals.drop_hooks(layer, lambda hook: hook is not kept)
    assert torch_internals.hooks_on(layer) == [kept]
    assert not layer._forward_hooks_with_kwargs


def test_without_its_functions_script_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recursive = sys.modules["torch.jit._recursive"]
    for name in ("get_hook_stubs", "infer_concrete_type_builder"):
        monkeypatch.delattr(recursive, name)
    torch_internals.hide_from_script(ModuleHook)
    assert not hasattr(recursive, "get_hook_stubs")


@pytest.mark.parametrize("missing", ["event_writer", "_async_writer", "_worker", "_record_writer", "_writer"])
def test_another_summary_writer_has_no_writer_of_records(missing: str, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    record_writer, file = torch_internals.record_writer_of(writer)
    assert record_writer._writer is file
    names = ["file_writer", "event_writer", "_async_writer", "_worker", "_record_writer"]
    top = part = SimpleNamespace()
    for name in names[: names.index(missing)] if missing in names else names[:-1]:
        setattr(part, name, SimpleNamespace())
        part = getattr(part, name)
    if missing == "_writer":
        kind = type("RecordWriter", (), {"__module__": type(record_writer).__module__})
        part._record_writer = kind()
    assert torch_internals.record_writer_of(top) is None
    writer.close()


def test_a_node_that_saves_nothing_or_too_late() -> None:
    class Broken:
        @property
        def _saved_target(self) -> Tensor:
            raise RuntimeError("changed in place")

    assert torch_internals.saved(Broken(), "target") is None
    assert torch_internals.saved(object(), "target") is None


def test_without_fused_operations_each_tensor_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, counts = l2_norms(PAIR), nonfinite_counts(PAIR, l2_norms(PAIR))
    for name in ("norm", "div", "mul", "mul_"):
        monkeypatch.delattr(torch, f"_foreach_{name}")
    module = again()
    for name in ("foreach_norm", "foreach_div", "foreach_mul"):
        monkeypatch.setattr(f"gradwatch.probe.norms.{name}", getattr(module, name))
    assert torch.equal(l2_norms(PAIR), expected)
    assert torch.equal(nonfinite_counts(PAIR, expected), counts)
    assert torch.stack(module.foreach_norm(PAIR, float("inf"))).tolist() == [4, 2]
    assert torch.equal(module.foreach_div(PAIR, [torch.tensor(2.0)] * 2)[0], PAIR[0] / 2)
    assert torch.equal(module.foreach_mul(PAIR, 0.5)[1], PAIR[1] / 2)
    copies = [tensor.clone() for tensor in PAIR]
    module.foreach_mul_(copies, torch.tensor(2.0))
    assert torch.equal(copies[0], 2 * PAIR[0])
    module.foreach_sub_(copies, PAIR)
    assert torch.equal(copies[1], PAIR[1])


def test_without_the_function_no_grad_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = torch._C._set_grad_enabled
    assert torch_internals.set_grad_enabled is seen
    monkeypatch.delattr(torch._C, "_set_grad_enabled")
    assert again().set_grad_enabled is not seen


def test_without_a_version_none_is_known() -> None:
    assert torch_internals.version_of(object()) is None


@pytest.mark.parametrize("public", [True, False])
def test_classes_of_sharding_are_found_in_public_and_private_modules(
    public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [("torch.distributed.fsdp", "torch.distributed._composable.fsdp"),
              ("torch.distributed.tensor", "torch.distributed._tensor")]  # fmt: skip
    for (here, there), name in zip(places, ("FSDPModule", "DTensor"), strict=True):
        found, other = (here, there) if public else (there, here)
        monkeypatch.setitem(sys.modules, found, SimpleNamespace(**{name: int}))
        monkeypatch.setitem(sys.modules, other, None)
    assert torch_internals.fsdp2_class() is int
    assert torch_internals.dtensor_class("DTensor") is int
    for place in (place for pair in places for place in pair):
        monkeypatch.setitem(sys.modules, place, None)
    assert not isinstance(nn.Linear(1, 1), torch_internals.fsdp2_class())
    assert torch_internals.dtensor_class("DTensor") is None


def test_without_marks_nothing_is_marked() -> None:
    """An object that has none of the private names."""
    bare: Any = object()
    assert not torch_internals.is_flat_piece(bare)
    assert not torch_internals.is_compiled_function(bare)
    assert not torch_internals.is_compiled_in_place(bare)
    assert not torch_internals.unscales_itself(bare)
    assert not torch_internals.has_unscaled(bare, bare)
    assert torch_internals.chained_schedulers(bare) is None
    assert trainer_internals.owners_of(bare) == []


def test_the_marks_are_those_of_this_torch() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    schedulers = [torch.optim.lr_scheduler.ConstantLR(optimizer) for _ in range(2)]
    chained = torch.optim.lr_scheduler.ChainedScheduler(schedulers)
    assert [*torch_internals.chained_schedulers(chained)] == schedulers
    assert torch_internals.is_compiled_function(
        torch.compile(lambda x: x + 1)
    )  # of its own functions torch 2.4 takes none
    layer = nn.Linear(1, 1)
    layer.compile()
    assert torch_internals.is_compiled_in_place(layer)
    assert torch_internals.version_of(weight) is not None
    assert torch_internals.unscales_itself(torch.optim.SGD([weight], fused=True))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(2 * weight).backward()
    assert not torch_internals.has_unscaled(scaler, optimizer)
    scaler.unscale_(optimizer)
    assert torch_internals.has_unscaled(scaler, optimizer)


def names_of_our_own() -> set[str]:
    """Names with one underscore that gradwatch defines: functions, methods, classes, and what it assigns to."""
    found: set[str] = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


OURS = names_of_our_own()
OF_PYTHON = {"_getframe", "_exit"}
READING = ("getattr", "hasattr", "setattr", "delattr")


def private_names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if is_own else [node.attr]
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("gradwatch"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        for name in map(str, names):
            if name.startswith("_") and not name.startswith("__") and name not in OURS | OF_PYTHON:
                yield f"{name} in line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_private_names_of_others_stand_in_one_file(path: Path) -> None:
    assert list(private_names_in(path)) == []


def test_a_private_name_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "new.py"
    path.write_text(
        "import torch._dynamo\nx = torch._C._is_tracing()\ny = getattr(x, '_record_writer')\nz = self._x.a\n"
    )
    assert len(list(private_names_in(path))) == 4


def test_without_the_function_behind_the_clip_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("torch.nn.utils.clip_grad")
    monkeypatch.delattr(module, "_clip_grads_with_norm_", raising=False)
    fresh = again()

    class Listener:
        def __call__(self, *_: object) -> None:
            raise AssertionError

    listener = Listener()
    fresh.listen_to_clips(listener)
    assert not hasattr(module, "_clip_grads_with_norm_")
    fresh.stop_listening_to_clips(listener)


def test_a_wrapper_of_somebody_else_around_ours_stays() -> None:
    module: Any = importlib.import_module("torch.nn.utils.clip_grad")
    original = getattr(module, "_clip_grads_with_norm_", None)
    if original is None:
        pytest.skip("older torch")
    told: list[float] = []

    class Listener:
        def before(self, params: object) -> None:
            told.append(0.0)

        def __call__(self, params: object, bound: float, norm: object) -> None:
            told.append(bound)

    listener = Listener()
    torch_internals.listen_to_clips(listener)
    ours = module._clip_grads_with_norm_

    def theirs(*args: Any) -> None:
        ours(*args)

    module._clip_grads_with_norm_ = theirs
    try:
        torch.nn.utils.clip_grad_norm_([nn.Parameter(torch.ones(1))], 2.0)
        torch_internals.stop_listening_to_clips(listener)
        torch.nn.utils.clip_grad_norm_([nn.Parameter(torch.ones(1))], 3.0)
        assert module._clip_grads_with_norm_ is theirs
        assert told == [0.0, 2.0]
    finally:
        module._clip_grads_with_norm_ = original


def test_without_a_loaded_compiler_nothing_is_imported_to_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert isinstance(torch_internals.run_eagerly(), nullcontext)


def test_without_the_names_of_the_trainers_there_is_less_and_no_error() -> None:
    model = nn.Linear(1, 1)
    assert trainer_internals.wrapped_by_fabric(model) is model
    assert trainer_internals.callbacks_of_fabric(object()) is None
    assert trainer_internals.notes_of_trl(object()) == {}
