"""The review page in a real browser: labelling by keyboard, undo, two people while the server is killed, a phone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from review_takes import PROMPTS, make_takes
from web_server import ARGUMENTS, CHROMIUM, CONTRAST, FOCUSED, PHONE, Server, until

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from playwright.sync_api import sync_playwright

from reelign.review.database import LabelStore


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_takes(tmp_path_factory.mktemp("review") / "takes").path


@pytest.fixture(scope="module")
def server(takes: Path) -> Iterator[Server]:
    started = Server("review", (str(takes), "--axes", "overall,motion", "--repeats", "0")).start()
    yield started
    started.stop()


def sign(page: Any, server: Server, name: str, task: str = "compare") -> Any:
    """Open a task page and say who is there."""
    page.goto(f"{server.url}/{task}")
    page.fill("#name", name)
    page.click("text=Continue")
    page.wait_for_selector("#task:not([hidden])")
    return page


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Opens a page in a browser of its own (own cookies); fails the test where the page logs an error."""
    contexts, errors = [], []

    def make(name: str = "", task: str = "compare", **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        return sign(page, server, name, task) if name else page

    yield make
    for context in contexts:
        context.close()
    assert not errors


def stored(takes: Path, annotator: str) -> Any:
    """Standing answers of somebody, straight from the database."""
    store = LabelStore.open(takes / "labels.sqlite")
    answers = store.answers()
    store.close()
    return answers[answers["annotator"] == annotator]


def answered(page: Any) -> int:
    return int(page.inner_text("#count").split(" of ")[0].replace("–", "-1"))


def saved(page: Any, count: int) -> None:
    until(lambda: answered(page) == count and page.inner_text("#status") in ("All saved", ""), f"{count} saved")


def sources(page: Any) -> list[str]:
    """Takes on the screen, left first; empty while the next question loads."""
    # In one evaluation: a locator asks twice, and between the two the page may take the last pair away.
    return page.evaluate(
        """document.querySelector("#task").hidden ? [] :
        [...document.querySelectorAll(".frame video[src]")].map(v => v.getAttribute("src").split("/")[2])"""
    )


def test_labelling_by_keyboard(open_page, takes):
    page = open_page("ann")
    shown = []
    for keys in (("ArrowLeft", "2"), ("t", "b"), ("ArrowRight", "1")):
        shown.append(sources(page))
        for key in keys:
            page.keyboard.press(key)
        until(lambda: sources(page) not in ([], shown[-1]), "the next pair")
    saved(page, 3)
    answers = stored(takes, "ann")
    assert answers[["axis", "choice"]].to_records(index=False).tolist() == [
        ("overall", "left"), ("motion", "right"), ("overall", "tie"), ("motion", "both_bad"), ("overall", "right"),
        ("motion", "left"),
    ]  # fmt: skip
    assert answers[["left", "right"]].drop_duplicates().to_numpy().tolist() == shown
    assert (answers["seconds"] > 0).all()

    # Undo: half an answer, then a whole one, which comes back to be answered anew.
    page.keyboard.press("1")
    page.keyboard.press("z")
    assert page.locator(".axis button[aria-pressed=true]").count() == 0
    page.keyboard.press("z")
    until(lambda: sources(page) == shown[2], "the undone pair")
    saved(page, 2)
    assert len(stored(takes, "ann")) == 4
    page.keyboard.press("t")
    page.keyboard.press("t")
    saved(page, 3)
    assert stored(takes, "ann")["choice"].tolist()[4:] == ["tie", "tie"]

    # A reload shows the same pair again, and what was not finished is not stored.
    before = sources(page)
    page.keyboard.press("1")
    page.reload()
    page.wait_for_selector("#task:not([hidden])")
    assert sources(page) == before
    assert len(stored(takes, "ann")) == 6


def test_both_clips_play_together(open_page):
    page = open_page("clock")
    times = "all => all.map(v => v.currentTime)"
    playing = "all => all.every(v => !v.paused && v.readyState >= 3)"
    until(lambda: page.eval_on_selector_all(".frame video", playing), "both play")
    drifts = []
    for _ in range(40):
        first, second = page.eval_on_selector_all(".frame video", times)
        drifts.append(abs(first - second))
        time.sleep(0.05)
    drifts.sort()
    assert drifts[-4] < 1 / 8, f"a frame lasts 0.125 s; drifts of {drifts[-5:]}"
    page.keyboard.press(" ")
    assert page.inner_text("#play") == "Play"
    paused = "all => all.every(v => v.paused)"
    until(lambda: page.eval_on_selector_all(".frame video", paused), "both pause")
    page.keyboard.press(".")
    steps = [until(lambda: page.eval_on_selector_all(".frame video", times), "times")]
    for _ in range(3):
        page.keyboard.press(".")
        time.sleep(0.3)
        steps.append(page.eval_on_selector_all(".frame video", times))
    frames = [[int(t * 8) for t in pair] for pair in steps]
    assert all(a == b for a, b in frames), frames
    page.select_option("#rate", "0.5")
    assert page.eval_on_selector_all(".frame video", "all => all.map(v => v.playbackRate)") == [0.5, 0.5]


class Person:
    """Somebody labelling in a browser of their own, who notes every answer that the server acknowledged."""

    def __init__(self, browser: Any, server: Server, name: str) -> None:
        self.name, self.server, self.given = name, server, 0
        self.acknowledged: list[str] = []
        self.context = browser.new_context()
        self.page = self._watched()
        sign(self.page, server, name)

    def open(self) -> None:
        """The task page again, in a new tab."""
        self.page = self._watched()
        self.page.goto(f"{self.server.url}/compare")

    def label(self) -> None:
        """Choose, where a pair is on the screen."""
        if shown := sources(self.page):
            self.page.keyboard.press("ArrowLeft")
            until(lambda: sources(self.page) != shown, "the pair goes")
            self.given += 1

    def wait(self, text: str) -> None:
        until(lambda: text in self.page.inner_text("#status"), text)

    def _watched(self) -> Any:
        page = self.context.new_page()
        page.on("response", self._note)
        return page

    def _note(self, response: Any) -> None:
        if response.url.endswith("/api/answers") and response.status == 200:
            self.acknowledged.append(response.request.post_data_json["submission"])


def test_two_people_while_the_server_is_killed(browser, tmp_path):
    """The server dies by SIGKILL twice while both label, and one of them closes the page in between.

    Every acknowledged answer is in the database, none is there twice, and those made meanwhile arrive by themselves.
    """
    takes = make_takes(tmp_path / "takes", per_group=5, frames=8).path
    server = Server("review", (str(takes), "--goal", "0", "--repeats", "0")).start()
    people = [Person(browser, server, name) for name in ("ann", "bob")]
    try:
        for round_ in range(2):
            label(people, 4)
            for person in people:
                until(lambda person=person: sources(person.page), "a pair on the screen")
            server.kill()
            for person in people:  # pairs that were loaded can still be answered
                person.label()
                person.label()
            for person in people:
                person.wait("kept here")
            if round_:
                people[1].page.close()
            server.start()
            if round_:
                people[1].open()
            for person in people:
                saved(person.page, person.given)
        for person in people:
            answers = stored(takes, person.name)
            assert set(person.acknowledged) <= set(answers["submission"]), "an acknowledged answer is lost"
            assert answers["submission"].is_unique, "an answer is stored twice"
            assert answers["question"].is_unique
            assert len(answers) == person.given == answered(person.page) >= 8
    finally:
        for person in people:
            person.context.close()
        server.stop()


def label(people: list[Person], times: int) -> None:
    for _ in range(times):
        for person in people:
            until(lambda person=person: sources(person.page), "a pair on the screen")
            person.label()


def test_signing_in_and_out_of_a_shared_review(browser, takes):
    """The printed address signs in and forgets the token; answers made while signed out are kept and sent later."""
    token = "t" * 20 + "+/ %"
    server = Server("review", (str(takes), "--token", token, "--repeats", "0")).start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{server.url}/compare")
        assert "/sign-in?next=/compare" in page.url
        page.goto(f"{server.url}/sign-in#{quote(token)}")
        page.wait_for_url(f"{server.url}/")
        sign(page, server, "guest")
        before = stored(takes, "guest")
        context.clear_cookies(name="reelign_session")
        page.keyboard.press("1")
        until(lambda: "kept here; sign in again" in page.inner_text("#status"), "signed out")
        page.click("#sign-in a")
        page.fill("#token", token)
        page.click("main button")
        page.wait_for_url(f"{server.url}/compare")
        saved(page, 1)
        assert (len(before), len(stored(takes, "guest"))) == (0, 1)
    finally:
        context.close()
        server.stop()


def test_a_prompt_is_text(open_page):
    page = open_page("eve")
    seen = set()
    for _ in range(6):
        seen.add(page.inner_text("#prompt"))
        before = sources(page)
        page.keyboard.press("1")
        page.keyboard.press("1")
        until(lambda before=before: sources(page) not in ([], before), "the next pair")
    assert PROMPTS[1] in seen
    page.goto(page.url.replace("/compare", "/browse"))
    assert page.locator(".tile").count() == 12
    page.click(f"text={PROMPTS[1]} >> nth=0")
    assert page.inner_text("h1") == PROMPTS[1]
    assert page.title() != "owned"


def test_rating(open_page, takes):
    page = open_page("rater", "rate")
    assert page.locator(".frame video").count() == 1
    page.keyboard.press("4")
    page.click(".axis[data-axis=motion] button >> nth=1")
    saved(page, 1)
    assert stored(takes, "rater")[["task", "choice", "right"]].to_numpy().tolist() == [
        ["rate", "4", ""],
        ["rate", "2", ""],
    ]


def test_without_a_mouse(open_page):
    """Every control is reached by Tab, in the order of reading, shows its focus, and has a name."""
    page = open_page("tab")
    page.keyboard.press(" ")
    names, outlines = [], []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        if outline is None:
            break
        names.append(name)
        outlines.append(outline)
    text = " | ".join(name.replace("\n", " ") for name in names)
    order = ["Skip to content", "Compare", "Rate", "Browse", "Agreement", "Prompt", "Left", "Right", "Tie", "Both bad"]
    places = [text.index(name) for name in order]
    assert places == sorted(places), text
    assert {"One frame back", "One frame forward"} <= set(names)
    assert set(outlines) == {"solid"}
    assert all(names)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    for role, name in (("button", "Left"), ("button", "Undo"), ("status", None), ("progressbar", "Your progress")):
        assert page.get_by_role(role, name=name).first.is_visible() or role == "status"
    assert page.get_by_role("group", name="Which is better overall?").count() == 1


def test_letter_keys_can_be_turned_off(open_page):
    page = open_page("still")
    before = sources(page)
    page.keyboard.press("?")
    page.click("#shortcuts")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.keyboard.press("t")
    time.sleep(0.3)
    assert sources(page) == before
    assert page.locator(".axis button[aria-pressed=true]").count() == 0


def test_on_a_phone(open_page):
    page = open_page("thumb", **PHONE)
    for path in ("/compare", "/rate", "/", "/browse", "/agreement"):
        page.goto(re.sub(r"(:\d+).*", rf"\g<1>{path}", page.url))
        if path in ("/compare", "/rate"):
            page.wait_for_selector("#task:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        sizes = page.eval_on_selector_all(
            "main button:not([disabled]), nav a, main .button",
            "all => all.filter(e => e.offsetParent).map(e => [e.offsetWidth, e.offsetHeight])",
        )
        assert all(min(size) >= 40 for size in sizes), (path, sizes)
    page.goto(re.sub(r"(:\d+).*", r"\g<1>/compare", page.url))
    page.wait_for_selector(".frame video >> nth=1")
    left, right = (page.locator("figure").nth(i).bounding_box() for i in range(2))
    assert right["y"] >= left["y"] + left["height"]
    page.tap(".axis[data-axis=overall] button >> nth=0")
    assert page.locator(".axis button[aria-pressed=true]").count() == 1


def test_reduced_motion_waits_for_the_viewer(open_page):
    page = open_page("calm", reduced_motion="reduce")
    time.sleep(0.5)
    assert page.eval_on_selector_all(".frame video", "all => all.every(v => v.paused && v.currentTime === 0)")
    page.click("#play")
    until(lambda: page.eval_on_selector_all(".frame video", "all => all.every(v => v.currentTime > 0)"), "playing")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(open_page, scheme):
    """Contrast of at least 4.5 : 1 between every text and what is behind it (WCAG 2.1, 1.4.3)."""
    page = open_page(f"eye {scheme}", color_scheme=scheme)
    for path in ("/compare", "/", "/browse", "/agreement"):
        page.goto(re.sub(r"(:\d+).*", rf"\g<1>{path}", page.url))
        page.wait_for_selector("#task:not([hidden])" if path == "/compare" else "h1")
        low = [found for found in page.evaluate(CONTRAST) if found[0] < 4.5]
        assert not low, (path, low)
