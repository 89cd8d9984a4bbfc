"""The review server without a browser: who may come in, what is served, what is refused, what is exported."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from review_takes import PROMPTS, make_takes

pytest.importorskip("starlette.testclient", reason="needs httpx")
from starlette.testclient import TestClient

from reelign.errors import DataError
from reelign.review.app import build_app
from reelign.review.database import LabelStore
from reelign.review.settings import ReviewSettings
from reelign.selection.labels import check_labels
from reelign.selection.takes import TakesFolder
from reelign.web.access import Access

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
BASE = "http://127.0.0.1:8800"
ORIGIN = {"origin": BASE}
CALL = ORIGIN | {"x-reelign": "1"}
TOKEN = "a-token-of-some-length"
PAGES = ("/", "/compare", "/rate", "/browse", "/agreement", "/sign-in", "/nothing-here")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_takes(tmp_path_factory.mktemp("review") / "takes", frames=8).path


@pytest.fixture
def takes(made: Path, tmp_path: Path) -> TakesFolder:
    shutil.copytree(made, tmp_path / "takes")
    return TakesFolder(tmp_path / "takes")


@pytest.fixture
def store(takes: TakesFolder) -> Iterator[LabelStore]:
    opened = LabelStore.open(takes.path / "labels.sqlite")
    yield opened
    opened.close()


def client_of(takes: TakesFolder, store: LabelStore, access: Access | None = None, **settings: Any) -> Any:
    app = build_app(takes, store, ReviewSettings(**{"repeats": 0, **settings}), access)
    return TestClient(app, base_url=BASE, follow_redirects=False)


@pytest.fixture
def client(takes: TakesFolder, store: LabelStore) -> Any:
    opened = client_of(takes, store)
    assert opened.post("/name", data={"name": "ann"}, headers=ORIGIN).status_code == 303
    return opened


def ask(client: Any, task: str = "pair", n: int = 1) -> list[dict[str, Any]]:
    reply = client.post("/api/questions", json={"task": task, "n": n}, headers=CALL)
    assert reply.status_code == 200, reply.text
    return reply.json()["questions"]


def answer(client: Any, asked: str, choice: str = "left", **changes: Any) -> Any:
    body = {"submission": str(uuid.uuid4()), "question": asked, "task": "pair", "choices": {"overall": choice}}
    return client.post("/api/answers", json=body | changes, headers=CALL)


# ---- who may come in


@pytest.mark.parametrize("page", PAGES)
def test_pages_load_nothing_from_elsewhere_and_nothing_inline(client, page):
    reply = client.get(page, headers={"accept": "text/html"})
    assert reply.status_code == (404 if page == "/nothing-here" else 200)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=\"/static/)", reply.text)
    assert not re.search(r"(src|href|action)=\"(https?:)?//", reply.text)
    assert "<script>document" not in reply.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8800", "127.0.0.1.evil.example", "", "[::1", "a@b@c"])
def test_other_host_names_are_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1:8800", "localhost:8800", "LOCALHOST", "[::1]:8800", "192.168.1.5"])
def test_our_host_names_are_not(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_host_name_can_be_allowed(takes, store):
    client = client_of(takes, store, Access(hosts=("review.example",)))
    assert client.get("/health", headers={"host": "Review.Example:443"}).status_code == 200
    assert client.get("/health", headers={"host": "other.example"}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-reelign": "1"}, ORIGIN, CALL | {"origin": "https://evil.example"}, CALL | {"origin": "null"}],
    ids=["nothing", "no origin", "no header", "other origin", "null"],
)
def test_forged_posts_are_refused(client, headers):
    assert client.post("/api/questions", json={"task": "pair"}, headers=headers).status_code == 403
    if headers != ORIGIN:  # a form of our own page cannot send the header
        assert client.post("/name", data={"name": "eve"}, headers=headers).status_code == 403


def test_other_methods_and_large_bodies_are_refused(client):
    assert client.request("DELETE", "/api/answers").status_code == 405
    assert client.request("PUT", "/media/x").status_code == 405
    assert client.post("/name", content=b"name=" + b"x" * 70_000, headers=ORIGIN).status_code == 413
    assert client.post("/api/answers", content=b"{", headers=CALL).status_code == 422


def test_beyond_this_machine_everybody_signs_in(takes, store):
    client = client_of(takes, store, Access(TOKEN))
    take = takes.takes()["take"][0]
    for path in (*PAGES[:5], f"/media/{take}", f"/poster/{take}", "/export/labels.csv"):
        assert client.get(path).status_code == 401, path
    assert client.post("/api/questions", json={"task": "pair"}, headers=CALL).status_code == 401
    assert client.post("/name", data={"name": "eve"}, headers=ORIGIN).status_code == 401
    reply = client.get("/compare", headers={"accept": "text/html"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/sign-in?next=/compare")
    assert client.get("/static/style.css").status_code == 200

    wrong = client.post("/sign-in", data={"token": TOKEN + "x"}, headers=ORIGIN)
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    assert client.get("/", headers={"cookie": f"reelign_session={TOKEN}"}).status_code == 401
    right = client.post("/sign-in", data={"token": TOKEN, "next": "/browse"}, headers=ORIGIN)
    assert (right.status_code, right.headers["location"]) == (303, "/browse")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/browse").status_code == 200


@pytest.mark.parametrize(
    "goal", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_signing_in_leads_to_this_server_only(takes, store, goal):
    client = client_of(takes, store, Access(TOKEN))
    for path, data in (("/sign-in", {"token": TOKEN}), ("/name", {"name": "ann"})):
        reply = client.post(path, data=data | {"next": goal}, headers=ORIGIN)
        assert reply.headers["location"] == "/"


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\u202eb", "a\x00b"])
def test_names_that_cannot_be_read_are_refused(client, name):
    reply = client.post("/name", data={"name": name}, headers=ORIGIN)
    assert reply.status_code == 422
    assert "visible letters" in reply.text


def test_a_name_may_be_in_any_language(client, store):
    client.post("/name", data={"name": "  Łucja  <b> 王 "}, headers=ORIGIN)
    answer(client, ask(client)[0]["id"])
    assert store.labels()["annotator"].tolist() == ["Łucja <b> 王"]
    assert "Łucja &lt;b&gt; 王" in client.get("/agreement").text


def test_without_a_name_nobody_labels(takes, store):
    client = client_of(takes, store)
    assert "Who is labelling?" in client.get("/compare").text
    assert client.post("/api/questions", json={"task": "pair"}, headers=CALL).status_code == 401


# ---- clips


def test_clips_by_range(client, takes):
    row = takes.takes().iloc[0]
    data = takes.locate(row["file"]).read_bytes()
    whole = client.get(f"/media/{row['take']}")
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    part = client.get(f"/media/{row['take']}", headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert client.get(f"/media/{row['take']}", headers={"range": "bytes=-10"}).content == data[-10:]
    beyond = client.get(f"/media/{row['take']}", headers={"range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


@pytest.mark.parametrize(
    "name",
    [
        "../labels.sqlite", "..%2flabels.sqlite", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "clips/0/0.mp4", "0" * 64,
        "A" * 64, "labels.sqlite", "%00", "x" * 5000,
    ],
)  # fmt: skip
def test_no_other_file_is_served(client, name):
    for place in ("media", "poster", "static", "take"):
        reply = client.get(f"/{place}/{name}")
        assert reply.status_code in (404, 422), (place, reply.status_code)
        assert b"SQLite format" not in reply.content


def test_a_link_that_nobody_imported_is_not_served(client, takes, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (takes.path / "clips" / "link.mp4").symlink_to(secret)
    assert client.get(f"/media/{hashlib.sha256(b'secret').hexdigest()}").status_code == 404


def test_a_file_that_changed_is_another_take(client, takes):
    row, other = takes.takes().iloc[0], takes.takes().iloc[1]
    takes.locate(row["file"]).write_bytes(takes.locate(other["file"]).read_bytes())
    reply = client.get(f"/media/{row['take']}")
    assert (reply.status_code, "changed after it was imported" in reply.text) == (422, True)
    assert "changed after it was imported" in client.get(f"/take/{row['take']}").text
    takes.locate(row["file"]).unlink()
    assert "is not there" in client.get(f"/media/{row['take']}").text


def add(takes: TakesFolder, *files: Path, group: str = "odd") -> list[str]:
    """Import files; their takes."""
    rows = [(hashlib.sha256(f.read_bytes()).hexdigest(), str(f), "", group, "", None) for f in files]
    takes.append_takes(pd.DataFrame(rows, columns=["take", "file", "prompt", "group", "generator", "seed"]))
    return [row[0] for row in rows]


def test_a_format_that_browsers_do_not_play_is_converted(takes, store):
    import av

    from reelign.video_io import read_clip, write_gif

    clip = read_clip(takes.locate(takes.takes()["file"][1]))
    write_gif(takes.path / "clips" / "a.gif", clip.video, 8)
    (gif,) = add(takes, takes.path / "clips" / "a.gif")
    client = client_of(takes, store)
    reply = client.get(f"/media/{gif}")
    assert reply.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(reply.content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert client.get(f"/media/{gif}", headers={"range": "bytes=0-9"}).status_code == 206
    assert client.get(f"/poster/{gif}").headers["content-type"] == "image/jpeg"
    assert "Converted so that a browser can play it" in client.get(f"/take/{gif}").text


def test_hostile_clips_say_why_or_play(takes, store):
    hostile = SHARED / "clips" / "hostile"
    if not hostile.is_dir():
        pytest.skip(f"test data are not here: {hostile}")
    files = sorted(path for path in hostile.iterdir() if path.is_file())
    names = add(takes, *files)
    client = client_of(takes, store)
    played = {}
    for file, take in zip(files, names, strict=True):
        reply = client.get(f"/media/{take}")
        played[file.name] = reply.status_code
        page = client.get(f"/take/{take}")
        assert page.status_code == 200
        assert ("cannot be played" in page.text) == (reply.status_code == 422), file.name
        if reply.status_code == 422:
            reason = reply.json()["detail"]
            assert reason
            assert "\n" not in reason
            assert str(SHARED) not in reason, "a reason does not tell where files are"
    assert set(played.values()) == {200, 422}, played
    assert sum(code == 200 for code in played.values()) >= len(files) // 2, played


# ---- questions and answers


def test_a_question_tells_nothing_about_its_purpose(takes, store):
    client = client_of(takes, store, checks=0.5)
    client.post("/name", data={"name": "ann"}, headers=ORIGIN)
    given = ask(client, n=12)
    purposes = {q.purpose for q in store.asked("ann", "pair")}
    assert purposes == {"label", "check"}
    assert {tuple(sorted(question)) for question in given} == {("group", "id", "left", "prompt", "right")}
    sides = [question[side] for question in given for side in ("left", "right")]
    assert {tuple(sorted(side)) for side in sides} == {("fps", "frames", "height", "note", "problem", "src", "width")}
    assert len({(s["fps"], s["frames"], s["height"], s["note"], s["problem"], s["width"]) for s in sides}) == 1
    for side in sides:
        reply = client.get(side["src"], headers={"range": "bytes=0-3"})
        assert (reply.status_code, reply.headers["content-type"]) == (206, "video/mp4")
    headers = [sorted(client.get(s["src"]).headers) for s in sides]
    assert all(h == headers[0] for h in headers)


def test_answers_are_checked(client):
    question = ask(client)[0]["id"]
    for changes in (
        {"choices": {"overall": "middle"}}, {"choices": {}}, {"choices": {"overall": "left", "more": "left"}},
        {"submission": "1"}, {"question": "x" * 36}, {"seconds": -1}, {"seconds": "NaN"}, {"extra": 1},
        {"choices": {"overall": 1}},
    ):  # fmt: skip
        assert answer(client, question, **changes).status_code == 422, changes
    assert answer(client, str(uuid.uuid4())).status_code == 404
    assert answer(client, question, task="rate", choices={"overall": "3"}).status_code == 404
    assert client.post("/api/questions", json={"task": "pair", "n": 10_000}, headers=CALL).status_code == 422


def test_sent_twice_stored_once_and_undone_once(client, store):
    question = ask(client)[0]["id"]
    submission = str(uuid.uuid4())
    replies = [answer(client, question, submission=submission) for _ in range(3)]
    assert [r.status_code for r in replies] == [200] * 3
    assert {r.json()["progress"]["answered"] for r in replies} == {1}
    assert answer(client, question).status_code == 409
    body = {"submission": str(uuid.uuid4()), "retracts": submission, "task": "pair"}
    for _ in range(2):
        reply = client.post("/api/retractions", json=body, headers=CALL)
        assert (reply.status_code, reply.json()["progress"]["answered"]) == (200, 0)
    assert store.labels().empty
    assert ask(client)[0]["id"] == question


def test_two_people_do_not_share_questions(takes, store):
    clients = [client_of(takes, store) for _ in range(2)]
    for client, name in zip(clients, ("ann", "bob"), strict=True):
        client.post("/name", data={"name": name}, headers=ORIGIN)
    mine, theirs = (ask(client)[0]["id"] for client in clients)
    assert mine != theirs
    assert answer(clients[1], mine).status_code == 404


# ---- browsing, takes, exports


def titles(reply: Any) -> list[str]:
    return re.findall(r'href="/take/([0-9a-f]{64})"', reply.text)


def test_browsing_filters_and_sorts(client, takes):
    table = takes.wide()
    assert titles(client.get("/browse")) == table["take"].tolist()
    found = titles(client.get("/browse", params={"sort": "motion", "descending": "1"}))
    scored = table.dropna(subset="motion").sort_values("motion", ascending=False)
    assert found[:9] == scored["take"].tolist()
    assert len(found) == 12  # without a value: last, whichever direction
    found = titles(client.get("/browse", params={"metric": "motion", "low": "10", "high": "12"}))
    assert found == table[table["motion"].between(10, 12)]["take"].tolist() != []
    assert (
        titles(client.get("/browse", params={"group": "group 2"}))
        == table[table["group"] == "group 2"]["take"].tolist()
    )
    assert titles(client.get("/browse", params={"text": "RED SQUARE"})) == table["take"][:4].tolist()
    assert titles(client.get("/browse", params={"text": "<script>"})) == table["take"][4:8].tolist()
    assert titles(client.get("/browse", params={"text": ".*"})) == []
    for wrong in ({"sort": "nothing"}, {"metric": "no"}, {"low": "x"}, {"low": "nan"}, {"page": "1e400"}):
        reply = client.get("/browse", params=wrong)
        assert (reply.status_code, "That did not work" in reply.text) == (422, True), wrong


def test_thousands_of_takes_come_by_pages(takes, store):
    rows = [(f"{i:064x}", f"clips/{i}.mp4", f"prompt {i % 50}", f"g{i % 50}", "alpha", i) for i in range(3000)]
    takes.append_takes(pd.DataFrame(rows, columns=["take", "file", "prompt", "group", "generator", "seed"]))
    client = client_of(takes, store)
    seen, address = [], "/browse?sort=seed"
    for _ in range(3):
        reply = client.get(address)
        seen += titles(reply)
        address = re.search(r'rel="next" href="([^"]+)"', reply.text)[1].replace("&amp;", "&")
    assert len(set(seen)) == 3 * 24
    assert "3012 takes" in client.get("/browse").text
    assert titles(client.get("/browse?page=9999")) == []


def test_a_take_shows_its_scores_and_reasons(client, takes):
    table = takes.takes()
    first = client.get(f"/take/{table['take'][0]}").text
    assert "undefined" in first
    assert "it has no motion to speak of" in first
    page = client.get(f"/take/{table['take'][4]}").text
    assert "&lt;script&gt;document.title" in page
    assert f"/take/{table['take'][5]}" in page


def test_a_folder_that_grows_is_seen(client, takes, monkeypatch):
    monkeypatch.setattr("reelign.review.library.LOOK_S", 0)
    assert "12 takes" in client.get("/browse").text
    add(takes, takes.locate(takes.takes()["file"][0]), group="new")
    assert len(titles(client.get("/browse", params={"group": "new"}))) == 1


def label(client: Any, store: LabelStore, choices: dict[str, str]) -> None:
    """Answer until every pair has been asked; the choice by the group's name, or a tie."""
    while questions := ask(client):
        shown = questions[0]
        answer(client, shown["id"], choices.get(shown["group"], "tie"))


def test_exports(takes, store):
    client = client_of(takes, store, goal=0)
    client.post("/name", data={"name": "=cmd()"}, headers=ORIGIN)
    label(client, store, {"group 0": "left", "group 1": "right", "group 2": "both_bad"})
    labels = pd.read_parquet(io.BytesIO(client.get("/export/labels.parquet").content))
    assert len(labels) == 18
    assert check_labels(labels, takes.takes()).equals(store.labels())
    assert set(labels.loc[labels["group"] == "group 1", "choice"]) == {"right"}
    csv = client.get("/export/labels.csv")
    assert "attachment" in csv.headers["content-disposition"]
    read = pd.read_csv(io.StringIO(csv.text))
    assert set(read["annotator"]) == {"'=cmd()"}  # a spreadsheet must not run it
    lines = [json.loads(line) for line in client.get("/export/preferences.jsonl").text.splitlines()]
    assert len(lines) == 12  # both bad decides nothing
    file_of = dict(zip(takes.takes()["take"], takes.takes()["file"], strict=True))
    chosen = {(file_of[r.left], file_of[r.right]) for r in labels.itertuples() if r.choice == "left"}
    chosen |= {(file_of[r.right], file_of[r.left]) for r in labels.itertuples() if r.choice == "right"}
    assert {(line["chosen"], line["rejected"]) for line in lines} == chosen
    assert {line["prompt"] for line in lines} == set(PROMPTS[:2])
    assert all((line["votes_for"], line["votes_against"], line["axis"]) == (1, 0, "overall") for line in lines)
    assert client.get("/export/ratings.csv").text.startswith("group,take,rating")
    for wrong in ("secrets.csv", "labels.exe", "labels.xlsx"):
        assert client.get(f"/export/{wrong}").status_code == 422


def test_a_majority_decides_preferences(takes, store):
    """Three people on one pair: two for one take, one for the other, whichever side it was on."""
    from reelign.review.database import Question
    from reelign.review.export import export_table
    from reelign.review.library import Library

    first, second = takes.takes()["take"][:2]
    for who, left, right, choice in (
        ("a", first, second, "left"), ("b", second, first, "right"), ("c", first, second, "right"),
        ("d", first, second, "tie"),
    ):  # fmt: skip
        question = store.ask([Question(who, "pair", "group 0", left, right)])[0]
        store.answer(str(uuid.uuid4()), question.id, who, {"overall": choice})
    found = export_table("preferences", store.answers(), Library(takes).shelf())
    (row,) = found.to_dict("records")
    assert (row["chosen"], row["rejected"]) == ("clips/0/0.mp4", "clips/0/1.mp4")
    assert (row["votes_for"], row["votes_against"], row["votes"]) == (2, 1, 4)


def test_a_review_needs_takes(tmp_path, store):
    with pytest.raises(DataError, match="has none"):
        build_app(TakesFolder(tmp_path / "empty", create=True), store)
