"""``gradwatch compare``: two runs side by side, and the step, layer and column in which they part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradwatch.commands.problems import WRONG_USE
from gradwatch.commands.report import Run, read_run
from gradwatch.commands.target import UsageError
from gradwatch.reporting.comparison import COLUMNS, TOLERANCE, Comparison, Place, compare, in_words, settings_apart
from gradwatch.reporting.html.compare import write_comparison
from gradwatch.reporting.html.verdict import verdict_of
from gradwatch.reporting.short_names import short_names
from gradwatch.reporting.terminal import wide_console
from gradwatch.reporting.text import number

_NAME_WIDTH = 26  # characters of a layer's name, with which the tables fit 80 columns


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = "Compare two runs: where they part first (step, layer, column), and what is different in them."
    parser = commands.add_parser("compare", help="say where two runs part", description=what, allow_abbrev=False)
    parser.add_argument("first", metavar="RUN_A", help="a run's folder or its gradwatch.jsonl")
    parser.add_argument("second", metavar="RUN_B", help="the same of the other run")
    parser.add_argument("-o", "--out", metavar="COMPARE.HTML", help="write both side by side as one HTML file too")
    text = "relative difference above which two values are apart (default: %(default)s, which is 3x)"
    parser.add_argument("--tolerance", type=_tolerance, default=TOLERANCE, help=text)
    parser.set_defaults(run=run, takes_more=False)


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Print the comparison, write it where asked, and return the exit code."""
    try:
        runs = (read_run(options.first), read_run(options.second))
        compared = compare(runs[0].record, runs[1].record, options.tolerance)
        print_comparison(compared, runs)
        if options.out:
            sides = [(each.record, each.diagnoses, each.title) for each in runs]
            print(f"The comparison: {write_comparison(options.out, compared, sides[0], sides[1])}")
    except (UsageError, ImportError, OSError) as error:
        print(f"gradwatch compare: {error}", file=sys.stderr)
        return WRONG_USE
    return 0


def _tolerance(text: str) -> float:
    """Parse a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a number above 0, such as 0.1 for 10 %")
    return value


def print_comparison(compared: Comparison, runs: Sequence[Run], console: Console | None = None) -> None:
    """Print where two runs part, column by column, and what else is different in them."""
    console = console or wide_console()
    for name, each in zip("AB", runs, strict=True):
        record = each.record
        verdict = verdict_of(record.snapshots, record.findings, each.diagnoses, {})
        console.print(Text.assemble((f"{name}  ", "bold"), f"{each.title}\n   {_plain(verdict.sentence)}"))
    style = "bold red" if compared.parts else "bold green" if compared.columns else "bold yellow"
    console.print(Text(f"\n{_plain(compared.sentence)}\n", style=style))
    short = dict(zip(compared.layers, short_names(compared.layers, _NAME_WIDTH), strict=True))
    if compared.parts:
        console.print(Text("First apart", style="bold"))
        console.print(_places(list(compared.columns.items()), short, has_step=True))
    if compared.farthest:
        step = compared.farthest[0].step
        console.print(Text(f"\nGradients farthest apart at step {step}, the last of both", style="bold"))
        console.print(_places([(place.column, place) for place in compared.farthest], short, has_step=False))
    _print_settings(console, settings_apart(runs[0].record.settings, runs[1].record.settings))
    console.print()
    for text in (*compared.gaps, *([compared.rule] if compared.columns else [])):
        console.print(Text(_plain(text), style="dim"))


def _places(places: Sequence[tuple[str, Place | None]], short: dict[str, str], *, has_step: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for head in ("column", "step") if has_step else ():
        table.add_column(head, justify="right" if head == "step" else "left", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for head in ("A", "B", "B / A"):
        table.add_column(head, justify="right", no_wrap=True)
    for column, place in places:
        begin = [COLUMNS[column], str(place.step) if place else ""] if has_step else []
        if place is None:
            table.add_row(*map(Text, [*begin, "nowhere", "", "", ""]), style="dim")
            continue
        numbers = [in_words(place.first), in_words(place.second), number(place.ratio)]
        table.add_row(*map(Text, [*begin, short.get(place.layer, place.layer) or "(whole run)", *numbers]))
    return table


def _print_settings(console: Console, settings: dict[str, tuple[str, str]]) -> None:
    if settings:
        console.print(Text("\nSettings that are not the same", style="bold"))
    for name, (first, second) in settings.items():
        console.print(Text(f"  {name}: {first or 'not known'} in A, {second or 'not known'} in B"))


def _plain(text: str) -> str:
    return text.replace("`", "")
