"""The wheel and the sdist: what they hold, and that an install of the wheel trains, prints its version and reports.

About 40 seconds, without a network: `pytest -m slow tests/test_distribution.py`.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import gradwatch

pytest.importorskip("build")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NAME = f"gradwatch-{gradwatch.__version__}"
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "site", "*.egg-info", "__pycache__", "*_logs", "shared")
# No import of the checkout, neither by the path nor by the working directory.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GRADWATCH_ON_ERROR")}
TRAINING = """
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch.examples.baseline import Baseline

assert Path(gradwatch.__file__).is_relative_to(Path(__import__("sys").prefix)), gradwatch.__file__
data = TensorDataset(torch.randn(64, 8), torch.randint(10, (64,)))
settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
trainer = Trainer(max_steps=4, callbacks=[gradwatch.GradientMonitor()], **settings)
trainer.fit(Baseline(in_features=8), DataLoader(data, batch_size=16))
"""


def ran(*command: str | Path, cwd: Path) -> str:
    """What a command prints."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel that is built from it and, below ``direct``, one from the checkout."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    build = (sys.executable, "-m", "build", "--no-isolation")
    ran(*build, "--outdir", folder, source, cwd=folder)
    shutil.rmtree(source / "build", ignore_errors=True)
    ran(*build, "--wheel", "--outdir", folder / "direct", source, cwd=folder)
    return folder


def in_wheel(folder: Path) -> dict[str, int]:
    """Name and checksum of each file in a wheel, but for the list of them."""
    with zipfile.ZipFile(folder / f"{NAME}-py3-none-any.whl") as wheel:
        return {each.filename: each.CRC for each in wheel.infolist() if not each.filename.endswith("RECORD")}


def in_sdist(folder: Path) -> set[str]:
    with tarfile.open(folder / f"{NAME}.tar.gz") as sdist:
        return {member.name.removeprefix(f"{NAME}/") for member in sdist if member.isfile()}


def of_package() -> set[str]:
    """The files that belong into the package, by their names in it."""
    places = {ROOT / "gradwatch": "gradwatch", ROOT / "examples": "gradwatch/examples"}
    data = {".py", ".typed", ".css", ".jinja", ".js"}
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for folder, name in places.items()
        for path in folder.rglob("*")
        if path.suffix in data or path.name == "gallery.md"
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    found = in_wheel(built)
    info = f"{NAME}.dist-info/"
    assert {name for name in found if not name.startswith(info)} == of_package()
    about = {name.removeprefix(info) for name in found if name.startswith(info)}
    assert about == {"licenses/LICENSE", "METADATA", "WHEEL", "entry_points.txt", "top_level.txt"}
    assert {"gradwatch/py.typed", "gradwatch/reporting/html/page.css", "gradwatch/examples/baseline.py"} <= set(found)


def test_the_sdist_builds_the_same_wheel(built: Path) -> None:
    found = in_sdist(built)
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= found
    assert not [name for name in found if name.startswith("tests/") or "__pycache__" in name]
    assert in_wheel(built) == in_wheel(built / "direct")


def test_an_installed_wheel_trains_and_reports(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    environment = tmp_path / "environment"
    ran(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    install = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    ran(*install, "--no-deps", "--no-index", built / f"{NAME}-py3-none-any.whl", cwd=tmp_path)
    site = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    # What gradwatch needs comes from the environment of the tests. Paths in a .pth come after the wheel's own folder,
    # and an editable install in them is not read.
    Path(site, "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train.py").write_text(TRAINING)
    assert "gradwatch: gradients at step 3" in ran(programs / "python", "train.py", cwd=elsewhere)
    assert ran(programs / "gradwatch", "--version", cwd=elsewhere) == f"gradwatch {gradwatch.__version__}\n"
    ran(programs / "gradwatch", "report", "gradwatch_logs", "-o", "report.html", cwd=elsewhere)
    page = (elsewhere / "report.html").read_text(encoding="utf-8")
    assert "block1.linear" in page
    assert "<script" in page
