"""The Python code of the README and of docs/ runs, and prints what is pasted below it.

``python tests/test_readme.py`` pastes the output of this machine anew.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?!\$)(?P<output>.*?)```\n)?", re.DOTALL)
# Lightning's own lines on stdout are left out, and the tables are as wide as a page.
QUIET = {"PL_TRAINER_ENABLE_PROGRESS_BAR": "False", "PL_TRAINER_ENABLE_MODEL_SUMMARY": "False", "COLUMNS": "100"}
SCRIPT = "train.py"  # where the code of a page stands, as a user would have it
IS_NEW = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)  # of older torch some numbers have other widths
NUMBER = re.compile(r"<?[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def blocks() -> Iterator[tuple[str, str, str]]:
    """Page, code and pasted output, empty where none is."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
            yield page.relative_to(ROOT).as_posix(), found["code"], found["output"] or ""


BLOCKS = list(blocks())


def printed(code: str, page: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(code, SCRIPT, "exec"), {"__name__": "readme"})
    return out.getvalue()


def comparable(text: str) -> str:
    """The text but for its numbers, the length of its bars and its line breaks."""
    return " ".join(re.sub("■+", "■", NUMBER.sub("0", text)).split())


@pytest.mark.filterwarnings("ignore::gradwatch.GradientWarning")
@pytest.mark.parametrize(("page", "code", "output"), BLOCKS, ids=lambda text: text.strip().split("\n")[0])
def test_code_runs_and_prints_what_is_pasted(
    page: str, code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch import seed_everything

    monkeypatch.chdir(tmp_path)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    seed_everything(0, verbose=False)
    if "transformers" in code and not pytest.importorskip("transformers").utils.is_torch_available():
        pytest.skip("this transformers refuses this torch")
    found = printed(code, page)
    if output and IS_NEW:
        assert comparable(found) == comparable(output)


def test_the_readme_is_short_and_has_the_commands_that_ci_runs() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 220
    assert re.search(r"^python3 -m venv .*\.\[dev\].*python -m pytest$", text, re.MULTILINE)


def test_some_pasted_outputs_are_checked() -> None:
    assert sum(bool(output) for _, _, output in BLOCKS) >= 3


def paste_again(page: Path) -> None:
    """Replace each pasted output of a page by what its code prints in a process of its own."""

    def replaced(found: re.Match[str]) -> str:
        if not found["output"]:
            return found[0]
        code = f"from lightning.pytorch import seed_everything\nseed_everything(0, verbose=False)\n{found['code']}"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / SCRIPT).write_text(code, encoding="utf-8")
            command = [sys.executable, "-W", "ignore", SCRIPT]
            ran = subprocess.run(command, cwd=folder, env={**os.environ, **QUIET}, text=True, capture_output=True)
        if ran.returncode:
            raise SystemExit(f"{page}: {ran.stderr}")
        lines = [line.rstrip() for line in ran.stdout.strip("\n").splitlines()]
        return found[0].replace(found["output"], "\n".join(lines) + "\n")

    text = page.read_text(encoding="utf-8")
    page.write_text(BLOCK.sub(replaced, text), encoding="utf-8")


if __name__ == "__main__":
    for path in PAGES:
        paste_again(path)
