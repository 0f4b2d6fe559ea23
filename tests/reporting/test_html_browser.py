"""The report in a browser: it draws, it can be used on a desktop and on a phone, and names of layers stay text."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwatch.records import Finding
from gradwatch.reporting.comparison import compare
from gradwatch.reporting.html.compare import write_comparison
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.reading import Record
from tests.reporting.shown_runs import DIAGNOSIS, FINDING, deep_run, vanishing_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = ("a</script><script>hacked=1</script>", "<b>bold</b>", "<img src=x onerror=hacked=1>", "%{x}", "&lt;f")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium: Any, path: Path, size: dict[str, int] = DESKTOP) -> tuple[Any, list[str]]:
    """The page, once its charts are drawn, and the errors of its console, to which later ones are added."""
    errors: list[str] = []
    page = chromium.new_page(viewport=size)
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else errors.append(request.url)
    )
    page.goto(path.as_uri())
    page.wait_for_function("document.body.dataset.drawn", timeout=60_000)
    return page, errors


def hovered(page: Any, down: float) -> str:
    """The text at the middle of the gradient flow, at a share of its height from the top."""
    plot = page.locator("#flow-chart .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(0, 0)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * down)
    page.locator("#flow-chart .hoverlayer text").first.wait_for(timeout=10_000)
    page.wait_for_timeout(200)  # an earlier text may still be there
    return str(page.locator("#flow-chart .hoverlayer").text_content())


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_drawn_and_used_without_an_error(chromium: Any, tmp_path: Path, size: dict[str, int]) -> None:
    run = deep_run(12, blocks=12)
    sick = Finding("exploding", run[0].layers[8:10], 100, 2e3, 1e3, "it explodes")
    page, errors = opened(chromium, Path(write_report(tmp_path / "r.html", Record(run, [sick]), [])), size)
    assert page.locator(".js-plotly-plot").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    fold = page.locator(".tree summary", has_text="0 to 11")
    assert page.locator(".tree .label", has_text="11").last.is_visible()  # open, as one of the blocks is sick
    fold.click()
    assert not page.locator(".tree .label:text-is('11')").is_visible()

    rows = page.locator("#layer-table tbody tr:visible")
    page.fill("#search", "explod")
    assert rows.count() == 2
    page.fill("#search", "h.3. LINEAR")
    assert rows.count() == 4
    page.fill("#search", "")
    page.click("#layer-table th button:text-is('gradient')")
    shown = [float(text) for text in page.locator("#layer-table tbody td:nth-child(5)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    page.click("#layer-table th button:text-is('layer')")
    assert rows.first.locator("th").inner_text() == "transformer.wte"

    page.select_option("#flow-column", "grad_output_norm")
    page.wait_for_timeout(200)
    assert errors == []


def test_a_hover_shows_layer_step_and_value(chromium: Any, tmp_path: Path) -> None:
    page, errors = opened(
        chromium, Path(write_report(tmp_path / "r.html", Record(vanishing_run(), [FINDING]), [DIAGNOSIS]))
    )
    shown = hovered(page, 0.98)
    assert "net.15" in shown
    assert "step 1" in shown
    assert errors == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_names_of_layers_are_text_in_charts_and_hovers(chromium: Any, tmp_path: Path, size: dict[str, int]) -> None:
    finding = Finding("<b>kind</b>", (HOSTILE[2],), 50, 9.0, 1.0, "<script>hacked=1</script>")
    record = Record(deep_run(3, layers=HOSTILE), [finding])
    page, errors = opened(
        chromium, Path(write_report(tmp_path / "r.html", record, [], "<script>hacked=1</script>")), size
    )
    labels = page.locator("#flow-chart .yaxislayer-above text").all_text_contents()
    if size == DESKTOP:
        assert labels == list(HOSTILE)
    for row, name in enumerate(HOSTILE):
        assert name in hovered(page, (row + 0.5) / len(HOSTILE))
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("main b, main img").count() == 0
    assert errors == []


def test_it_can_be_read_where_it_cannot_be_unpacked(chromium: Any, tmp_path: Path) -> None:
    path = Path(write_report(tmp_path / "r.html", Record(vanishing_run(), [FINDING]), [DIAGNOSIS]))
    page = chromium.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(path.as_uri())
    assert "cannot unpack the charts" in page.locator("#no-charts").inner_text()
    page.fill("#search", "Sigmoid")
    assert page.locator("#layer-table tbody tr:visible").count() == 7


def test_print_opens_what_is_folded(chromium: Any, tmp_path: Path) -> None:
    page, errors = opened(chromium, Path(write_report(tmp_path / "r.html", Record(deep_run(3, blocks=4), []), [])))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    assert len(page.pdf()) > 20_000
    assert errors == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_two_runs_are_drawn_on_one_colour_scale(chromium: Any, tmp_path: Path, size: dict[str, int]) -> None:
    first = Record(deep_run(8, 2), [])
    second = Record([replace(each, grad_norm=100 * each.grad_norm) for each in deep_run(8, 3)], [])
    path = write_comparison(tmp_path / "c.html", compare(first, second), (first, [], "A"), (second, [], "B"))
    page, errors = opened(chromium, Path(path), size)
    assert page.locator(".js-plotly-plot").count() == 6
    ranges = [page.evaluate(f"document.getElementById('flow-{side}').data[0].zmax") for side in "AB"]
    assert ranges[0] == ranges[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert errors == []
