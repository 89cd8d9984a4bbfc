"""The stream page in a real browser: frames appear, prompts change, stop, save, close and reopen, a phone, no mouse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from stream_model import BLUE, RED
from web_server import ARGUMENTS, CHROMIUM, CONTRAST, FOCUSED, PHONE, ThreadServer, until

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from playwright.sync_api import sync_playwright

from reelign.stream.clips import ClipShelf
from reelign.stream.loading import load_streamer
from reelign.stream.server import build_app
from reelign.stream.session import StreamOptions
from reelign.stream.studio import StreamSettings, Studio
from reelign.video_io import read_clip
from reelign.web.access import Access

HOSTILE = ("<img src=x>", "<b onload=alert(1)>")  # short enough for the model

PIXELS = """() => {
  const canvas = document.getElementById("picture");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0, spread = 0;
  for (let i = 0; i < data.length; i += 4) sum += data[i] + 2 * data[i + 1] + 4 * data[i + 2];
  for (let i = 4; i < data.length; i += 4) spread += Math.abs(data[i] - data[i - 4]);
  return [sum, spread];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    generator = load_streamer("zoo:tiny-causal-wan")
    settings = StreamSettings("zoo:tiny-causal-wan", StreamOptions(steps=2, guidance_scale=1))
    made = Studio(generator, settings, ClipShelf(tmp_path_factory.mktemp("clips")))
    yield made
    made.close()


@pytest.fixture
def server(studio: Studio) -> Iterator[ThreadServer]:
    started = ThreadServer(build_app(studio)).start()
    yield started
    started.stop()


@pytest.fixture
def open_page(browser: Any, server: ThreadServer) -> Iterator[Callable[..., Any]]:
    """Opens the page in a browser of its own; fails the test where the page logs an error."""
    contexts, errors = [], []

    def make(**options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        return visit(context, server, errors)

    yield make
    for context in contexts:
        context.close()
    assert not errors


def visit(context: Any, server: ThreadServer, errors: list[str]) -> Any:
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(server.url)
    page.wait_for_selector("#go:not([disabled])")
    return page


def start(page: Any, prompt: str = RED, frames: int = 3) -> None:
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    until(lambda: shown(page) >= frames, f"{frames} frames", 60)


def shown(page: Any) -> int:
    """Index of the frame on the screen."""
    text = page.inner_text("#shown")
    return int(text.split()[1].rstrip(",")) if text.startswith("Frame") else -1


def stop(page: Any) -> str:
    page.click("#stop")
    until(lambda: page.inner_text("#status").startswith("Stopped"), "stopped")
    return page.inner_text("#status")


def history(page: Any) -> list[str]:
    return [text.replace("\n", " ") for text in page.locator("#history li").all_inner_texts()]


def look(page: Any, name: str) -> None:
    """Keep a picture of the page where somebody wants to see it."""
    if folder := os.environ.get("REELIGN_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"stream_{name}.png"))


def test_streaming_changing_stopping_saving(open_page, tmp_path):
    page = open_page()
    assert page.inner_text("#status") == "Ready"
    assert page.is_disabled("#stop")
    assert page.is_disabled("#save")
    look(page, "idle")
    start(page, RED)
    assert page.inner_text("#go") == "Change prompt"
    pictures = [page.evaluate(PIXELS)]
    for _ in range(3):
        before = shown(page)
        until(lambda before=before: shown(page) > before, "the next frame")
        pictures.append(page.evaluate(PIXELS))
    assert all(spread > 1000 for _, spread in pictures), "the picture is not of one colour"
    assert len({total for total, _ in pictures}) > 1, "the picture moves"
    assert page.inner_text("#first").endswith(" s")
    assert float(page.inner_text("#speed").split()[0]) > 0
    assert page.get_attribute("#picture", "aria-label") == f"Video of: {RED}"

    page.fill("#prompt", BLUE)
    page.click("#go")
    until(lambda: len(history(page)) == 2, "the second prompt")
    until(lambda: page.get_attribute("#picture", "aria-label") == f"Video of: {BLUE}", "the second prompt is seen")
    second = page.locator("#history li").nth(1)
    frame = int(second.locator(".when").inner_text().split()[1])
    assert frame % 4 == 1
    assert shown(page) >= frame
    assert second.get_attribute("aria-current") == "true"
    look(page, "running")

    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "first.mp4")
    until(lambda: page.inner_text("#status").startswith("Saved"), "saved")
    status = stop(page)
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "second.mp4")
    first, second = (read_clip(tmp_path / f"{name}.mp4") for name in ("first", "second"))
    assert download.value.suggested_filename == "reelign-stream.mp4"
    assert len(second.video) == int(status.split()[1]) == shown(page) + 1
    assert frame < len(first.video) <= len(second.video)
    assert first.fps == 8
    look(page, "stopped")

    start(page, RED)  # and again
    assert history(page) == [f"frame 0 {RED}"]
    stop(page)


def test_closing_and_opening_again(browser, server):
    errors: list[str] = []
    context = browser.new_context()
    page = visit(context, server, errors)
    start(page, RED, 9)
    page.close()
    again = visit(context, server, errors)
    until(lambda: "of the last stream can be saved" in again.inner_text("#status"), "it says what is left")
    assert history(again) == [f"frame 0 {RED}"]
    with again.expect_download():
        again.click("#save")
    start(again, BLUE)
    assert history(again) == [f"frame 0 {BLUE}"]
    stop(again)
    context.close()
    assert not errors


def test_two_pages(open_page):
    first, second = open_page(), open_page()
    start(first)
    second.fill("#prompt", BLUE)
    second.click("#go")
    until(lambda: second.inner_text("#queue") == "1 before you", "the position")
    assert second.inner_text("#stop") == "Leave the queue"
    look(second, "waiting")
    second.click("#stop")
    until(lambda: second.inner_text("#status") == "Stopped", "left")
    second.click("#go")
    until(lambda: second.inner_text("#queue") == "1 before you", "the position again")
    first.close()
    until(lambda: shown(second) >= 3, "its turn", 60)
    stop(second)


def test_what_is_refused_says_why(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    page.fill("#prompt", "   ")
    page.click("#go")
    until(lambda: "needs a prompt" in page.inner_text("#error"), "the reason")
    assert page.inner_text("#go") == "Start"
    page.fill("#prompt", "red " * 40)
    page.click("#go")
    until(lambda: "tokens" in page.inner_text("#error"), "the reason")
    look(page, "refused")
    start(page, RED)
    assert not page.is_visible("#error")
    page.fill("#prompt", " ")
    page.click("#go")
    until(lambda: "needs a prompt" in page.inner_text("#error"), "the reason")
    before = shown(page)
    until(lambda: shown(page) > before, "the stream goes on")
    stop(page)


def test_a_prompt_is_text(open_page):
    page = open_page()
    start(page, HOSTILE[0])
    page.fill("#prompt", HOSTILE[1])
    page.click("#go")
    until(lambda: len(history(page)) == 2, "the second prompt")
    assert page.locator("#history li span:last-child").all_inner_texts() == list(HOSTILE)
    assert page.locator("main img, main b").count() == 0
    stop(page)


def test_the_server_goes_and_comes_back(browser, server):
    context = browser.new_context()
    try:
        page = visit(context, server, [])
        start(page)
        server.stop()
        until(lambda: "Connection lost" in page.inner_text("#status"), "it says so")
        assert page.is_disabled("#go")
        look(page, "lost")
        server.start()
        until(lambda: "Connected again" in page.inner_text("#status"), "it comes back", 60)
        start(page, BLUE)
        stop(page)
    finally:
        context.close()


def test_signing_in(browser, studio):
    token = "t" * 20 + "+/ %"
    server = ThreadServer(build_app(studio, Access(token))).start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(server.url)
        assert "/sign-in?next=/" in page.url
        page.goto(f"{server.url}/sign-in#{quote(token)}")
        page.wait_for_url(f"{server.url}/")
        start(page)
        context.clear_cookies()
        page.reload()
        assert "/sign-in" in page.url
    finally:
        context.close()
        server.stop()


def test_without_a_mouse(open_page):
    page = open_page()
    names, outlines = [], []
    for _ in range(12):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        if outline is None:
            break
        names.append(" ".join(name.split()))
        outlines.append(outline)
    assert names[:5] == ["Skip to content", "reelign stream", "prompt", "Start", "Settings"]
    assert set(outlines) == {"solid"}
    for role, name in (("textbox", "Prompt"), ("button", "Start"), ("button", "Stop"), ("img", "No picture yet")):
        assert page.get_by_role(role, name=name).count() == 1
    assert page.get_by_role("status").count() == 1
    page.focus("#prompt")
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#prompt") == "one line\n"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(open_page, scheme):
    """Contrast of at least 4.5 : 1 between every text and what is behind it (WCAG 2.1, 1.4.3)."""
    page = open_page(color_scheme=scheme)
    page.click("summary")
    start(page)
    look(page, scheme)
    low = [found for found in page.evaluate(CONTRAST) if found[0] < 4.5]
    assert not low
    stop(page)


def test_on_a_phone(open_page):
    page = open_page(**PHONE, color_scheme="dark")
    page.fill("#prompt", RED)
    page.tap("#go")
    until(lambda: shown(page) >= 3, "frames", 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    sizes = page.eval_on_selector_all(
        "main button, summary, textarea", "all => all.map(e => [e.offsetWidth, e.offsetHeight])"
    )
    assert all(min(size) >= 40 for size in sizes), sizes
    assert page.evaluate("scrollY") == 0, "what happens to the stream does not scroll the page"
    picture, form = (page.locator(place).bounding_box() for place in ("#picture", "#ask"))
    assert picture["y"] + picture["height"] <= form["y"]
    assert page.evaluate("getComputedStyle(document.getElementById('picture')).imageRendering") == "pixelated"
    look(page, "phone")
    page.tap("#stop")
    until(lambda: page.inner_text("#status").startswith("Stopped"), "stopped")
