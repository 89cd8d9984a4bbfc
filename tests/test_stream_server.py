"""The stream server without a browser: streams, the line, stopping, what is refused, pages that go, clips."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from stream_model import BLUE, RED, not_streamed, small_generator

pytest.importorskip("starlette.testclient", reason="needs httpx")
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from reelign.stream.clips import ClipShelf
from reelign.stream.messages import unpack_frame
from reelign.stream.server import build_app
from reelign.stream.session import StreamOptions
from reelign.stream.studio import StreamSettings, Studio
from reelign.video_io import read_clip
from reelign.web.access import Access

BASE, SOCKET = "http://127.0.0.1:8801", "ws://127.0.0.1:8801/stream"
ORIGIN = {"origin": BASE}
CALL = ORIGIN | {"x-reelign": "1"}
TOKEN = "a-token-of-some-length"
OPTIONS = StreamOptions(steps=2, guidance_scale=1, seed=7)


@pytest.fixture(scope="module")
def generator(random_wan_folder):
    return small_generator(random_wan_folder, fps=200.0)


@pytest.fixture
def studio(generator, tmp_path):
    made = studio_of(generator, tmp_path)
    yield made
    made.close()


def studio_of(generator: Any, folder: Path, **settings: Any) -> Studio:
    return Studio(generator, StreamSettings("a model", OPTIONS, **settings), ClipShelf(folder))


@pytest.fixture
def client(studio) -> Iterator[Any]:
    with client_of(studio) as opened:
        yield opened


@contextlib.contextmanager
def client_of(studio: Studio, access: Access | None = None) -> Iterator[Any]:
    """A client on one event loop; its pages are closed at the end, or the loop would wait for them."""
    with TestClient(build_app(studio, access), base_url=BASE, follow_redirects=False) as client:
        client.pages = []
        try:
            yield client
        finally:
            for page in client.pages:
                page.close()


class Page:
    """What the script of a page does: it takes frames, and says which it has seen."""

    def __init__(self, client: Any, **headers: str) -> None:
        self.socket = client.websocket_connect(SOCKET, headers=ORIGIN | headers)
        self.socket.__enter__()
        client.pages.append(self)
        self.open = True
        self.frames: list[tuple[int, int, float, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.hello = self.hear("hello")

    def start(self, prompt: str = RED, **options: Any) -> Page:
        self.say(type="start", prompt=prompt, options=options)
        return self

    def say(self, **message: Any) -> None:
        self.socket.send_text(json.dumps(message))

    def hear(self, kind: str, see: bool = True) -> dict[str, Any]:
        """The next message of a kind; frames and others before it are kept."""
        while True:
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"])
            if message.get("text") is None:
                self.frames.append(unpack_frame(message["bytes"]))
                if see:
                    self.say(type="seen", index=self.frames[-1][0])
                continue
            self.said.append(json.loads(message["text"]))
            if self.said[-1]["type"] == kind:
                return self.said[-1]

    def watch(self, frames: int) -> None:
        """Until there are so many frames."""
        while len(self.frames) < frames:
            self.hear("numbers")

    def close(self) -> None:
        if self.open:
            self.socket.__exit__(None, None, None)
        self.open = False


@pytest.fixture
def page(client) -> Page:
    return Page(client)


def pixels(frame: tuple[int, int, float, Any]) -> torch.Tensor:
    """A frame as it was sent, [3,H,W] in [0,1]."""
    picture = frame[3]
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(picture.height, picture.width, 3).permute(2, 0, 1) / 255


def coarse(frame: torch.Tensor) -> torch.Tensor:
    """Brightness [8,8], which a lossy clip keeps even of noise."""
    return torch.nn.functional.avg_pool2d(frame.mean(0, keepdim=True), 4)[0]


def until(found: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def post(client: Any, path: str, stream: str) -> Any:
    return client.post(path, json={"stream": stream}, headers=CALL)


# ---- a stream


def test_frames_are_those_of_the_model(page, client, generator):
    assert page.hello == {
        "type": "hello", "model": "a model", "fps": 200.0, "height": 32, "width": 32, "steps": 2, "guidance_scale": 1,
        "seed": 7, "longest_s": 600,
    }  # fmt: skip
    started = page.start().hear("started")
    page.watch(29)
    page.say(type="stop")
    ended = page.hear("ended")
    assert (ended["reason"], ended["frames"]) == ("stopped", len(page.frames))
    assert [frame[0] for frame in page.frames] == list(range(len(page.frames)))
    assert [frame[1] for frame in page.frames[:9]] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    seconds = [frame[2] for frame in page.frames]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    wanted = not_streamed(generator, 8)
    for shown, frame in zip(page.frames, wanted, strict=False):
        assert (pixels(shown) - frame).abs().mean() < 0.03
        assert (pixels(shown) - wanted.flip(3)[shown[0]]).abs().mean() > 0.06
    numbers = [said for said in page.said if said["type"] == "numbers"]
    assert numbers[-1]["first_frame_s"] == pytest.approx(seconds[0], abs=2e-3)
    assert numbers[-1]["seconds"] == pytest.approx(numbers[-1]["frames"] / 200)
    assert numbers[-1]["frames_per_s"] > 0
    saved = post(client, "/api/save", started["stream"]).json()
    assert saved["frames"] == len(page.frames)


def test_a_new_prompt(page, client):
    stream = page.start(BLUE, seed=1).hear("started")
    assert (stream["prompt"], stream["seed"]) == (BLUE, 1)
    assert page.hear("prompt")["frame"] == 0
    page.watch(9)
    page.say(type="change", prompt="  a   green triangle ")
    said = page.hear("prompt")
    assert said["prompt"] == "a green triangle"
    assert said["frame"] % 4 == 1
    page.watch(said["frame"] + 8)
    facts = post(client, "/api/clip", stream["stream"]).json()
    assert facts["prompts"] == [{"prompt": BLUE, "frame": 0}, {"prompt": "a green triangle", "frame": said["frame"]}]
    assert not facts["ended"]


def test_the_end_of_a_stream(generator, tmp_path):
    studio = studio_of(generator, tmp_path, longest_s=0.1)
    with client_of(studio) as client:
        page = Page(client).start()
        ended = page.hear("ended")
        assert (ended["reason"], ended["frames"]) == ("limit", 21)
        page.start().hear("started")
        page.close()
    studio.close()


# ---- waiting, stopping


def test_one_stream_at_a_time(client, studio):
    first, second, third = Page(client), Page(client), Page(client)
    first.start().hear("started")
    assert second.start().hear("waiting")["before"] == 1
    assert third.start().hear("waiting")["before"] == 2
    third.say(type="change", prompt=BLUE)
    assert "has not begun" in third.hear("refused")["detail"]
    second.say(type="stop")  # leaves the line
    assert second.hear("ended") == {"type": "ended", "reason": "stopped", "detail": "", "frames": 0}
    assert third.hear("waiting")["before"] == 1
    second.start()
    assert second.hear("waiting")["before"] == 2
    first.say(type="stop")
    assert first.hear("ended")["reason"] == "stopped"
    third.hear("started")
    assert second.hear("waiting")["before"] == 1
    third.watch(1)
    third.close()  # a page that goes frees its place
    second.hear("started")
    second.watch(5)
    for page in (first, second):
        page.close()
    until(lambda: not studio.line._tickets, "the line is empty")
    assert not studio.generator.network.training


def test_a_page_that_goes_while_it_waits(client, studio):
    first, second, third = Page(client), Page(client), Page(client)
    first.start().hear("started")
    second.start().hear("waiting")
    third.start().hear("waiting")
    second.close()
    assert third.hear("waiting")["before"] == 1
    first.close()
    third.hear("started")
    third.close()


def test_the_line_has_an_end(client, studio):
    studio.line.longest = 1
    pages = [Page(client) for _ in range(3)]
    pages[0].start().hear("started")
    pages[1].start().hear("waiting")
    assert "at most 1 streams wait" in pages[2].start().hear("refused")["detail"]
    pages[0].close()
    pages[1].hear("started")
    pages[2].start().hear("waiting")
    for page in pages[1:]:
        page.close()


def test_stopping_within_a_block(page, generator, monkeypatch):
    """The network is not asked again, though the block wants two more passes."""
    made, inside, on = [], threading.Event(), threading.Event()

    def slowed(call: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            made.append(1)
            if len(made) == 6:  # the second step of the second block
                inside.set()
                assert on.wait(60)
            return call(*arguments)

        return slow

    for name in ("advance", "advance_after"):
        monkeypatch.setattr(generator, name, slowed(getattr(generator, name)))
    page.start(steps=4).hear("started")
    assert inside.wait(60)
    page.say(type="stop")
    time.sleep(0.2)
    on.set()
    page.hear("ended")
    assert len(made) == 6
    monkeypatch.undo()
    page.start().hear("started")
    page.watch(5)


# ---- what is refused


BAD = {
    "": "message:", "{": "message:", "[]": "message:", "null": "message:", '{"type": "dance"}': "message:",
    '{"type": "start"}': "prompt: Field required", '{"type": "start", "prompt": 3}': "prompt:",
    '{"type": "start", "prompt": ""}': "needs a prompt", '{"type": "start", "prompt": " \\n "}': "needs a prompt",
    '{"type": "start", "prompt": "a", "colour": 1}': "no option",
    '{"type": "start", "prompt": "a", "options": {"sped": 1}}': "no option",
    '{"type": "start", "prompt": "a", "options": {"steps": 0}}': "steps: Input should be greater",
    '{"type": "start", "prompt": "a", "options": {"seed": -1}}': "seed:",
    '{"type": "start", "prompt": "a", "options": {"guidance_scale": NaN}}': "",
    '{"type": "stop"}': "no stream is running", '{"type": "change", "prompt": "a"}': "no stream is running",
    '{"type": "seen", "index": -1}': "index:", '{"type": "seen", "index": "x"}': "index:",
}  # fmt: skip


def test_bad_messages_are_refused_and_a_good_one_works(page):
    for text, why in BAD.items():
        page.socket.send_text(text)
        detail = page.hear("refused")["detail"]
        assert why in detail, (text, detail)
        assert "\n" not in detail
        assert len(detail) < 300
    page.socket.send_bytes(b"\x00\x01")
    assert "text" in page.hear("refused")["detail"]
    page.say(type="start", prompt="a" * 5000)
    assert len(page.hear("refused")["detail"]) < 300
    page.start().hear("started")
    page.say(type="start", prompt=RED)
    assert "one page has one stream" in page.hear("refused")["detail"]
    page.say(type="change", prompt="")
    assert "needs a prompt" in page.hear("refused")["detail"]
    page.watch(9)


def test_a_prompt_too_long_for_the_model(page, client):
    """It is refused by the model's tokens, at the start and in the middle, and stands in nobody's way."""
    long = "red " * 30
    ended = page.start(long).hear("ended")
    assert (ended["reason"], ended["frames"]) == ("failed", 0)
    assert "at most 12 tokens" in ended["detail"]
    other = Page(client).start()
    other.hear("started")
    other.say(type="change", prompt=long)
    assert "at most 12 tokens" in other.hear("refused")["detail"]
    other.watch(len(other.frames) + 8)
    other.close()
    page.start().hear("started")


def test_a_page_that_is_none_of_ours_is_shut_out(client):
    page = Page(client)
    for _ in range(50):
        page.socket.send_text("?")
    with pytest.raises(WebSocketDisconnect) as closed:
        page.hear("nothing")
    assert closed.value.code == 1008
    Page(client).start().hear("started")


# ---- what goes wrong


@pytest.mark.parametrize(
    ("error", "detail"),
    [(RuntimeError("CUDA out of memory.\nTried to …"), "CUDA out of memory."), (KeyError("x"), "made a mistake")],
)
def test_a_failure_ends_one_stream(page, generator, monkeypatch, error, detail):
    decode = generator.decode_next

    def failing(x: Any, memory: Any = None) -> Any:
        if len(page.frames) >= 5:
            raise error
        return decode(x, memory)

    monkeypatch.setattr(generator, "decode_next", failing)
    page.start().hear("started")
    ended = page.hear("ended")
    assert ended["reason"] == "failed"
    assert detail in ended["detail"]
    assert ended["frames"] == len(page.frames) >= 5
    monkeypatch.undo()
    page.start().hear("started")
    page.watch(len(page.frames) + 5)


def test_a_slow_page_makes_the_generator_wait(client, studio, generator, monkeypatch):
    made, decode = [], generator.decode_next
    monkeypatch.setattr(generator, "decode_next", lambda *a: made.append(1) or decode(*a))
    page = Page(client).start()
    for seen, parts in ((None, 2), (0, 3), (3, 3), (4, 4), (10**9, 6)):  # a part is made if 4 or fewer are unseen
        if seen is not None:
            page.say(type="seen", index=seen)
        while len([said for said in page.said if said["type"] == "numbers"]) < parts:
            page.hear("numbers", see=False)
        time.sleep(0.3)
        assert len(made) == parts
    page.close()


def test_a_page_that_takes_nothing_loses_its_place(generator, tmp_path):
    studio = studio_of(generator, tmp_path, patience_s=0.1)
    with client_of(studio) as client:
        asleep, awake = Page(client), Page(client)
        asleep.start().hear("started")
        awake.start().hear("started")
        ended = asleep.hear("ended", see=False)
        assert (ended["reason"], ended["frames"]) == ("nobody watches", 5)
        asleep.close()
        awake.close()
    studio.close()


# ---- who may come in


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "https://evil.example"}, {"origin": "null"}, ORIGIN | {"host": "evil.example"}]
)
def test_other_pages_open_no_socket(client, headers):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers):
        pass


def test_beyond_this_machine_everybody_signs_in(studio):
    with client_of(studio, Access(TOKEN, cookie="reelign_stream_session")) as client:
        with pytest.raises(WebSocketDisconnect):
            Page(client)
        assert client.get("/").status_code == 401
        assert post(client, "/api/save", "x").status_code == 401
        with pytest.raises(WebSocketDisconnect):
            Page(client, cookie=f"reelign_stream_session={TOKEN}")
        assert client.post("/sign-in", data={"token": TOKEN}, headers=ORIGIN).status_code == 303
        assert list(client.cookies) == ["reelign_stream_session"]
        page = Page(client).start()
        page.hear("started")
        page.close()


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/sign-in", "/nothing-here"):
        reply = client.get(path, headers={"accept": "text/html"})
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "http" not in reply.text.replace("http-equiv", "")
    assert "a model" in client.get("/").text
    for name in ("base.css", "stream.css", "stream.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


def test_the_models_name_is_text(generator, tmp_path):
    studio = Studio(generator, StreamSettings("<script>alert(1)</script>"), ClipShelf(tmp_path))
    with client_of(studio) as client:
        assert "<script>alert" not in client.get("/").text
    studio.close()


# ---- clips


def test_saved_while_it_runs_and_after(page, client, tmp_path):
    stream = page.start().hear("started")["stream"]
    page.watch(9)
    first = post(client, "/api/save", stream).json()
    page.watch(25)
    page.say(type="stop")
    ended = page.hear("ended")
    second = post(client, "/api/save", stream).json()
    assert 9 <= first["frames"] < second["frames"] == ended["frames"] == len(page.frames)
    for saved in (first, second):
        reply = client.get(saved["url"])
        assert (reply.status_code, reply.headers["content-type"]) == (200, "video/mp4")
        assert 'filename="reelign-stream.mp4"' in reply.headers["content-disposition"]
        with av.open(io.BytesIO(reply.content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == saved["frames"]
        part = client.get(saved["url"], headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, reply.content[100:200])
    (tmp_path / "saved.mp4").write_bytes(client.get(second["url"]).content)
    clip = read_clip(tmp_path / "saved.mp4").video
    for index in (0, 12, len(clip) - 1):
        shown = coarse(pixels(page.frames[index]))
        away = [float((coarse(saved) - shown).abs().mean()) for saved in clip]
        assert away.index(min(away)) == index


def test_a_page_that_was_closed_is_opened_again(client):
    page = Page(client)
    stream = page.start().hear("started")["stream"]
    page.watch(13)
    page.close()
    again = Page(client)
    until(lambda: post(client, "/api/clip", stream).json()["ended"], "the stream ends with its page")
    facts = post(client, "/api/clip", stream).json()
    assert facts["frames"] >= 13
    assert post(client, "/api/save", stream).json()["frames"] == facts["frames"]
    again.start().hear("started")
    again.watch(5)
    again.close()


def test_what_cannot_be_saved(page, client):
    for name in ("", "nothing", "../etc/passwd", "x" * 100):
        reply = post(client, "/api/save", name)
        assert reply.status_code == 422, name
    for name in ("nothing.mp4", "..%2fx.mp4", "0" * 16 + "-1.mp4", "%00"):
        assert client.get(f"/clips/{name}").status_code == 404
    assert client.post("/api/save", json={"stream": "x"}, headers=ORIGIN).status_code == 403
