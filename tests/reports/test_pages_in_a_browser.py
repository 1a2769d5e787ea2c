"""The pages in a real browser: nothing fetched, nothing said, everything drawn, nothing wider."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from histories import collapse_rows
from ncmonitor.monitor.history import start_history
from ncmonitor.monitor.symmetry_table import SYMMETRY_FILE
from ncmonitor.plots import PANELS
from ncmonitor.reports.comparison import write_comparison
from ncmonitor.reports.run_page import write_report
from ncmonitor.symmetry.rows import COLUMNS
from pages import RUN, add_layers, add_snapshots, make_run
from symmetries import symmetry_rows

REQUIRED: Final = os.environ.get("NCMONITOR_REQUIRE_BROWSER") == "1"
EXPECT: Final = "expect:\n  epoch: 20\n  nc1: 1.0\n"
#: Window and look of each kind of reader.
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 780}, "is_mobile": True, "has_touch": True},
}


def chromium() -> str | None:
    """Return where the browser is; a test machine may bring its own."""
    named = os.environ.get("NCMONITOR_CHROMIUM")
    if named:
        return named
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if REQUIRED:
        from playwright.sync_api import sync_playwright
    else:
        if path is None:
            pytest.skip("no Chromium; NCMONITOR_CHROMIUM names one")
        sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    assert path is not None, "NCMONITOR_REQUIRE_BROWSER=1, but there is no Chromium"
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with everything in it, and a comparison."""
    root = tmp_path_factory.mktemp("runs")
    rows = collapse_rows(range(21), exits=(), failed=(7,))
    folders = []
    for seed in range(2):
        facts = RUN | {"seed": seed, "measurement": RUN["measurement"] | {"class_sizes": [9] * 4}}
        folder = make_run(root / f"seed{seed}", add_layers(rows, "body.3", "body.6"), facts)
        (folder / "config.yaml").write_text(f"seed_everything: {seed}\n{EXPECT}")
        groups = symmetry_rows([0, 5, 20], layers=("body.3",), seed=seed)
        start_history(folder, groups, COLUMNS, file=SYMMETRY_FILE)
        folders.append(folder)
    add_snapshots(folders[0], (0, 1, 2, 5, 10, 20))
    report = write_report(folders[0])
    return {"report": report, "comparison": write_comparison(folders, root / "both.html")}


@dataclass
class Visit:
    """A page that is open, and what it did."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def boxes(self, selector: str) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = self.page.evaluate(
            "(s) => [...document.querySelectorAll(s)].map((each) => {"
            "const box = each.getBoundingClientRect(); return [box.width, box.height]; })",
            selector,
        )
        return found

    def pixels(self, selector: str) -> Any:
        """Return the pixels of the first element that fits, ``(height, width, 3)``."""
        shot = self.page.locator(selector).first.screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=float)


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Any, files: dict[str, Path]) -> Iterator[Visit]:
    name, look = request.param
    context = browser.new_context(**LOOKS[look])
    seen = Visit(context.new_page())
    seen.page.on("console", lambda message: seen.said.append(message.text))
    seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.goto(files[name].as_uri())
    seen.page.wait_for_load_state("networkidle")
    yield seen
    context.close()


#: Run by `make test`; the others are its relatives.
QUICK: Final = (("report", "light"), ("report", "phone"), ("comparison", "light"))


def pages(*names: str, looks: tuple[str, ...] = tuple(LOOKS)) -> pytest.MarkDecorator:
    """Run a test for some pages in some looks."""
    cases = [
        pytest.param(
            (name, look),
            id=f"{name}-{look}",
            marks=[] if (name, look) in QUICK else [pytest.mark.slow],
        )
        for name in names
        for look in looks
    ]
    return pytest.mark.parametrize("visit", cases, indirect=True)


BOTH: Final = ("report", "comparison")


@pages(*BOTH)
def test_the_browser_has_nothing_to_say_and_fetches_the_file_alone(visit: Visit) -> None:
    assert visit.said == []
    fetched = [url for url in visit.asked if not url.startswith("data:image/png;base64,")]
    assert fetched == [visit.page.url]


@pages(*BOTH)
def test_no_page_is_wider_than_its_window(visit: Visit) -> None:
    # Not innerWidth: a phone widens that to what is too wide.
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= visit.page.viewport_size["width"]


@pages(*BOTH, looks=("light", "phone"))
def test_the_tables_are_read_without_moving_sideways(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": min(1100, visit.page.viewport_size["width"]),
                                  "height": 900})  # fmt: skip
    room = visit.page.evaluate(
        "[...document.querySelectorAll('.scroll:has(.main, .judged, .epochs, .inline)')]"
        ".map((each) => [each.scrollWidth, each.clientWidth])"
    )
    assert room
    assert all(wide <= there for wide, there in room)
    assert visit.page.locator(".judged").count() > 0


@pages(*BOTH, looks=("phone",))
def test_on_a_phone_every_number_of_every_table_is_on_the_screen_with_what_it_is(
    visit: Visit,
) -> None:
    outside = visit.page.evaluate(
        "[...document.querySelectorAll('.stack td.number')].filter((each) => {"
        "const box = each.getBoundingClientRect();"
        "return !(box.width > 0 && box.left >= 0 && box.right <= innerWidth); }).length"
    )
    assert outside == 0
    unnamed = visit.page.evaluate(
        "[...document.querySelectorAll('.stack td.number')].filter((each) => "
        "!each.dataset.label && !each.querySelector('.label')).length"
    )
    assert unnamed == 0
    cards = [height for _, height in visit.boxes(".inline tbody tr")]
    assert max(cards) < 140  # no tall blanks
    assert len(visit.boxes("table.stack")) > len(visit.boxes("table:not(.stack)"))


@pages(*BOTH)
def test_every_chart_is_drawn(visit: Visit) -> None:
    open_ones = "figure svg[role=img]"
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    boxes = visit.boxes(open_ones)
    assert len(boxes) >= len(PANELS)
    assert min(min(box) for box in boxes) > 60
    for figure in (f"{open_ones} >> nth={i}" for i in (0, 2, len(boxes) - 1)):
        assert visit.pixels(figure).std() > 5


@pages(*BOTH)
def test_the_page_is_not_blank_and_has_the_look_that_was_asked_for(
    visit: Visit, request: pytest.FixtureRequest
) -> None:
    shot = Image.open(io.BytesIO(visit.page.screenshot(full_page=True))).convert("L")
    pixels = np.asarray(shot, dtype=float)
    assert pixels.std() > 10
    dark = "dark" in request.node.callspec.id
    assert np.median(pixels) < 60 if dark else np.median(pixels) > 200


@pages("report", looks=("light", "phone"))
def test_the_film_shows_the_frame_that_is_chosen_and_plays(visit: Visit) -> None:
    moved = "getComputedStyle(document.querySelector('.sheet')).transform"
    [(width, height)] = visit.boxes(".film .screen")
    assert width == pytest.approx(height, abs=1)
    last, end = visit.page.evaluate(moved), visit.pixels(".film .screen")
    visit.page.locator("#frame-0").check(force=True)
    first = visit.pixels(".film .screen")
    assert visit.page.evaluate(moved) != last
    assert np.abs(first - end).max() > 100
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("#frame-1").is_checked()
    visit.page.locator("label[for=film-play]").click()
    seen = set()
    for _ in range(12):
        seen.add(visit.page.evaluate(moved))
        visit.page.wait_for_timeout(60)
    assert len(seen) > 2


@pages(*BOTH, looks=("light", "phone"))
def test_a_definition_appears_under_the_pointer_the_focus_and_the_finger(
    visit: Visit, request: pytest.FixtureRequest
) -> None:
    assert visit.page.locator(".tiles .term:visible, .main .term:visible").count() > 3
    term = visit.page.locator("main .term:visible").first
    tip = term.locator(".tip")
    assert not tip.is_visible()
    if "phone" in request.node.callspec.id:
        term.tap()
    else:
        term.hover()
        assert tip.is_visible()
        visit.page.mouse.move(0, 0)
        assert not tip.is_visible()
        term.focus()
    assert tip.is_visible()
    box, window = tip.bounding_box(), visit.page.viewport_size
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= window["width"]
    assert box["y"] + box["height"] <= window["height"]


@pages("report", looks=("dark",))
def test_print_is_dark_on_light_without_controls(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    shot = visit.pixels("main")
    assert np.median(shot) > 200
    assert not visit.page.locator(".film").is_visible()
    assert max(height for _, height in visit.boxes("figure svg[role=img]")) > 60
