"""The label store, on SQLite and on a real PostgreSQL: nothing lost, nothing twice, nothing changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from reelign.errors import ConfigError, DataError
from reelign.review.database import AlreadyAnsweredError, LabelStore, Question, UnknownQuestionError
from reelign.selection.labels import check_labels

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a fresh PostgreSQL of our own, reached by a socket in a folder."""
    if not all(shutil.which(name) for name in ("initdb", "pg_ctl")):
        pytest.skip("needs initdb and pg_ctl of PostgreSQL")
    pytest.importorskip("psycopg", reason="needs reelign[postgres]")
    place = Path(tempfile.mkdtemp(prefix="reelign-pg-"))
    who: dict[str, str] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        who = {"user": "nobody"}
        shutil.chown(place, "nobody")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)

    data = str(place / "data")
    try:
        run("initdb", "-D", data, "-U", "reelign", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-o", f"-k {place} -c listen_addresses=''", "-l", str(place / "log"), "start")
    except subprocess.CalledProcessError as error:
        shutil.rmtree(place, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error}")
    try:
        yield f"postgresql://reelign@/postgres?host={place}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where labels go: a file, or a database of their own in PostgreSQL."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.sqlite")
        return
    from sqlalchemy import create_engine

    url = request.getfixturevalue("postgresql")
    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.replace("/postgres?", f"/{name}?")
    engine.dispose()


@pytest.fixture
def store(place: str) -> Iterator[LabelStore]:
    opened = LabelStore.open(place)
    yield opened
    opened.close()


def one(store: LabelStore, annotator: str = "ann", left: str = A, right: str = B, **more: str) -> str:
    """A question put to somebody; its identity."""
    return store.ask([Question(annotator, "pair", "g", left, right, **more)])[0].id


def new() -> str:
    return str(uuid.uuid4())


def test_labels_are_the_table_that_every_reader_takes(store):
    first, second = one(store), one(store, "bob", B, C)
    store.answer(new(), first, "ann", {"overall": "left", "motion": "tie"}, 1.5)
    store.answer(new(), second, "bob", {"overall": "both_bad"})
    labels = store.labels()
    assert labels.to_dict("records") == [
        {"group": "g", "left": A, "right": B, "choice": "left", "axis": "overall", "annotator": "ann"},
        {"group": "g", "left": A, "right": B, "choice": "tie", "axis": "motion", "annotator": "ann"},
        {"group": "g", "left": B, "right": C, "choice": "both_bad", "axis": "overall", "annotator": "bob"},
    ]
    assert check_labels(labels).equals(labels)
    answers = store.answers()
    assert answers["seconds"].tolist()[:2] == [1.5, 1.5]
    assert answers["created_at"].str.endswith("+00:00").all()


def test_hidden_questions_are_no_labels(store):
    for purpose in ("repeat", "check"):
        store.answer(new(), one(store, purpose=purpose), "ann", {"overall": "left"})
    assert store.labels().empty
    assert len(store.answers()) == 2


def test_the_same_submission_is_stored_once(store):
    question, submission = one(store), new()
    assert store.answer(submission, question, "ann", {"overall": "left"})
    assert not store.answer(submission, question, "ann", {"overall": "left"})
    assert store.counts() == {"questions": 1, "answers": 1, "retractions": 0}


def test_a_question_has_one_standing_answer_until_it_is_undone(store):
    question, first, undo = one(store), new(), new()
    store.answer(first, question, "ann", {"overall": "left"})
    with pytest.raises(AlreadyAnsweredError, match="undo"):
        store.answer(new(), question, "ann", {"overall": "right"})
    assert store.open_questions("ann", "pair") == []
    assert store.retract(undo, first, "ann")
    assert not store.retract(undo, first, "ann")
    assert not store.retract(new(), first, "ann")
    assert store.labels().empty
    assert [q.id for q in store.open_questions("ann", "pair")] == [question]
    assert not store.answer(first, question, "ann", {"overall": "left"})  # a late retry does not revive it
    assert store.labels().empty
    store.answer(new(), question, "ann", {"overall": "right"})
    assert store.labels()["choice"].tolist() == ["right"]
    assert store.counts() == {"questions": 1, "answers": 2, "retractions": 1}


def test_only_ones_own(store):
    question, submission = one(store), new()
    for wrong in (("bob", "pair"), ("ann", "rate")):
        with pytest.raises(UnknownQuestionError):
            store.answer(new(), question, wrong[0], {"overall": "left"}, task=wrong[1])
    with pytest.raises(UnknownQuestionError):
        store.answer(new(), new(), "ann", {"overall": "left"})
    store.answer(submission, question, "ann", {"overall": "left"})
    with pytest.raises(UnknownQuestionError):
        store.retract(new(), submission, "bob")
    with pytest.raises(DataError, match="at least one axis"):
        store.answer(new(), question, "ann", {})


def test_questions_are_numbered_for_each_annotator_and_task(store):
    for _ in range(3):
        one(store)
    store.ask([Question("ann", "rate", "g", A), Question("ann", "rate", "g", B)])
    assert [q.number for q in store.asked("ann", "pair")] == [1, 2, 3]
    assert [q.number for q in store.asked("ann", "rate")] == [1, 2]
    assert store.asked("bob", "pair") == []
    assert store.ask([]) == []


@pytest.mark.parametrize("table", ["review_answers", "review_questions"])
@pytest.mark.parametrize("change", ["UPDATE {} SET annotator = 'eve'", "DELETE FROM {}"])
def test_nothing_is_changed_or_deleted(store, table, change):
    store.answer(new(), one(store), "ann", {"overall": "left"})
    with pytest.raises(DBAPIError, match="append-only"), store.engine.begin() as connection:
        connection.execute(text(change.format(table)))
    assert store.labels()["annotator"].tolist() == ["ann"]


def test_opening_again_keeps_everything(store, place):
    store.answer(new(), one(store), "ann", {"overall": "left"})
    again = LabelStore.open(place)
    assert again.labels().equals(store.labels())
    again.close()


def test_several_write_at_once(store, place):
    """Eight threads, two stores, four annotators: every answer is stored, once, though each is sent twice."""
    stores = [store, LabelStore.open(place)]

    def work(index: int) -> int:
        mine, who = stores[index % 2], f"annotator {index % 4}"
        stored = 0
        for _ in range(10):
            while not (asked := mine.ask([Question(who, "pair", "g", A, B)])):
                pass  # another window of the same annotator was faster
            submission = new()
            for _again in range(2):
                stored += mine.answer(submission, asked[0].id, who, {"overall": "left", "motion": "right"})
        return stored

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 80
    stores[1].close()
    assert store.counts() == {"questions": 80, "answers": 160, "retractions": 0}
    assert len(store.labels()) == 160  # the cache has noticed what the other store wrote


@pytest.mark.parametrize("same", [True, False], ids=["one submission", "two windows"])
def test_a_race_for_one_question_stores_one_answer(store, same):
    question, submission = one(store), new()
    start = threading.Barrier(6)

    def work(index: int) -> str:
        start.wait()
        try:
            stored = store.answer(submission if same else new(), question, "ann", {"overall": "left", "motion": "tie"})
        except AlreadyAnsweredError:
            return "refused"
        return "stored" if stored else "known"

    with ThreadPoolExecutor(6) as pool:
        said = sorted(pool.map(work, range(6)))
    assert said == (["known"] * 5 + ["stored"] if same else ["refused"] * 5 + ["stored"])
    assert len(store.labels()) == 2


WRITER = """
import sys, uuid
from reelign.review.database import LabelStore, Question
store = LabelStore.open(sys.argv[1])
while True:
    question = store.ask([Question("ann", "pair", "g", "a" * 64, "b" * 64)])[0]
    submission = str(uuid.uuid4())
    store.answer(submission, question.id, "ann", {"overall": "left", "motion": "right"})
    print(submission, flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(store, place):
    process = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True)
    acknowledged = [process.stdout.readline().strip() for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait()
    acknowledged = [line for line in acknowledged if len(line) == 36]
    found = store.answers().groupby("submission").size()
    assert len(acknowledged) >= 60
    assert set(acknowledged) <= set(found.index)
    assert len(found) <= len(acknowledged) + 1  # the one whose acknowledgement was cut off
    assert (found == 2).all()  # all axes of a submission, or none


def test_sqlite_waits_for_the_disk(tmp_path):
    store = LabelStore.open(tmp_path / "labels.sqlite")
    with store.engine.connect() as connection:
        modes = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]  # FULL
    store.close()


def test_a_path_with_odd_letters(tmp_path):
    store = LabelStore.open(tmp_path / "50% of # takes?" / "labels ä.sqlite")
    assert store.labels().empty
    store.close()
    assert (tmp_path / "50% of # takes?" / "labels ä.sqlite").exists()


def test_refusals_are_one_line_without_the_password(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "text.sqlite").write_text("this is not a database, but some text " * 50)
    places = {
        tmp_path / "file" / "labels.sqlite": "file",
        tmp_path / "text.sqlite": "not a database",
        "mysql://me:secret@host/name": "SQLite and PostgreSQL are supported",
        "postgresql://me:secret@127.0.0.1:1/name?connect_timeout=2": "127.0.0.1",
        "nonsense://": "nonsense",
    }
    for place, why in places.items():
        with pytest.raises(ConfigError, match=why) as caught:
            LabelStore.open(place)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_database_of_a_newer_reelign_is_left_alone(tmp_path):
    store = LabelStore.open(tmp_path / "labels.sqlite")
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE reelign_review_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(ConfigError, match="9999"):
        LabelStore.open(tmp_path / "labels.sqlite")
