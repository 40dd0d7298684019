"""The page in Debian's Chromium: what a person does with it, by mouse and by keyboard."""

from __future__ import annotations

import json
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

QUERY = "a red square moves to the right"


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
    until(page, "(document.querySelector('video') || {}).readyState >= 2")
    paused = page.evaluate("document.querySelector('video').paused")
    page.keyboard.press(" ")
    until(page, "before => document.querySelector('video').paused !== before", arg=paused)
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
    assert page.locator(".words", has_text="violin").count() == 0


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
