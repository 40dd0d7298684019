"""The page in Debian's Chromium: what a person does with it, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from pictures import jpeg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: the page is not tested")

FLAGS = ("--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
         "--no-first-run --disable-quic --autoplay-policy=no-user-gesture-required").split()  # fmt: skip
QUERY = "a red square moves to the right"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """``visit(site, path, width=1280, height=800, dark=False)``: a page; at the end it must have had no error."""
    problems: list[str] = []
    contexts: list[Any] = []

    def opened(
        site: Any, path: str = "/", width: int = 1280, height: int = 800, dark: bool = False, script: str = ""
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of slow machines
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: _is_foreign(request.url, site) and problems.append(f"left: {request.url}"))
        page.goto(site.address + path)
        page.wait_for_selector("header.bar")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _is_foreign(url: str, site: Any) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("blob", "data") and parts.netloc != f"127.0.0.1:{site.port}"


def until(page: Any, condition: str, arg: Any = None, seconds: float = 60.0) -> None:
    """Wait until a JavaScript condition holds; Playwright's own way needs `eval`, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition, arg):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def cards(page: Any) -> Any:
    return page.locator(".card:not(.ghost)")


def wait_for_time(page: Any, low: float, high: float) -> None:
    until(
        page,
        "([low, high]) => { const v = document.querySelector('video'); return v && v.readyState > 1 && !v.seeking"
        " && v.currentTime >= low && v.currentTime <= high; }",
        arg=[low, high],
    )


def test_search_open_play_and_timeline(visit: Any, site: Any) -> None:
    page = visit(site)
    page.fill("#query", "green square")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card .score")
    assert "q=green" in page.url
    hit = next(row for row in site.search(filters={"name": "long"}, limit=9)["hits"] if round(row["start"]) == 8)
    page.goto(f"{site.address}/?q=green+square&segment={hit['segment']}")
    wait_for_time(page, 7.8, 16.5)
    page.wait_for_selector(".timeline rect.bar-now")
    assert page.locator(".timeline rect").count() >= 4
    box = page.locator(".timeline").bounding_box()
    page.evaluate("document.querySelector('video').pause()")
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 20)
    wait_for_time(page, 21.0, 24.0)
    page.keyboard.press("Escape")
    page.wait_for_selector(".viewer", state="detached")
    assert "segment" not in page.url
    page.go_back()
    page.wait_for_selector(".viewer")


def test_a_query_typed_as_soon_as_the_box_is_there_is_kept(visit: Any, site: Any) -> None:
    """The text is typed before the first paint, thus before any effect that the page runs after it."""
    script = """new MutationObserver((_, observer) => {
      const box = document.getElementById("query");
      if (!box) return;
      observer.disconnect();
      box.value = "green square";
      box.dispatchEvent(new Event("input", { bubbles: true }));
    }).observe(document, { childList: true, subtree: true });"""
    page = visit(site, script=script)
    page.wait_for_selector(".card")
    page.wait_for_timeout(300)
    assert page.input_value("#query") == "green square"
    page.press("#query", "Enter")
    page.wait_for_selector(".card .score")
    assert "q=green+square" in page.url


def test_keyboard_alone_is_enough(visit: Any, site: Any) -> None:
    page = visit(site, "/?view=runs")
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'query'")
    page.keyboard.type("blue circle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card .score")
    page.locator(".card-open").first.focus()
    page.keyboard.press("ArrowRight")
    until(page, "[...document.querySelectorAll('.card-open')].indexOf(document.activeElement) === 1")
    page.keyboard.press("x")
    page.wait_for_selector(".selection")
    page.keyboard.press("Enter")
    page.wait_for_selector(".viewer")
    first = page.url
    page.keyboard.press("j")
    until(page, "first => location.href !== first", arg=first)
    page.keyboard.press("Escape")
    page.wait_for_selector(".viewer", state="detached")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")


def test_filters_paging_and_more_like_this(visit: Any, site: Any) -> None:
    page = visit(site, f"/?q={QUERY.replace(' ', '+')}&folder=trips")
    page.wait_for_selector(".card")
    until(page, "document.querySelectorAll('.card:not(.ghost)').length === 4")
    assert {text.split(" · ")[0] for text in page.locator(".where").all_inner_texts()} == {"trips"}
    page.get_by_role("button", name="Clear filters").click()
    until(page, "document.querySelectorAll('.card:not(.ghost)').length > 20")
    page.locator("label", has_text="File name contains").locator("input").fill("nothing has this name")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Nothing fits these filters")
    segment = site.hit("long.mp4")["segment"]
    page.goto(f"{site.address}/?like={segment}")
    page.wait_for_selector(".card .score")
    assert page.locator(".card .name").first.inner_text() == "long.mp4"


def test_no_good_match_is_stated(visit: Any, site: Any) -> None:
    page = visit(site, "/?q=an+old+man+plays+the+violin")
    page.wait_for_selector("text=No good match")
    assert cards(page).count() > 5
    assert page.locator(".words").count() == 0


def test_a_picture_is_dropped_in(visit: Any, site: Any, tmp_path: Path) -> None:
    picture = tmp_path / "still.jpg"
    picture.write_bytes(site.ask("GET", f"/api/thumbnails/{site.hit('long.mp4')['segment']}").body)
    page = visit(site)
    page.set_input_files("input[type=file]", str(picture))
    page.wait_for_selector("text=Like still.jpg")
    page.wait_for_selector(".card .score")
    assert page.locator(".card").count() > 1


def test_a_question_is_asked_and_answered(visit: Any, site: Any) -> None:
    page = visit(site, f"/?segment={site.hit('long.mp4')['segment']}")
    page.fill("#question", "a square is")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("text=at least two possible answers")
    page.locator(".options input").fill("red, green, blue")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".answer strong")
    assert page.locator(".frame img").count() >= 2
    page.locator(".frame").nth(1).click()


def test_a_segment_is_cut_out(visit: Any, site: Any, tmp_path: Path) -> None:
    page = visit(site, f"/?q=red&segment={site.hit('long.mp4')['segment']}")
    page.get_by_role("button", name="Cut out…").click()
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save the file").click()
    download.value.save_as(tmp_path / "clips.zip")
    with zipfile.ZipFile(tmp_path / "clips.zip") as bundle:
        assert len(bundle.namelist()) == 1
    page.keyboard.press("Escape")
    page.locator(".pick input").first.check(force=True)
    page.get_by_role("button", name="Export…").click()
    page.get_by_role("radio", name="CSV").check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    assert download.value.suggested_filename == "segments.csv"


@pytest.mark.parametrize("name", ["boat.mkv", "cliff.mp4"])
def test_what_browsers_cannot_play_is_converted(visit: Any, site: Any, name: str) -> None:
    page = visit(site, f"/?segment={site.hit(name)['segment']}")
    page.wait_for_selector(".screen video, .screen img")
    until(page, "(document.querySelector('video') || {}).readyState >= 2")
    assert "/proxy" in page.get_attribute("video", "src")
    assert page.evaluate("document.querySelector('video').videoWidth") == 128


def test_a_name_with_markup_is_inert(visit: Any, site: Any) -> None:
    page = visit(site, f"/?segment={site.hit('script>.mp4')['segment']}")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.wait_for_selector("text=<script>alert(1)<")
    assert page.locator(".viewer h2").inner_text() == "script>.mp4"


def test_runs_are_drawn_and_compared(visit: Any, site: Any, run_folder: Path) -> None:
    page = visit(site, "/?view=runs")
    page.get_by_role("link", name="pretrain").click()
    page.wait_for_selector(".curve canvas")
    page.get_by_role("button", name="Compare").click()
    until(page, "document.querySelectorAll('.run').length === 2")
    assert "compare=" in page.url
    label = page.locator(".curve").first.get_attribute("aria-label")
    with (run_folder / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 81, "loss": 0.125, "lr": 1e-3}) + "\n")
    until(page, "old => document.querySelector('.curve').getAttribute('aria-label') !== old", arg=label)


def test_first_visit_to_first_search(visit: Any, serve: Any, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "trips", tmp_path / "films" / "trips")
    with serve(tmp_path / "index", tmp_path / "films", roots=(tmp_path / "films",)) as site:
        page = visit(site)
        page.wait_for_selector("text=Find moments in your videos")
        page.locator(".folder", has_text="films").click()
        page.locator(".folder", has_text="trips").click()
        page.get_by_role("button", name=re.compile("Index “trips”")).click()
        until(page, "document.querySelectorAll('.card:not(.ghost)').length === 4")
        page.goto(f"{site.address}/?view=index")
        page.wait_for_selector("text=The last scan is done: 4 files added")
        page.get_by_role("button", name=re.compile("Scan .* again")).click()
        page.close()


def test_a_picture_is_shown_without_a_player(visit: Any, serve: Any, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "trips", tmp_path / "films" / "trips")
    photo = np.full((90, 60, 3), 90, np.uint8)
    photo[30:50, 20:40] = (220, 40, 40)
    (tmp_path / "films" / "trips" / "photo.jpg").write_bytes(jpeg(photo, 1))
    with serve(tmp_path / "index", tmp_path / "films", roots=(tmp_path / "films",)) as site:
        page = visit(site)
        page.locator(".folder", has_text="films").click()
        page.locator(".folder", has_text="trips").click()
        page.get_by_label("Index still pictures too").check()
        page.get_by_role("button", name=re.compile("Index “trips”")).click()
        until(page, "document.querySelectorAll('.card:not(.ghost)').length === 5")
        card = page.locator(".card", has_text="photo.jpg")
        assert card.locator(".times").inner_text() == "picture"
        card.locator(".card-open").click()
        page.wait_for_selector("text=/60.90, jpeg/")
        until(page, "document.querySelector('.screen img').naturalHeight === 90")
        assert page.locator(".viewer video, .viewer .timeline, .viewer input[type=number]").count() == 0
        page.keyboard.press("[")
        page.fill("#question", "a square is")
        page.locator(".options input").fill("red, green, blue")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector(".answer strong")
        assert page.locator(".frame").count() == 0
        page.get_by_role("button", name="More like this").click()
        page.wait_for_selector(".card .score")
        page.close()


def test_the_sample_clips_are_searched_soon(visit: Any, serve: Any, tmp_path: Path) -> None:
    from evilm.demo import clips

    with serve(tmp_path / "index", tmp_path, samples=clips.folder()) as site:
        page = visit(site)
        page.get_by_role("button", name="Try the sample clips").click()
        page.wait_for_selector(".card:not(.ghost)")
        page.fill("#query", "a moving object")
        page.press("#query", "Enter")
        page.wait_for_selector(".card .score")
        scan = site.wait_for_scan()
        assert (scan["state"], scan["added"], scan["unreadable"]) == ("done", 33, 0)
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(360, 740), (2560, 1440)], ids=["phone", "wide"])
def test_every_view_fits_and_axe_finds_nothing_serious(
    visit: Any, site: Any, size: tuple[int, int], dark: bool
) -> None:
    axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(site, "/", *size, dark)
    hit = site.hit("long.mp4")
    for path in (
        f"/?q=red+square&segment={hit['segment']}&folder=",
        "/?q=red+square&min=1",
        "/?view=index",
        "/?view=runs",
    ):
        page.goto(site.address + path)
        page.wait_for_selector("h1, h2")
        page.wait_for_timeout(600)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0], f"{path} is {width} pixels wide"
        found = axe_playwright.Axe().run(page).response["violations"]
        serious = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found
                   if one["impact"] in ("serious", "critical")]  # fmt: skip
        assert serious == [], path


def test_the_page_is_small() -> None:
    static = Path(__file__).resolve().parents[2] / "src" / "evilm" / "server" / "static"
    assert sum(path.stat().st_size for path in static.rglob("*") if path.suffix != ".txt") < 300_000
