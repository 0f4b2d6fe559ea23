"""``gradwatch run``: a script with every training in it watched, without a line of it changed."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

# This command must load no torch: a script may import another package first, or set what torch reads at its import.
from gradwatch.autoload import ENVIRONMENT, environment, watch_transformers

_WRONG_USE, _ERROR, _INTERRUPTED = 2, 1, 130  # exit codes; the last as a shell has it for Ctrl+C
_WHAT = (
    "Run a script as `python script.py` does, and watch each training of Lightning's Trainer and Fabric, and of "
    "transformers' Trainer, in it. Nothing else is changed. A training that has a monitor of its own keeps it. "
    "To watch a script that starts its own processes with another command, put this one last, as in "
    "`torchrun --nproc-per-node 2 -m gradwatch run train.py`."
)


def add(commands: Any) -> None:
    """Declare the command and its options."""
    short = "watch the trainings of a script that does not name gradwatch"
    usage = "%(prog)s [-h] [-o NAME=VALUE] (SCRIPT | -m MODULE) [ARGUMENT ...]"
    parser = commands.add_parser("run", help=short, usage=usage, description=_WHAT, allow_abbrev=False)
    text = "options of the monitor, such as every_n_steps=10,report=1; may be given several times"
    parser.add_argument("-o", "--options", action="append", default=[], metavar="NAME=VALUE", help=text)
    rest: Any = argparse.REMAINDER
    parser.add_argument("-m", dest="module", nargs=rest, metavar="MODULE", help="a module in place of a script")
    parser.add_argument("script", nargs=rest, metavar="SCRIPT", help="the script, and its arguments")
    parser.set_defaults(run=run, takes_more=False)


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Run the script or module as the main program, and return the exit code; its own SystemExit is raised."""
    command = options.module or options.script
    if not command:
        print("gradwatch run: expected a script, or -m and a module", file=sys.stderr)
        return _WRONG_USE
    if not options.module and not Path(command[0]).exists():
        print(f"gradwatch run: there is no file {command[0]}", file=sys.stderr)
        return _WRONG_USE
    if options.options or environment() is None:
        os.environ[ENVIRONMENT] = ",".join(options.options) or "1"  # processes that the script starts have it too
    watch_transformers()
    return _end_of(_main_program(*command, is_module=bool(options.module)))


def _main_program(name: str, *args: str, is_module: bool) -> Callable[[], object]:
    """Set ``sys.argv`` and ``sys.path`` as ``python`` does, and return what runs the program."""
    sys.argv = [name, *args]
    if is_module:
        sys.path[0] = os.getcwd()
        return partial(runpy.run_module, name, run_name="__main__", alter_sys=True)
    path = Path(name).resolve()
    if path.is_file():
        sys.path[0] = str(path.parent)
    return partial(runpy.run_path, str(Path(name).absolute()), run_name="__main__")


def _end_of(program: Callable[[], object]) -> int:
    """Run a program to its end; show an error as ``python`` does, with the program's own lines alone."""
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _of_program(error.__traceback__)  # the hook reads it here
        sys.excepthook(type(error), error, error.__traceback__)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _ERROR
    return 0


def _of_program(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the program's first line on."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback
