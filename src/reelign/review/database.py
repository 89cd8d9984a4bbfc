"""Where labels live: SQLite beside the takes, or any PostgreSQL; append-only, several annotators at once.

An answer is acknowledged once its transaction is on disk (SQLite: WAL with synchronous=FULL; PostgreSQL: its default),
and carries an identity made by the browser: sending it again after a lost reply stores nothing and is acknowledged too.
So whatever was acknowledged survives a kill of the server, and nothing is stored twice.

Left out: file systems without locks (SQLite's WAL does not work over NFS; use PostgreSQL there).

Run: ``LabelStore.open(TAKES / "labels.sqlite").labels()``.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, literal, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import aliased

from reelign.errors import ConfigError, DataError
from reelign.review.tables import RETRACTED, AnswerRow, QuestionRow

BUSY_S = 20  # how long a writer waits for another
MIGRATION_LOCK = 7_265_656  # any number, the same for every reelign
ANSWER_COLUMNS = (
    "submission", "question", "number", "annotator", "task", "group", "left", "right", "purpose", "expected", "repeats",
    "axis", "choice", "seconds", "created_at",
)  # fmt: skip
LABEL_COLUMNS = ("group", "left", "right", "choice", "axis", "annotator")


class AlreadyAnsweredError(DataError):
    """The question has a standing answer from another submission."""


class UnknownQuestionError(DataError):
    """No such question was put to this annotator, or no such submission is theirs."""


@dataclass(frozen=True)
class Question:
    """One pair or take to show; fields as in ``tables.QuestionRow``."""

    annotator: str
    task: str
    group: str
    left: str
    right: str = ""
    purpose: str = "label"
    expected: str = ""
    repeats: str = ""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    number: int = 0


class LabelStore:
    """A label database; safe to use from several threads and processes.

    Args:
        engine: of SQLAlchemy; ``open`` makes one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cache: tuple[tuple[int, int], pd.DataFrame] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, place: str | Path) -> LabelStore:
        """Open, make or bring up to date.

        Args:
            place: a SQLite file, or a database URL (``postgresql+psycopg://user@host/name``).

        Raises:
            ConfigError: the URL is none, its driver is not installed, or the database cannot be reached or written.
        """
        try:
            engine = _engine(place)
            with _begin(engine, write=True) as connection:
                _migrate(connection)
        except (SQLAlchemyError, CommandError, ImportError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            shown = re.sub(r"//[^@/]*@", "//…@", str(place))  # never a password
            raise ConfigError(
                f"labels are kept in a database that can be written; {shown}: {reason}; see --database"
            ) from error
        return cls(engine)

    def close(self) -> None:
        """Give connections back."""
        self.engine.dispose()

    def ask(self, questions: Sequence[Question]) -> list[Question]:
        """Store questions of one annotator and task before they are shown; the stored ones come back, numbered.

        Where another window of the same annotator asks at the same moment, one of the two gets nothing back.
        """
        if not questions:
            return []
        first = questions[0]
        same = (QuestionRow.annotator == first.annotator) & (QuestionRow.task == first.task)
        try:
            with _begin(self.engine, write=True) as connection:
                last = connection.scalar(select(func.max(QuestionRow.number)).where(same)) or 0
                numbered = [_numbered(q, last + 1 + i) for i, q in enumerate(questions)]
                connection.execute(insert(QuestionRow), [{**vars(q), "created_at": _now()} for q in numbered])
        except IntegrityError:
            return []
        return numbered

    def asked(self, annotator: str, task: str) -> list[Question]:
        """Every question of this kind put to an annotator, in order."""
        query = select(*_question_columns()).where(QuestionRow.annotator == annotator, QuestionRow.task == task)
        with _begin(self.engine) as connection:
            rows = connection.execute(query.order_by(QuestionRow.number))
            return [Question(**row._asdict()) for row in rows]

    def open_questions(self, annotator: str, task: str) -> list[Question]:
        """Those of ``asked`` that have no standing answer."""
        answered = set(self._standing_questions(annotator))
        return [question for question in self.asked(annotator, task) if question.id not in answered]

    def answer(
        self,
        submission: str,
        question: str,
        annotator: str,
        choices: Mapping[str, str],
        seconds: float | None = None,
        task: str = "pair",
    ) -> bool:
        """Store one submission, all axes or none; durable when this returns.

        Args:
            submission: UUID made by the browser; the same one again is acknowledged and stores nothing.
            question: identity of the question.
            annotator: who answers; the question must have been put to them.
            choices: answer for each axis, at least one.
            seconds: how long the question was in sight.
            task: of the question.

        Returns:
            whether rows were added.

        Raises:
            UnknownQuestionError: no such question of this task for this annotator.
            AlreadyAnsweredError: another submission stands.
        """
        if not choices:
            raise DataError("a submission answers at least one axis; got none")
        with _begin(self.engine, write=True) as connection:
            _own_question(connection, question, annotator, task)
            if _holds(connection, submission):
                return False
            attempt, stands = _attempts(connection, question)
            if stands:
                raise AlreadyAnsweredError(f"a question has one standing answer; undo the answer to {question} first")
            row = {"submission": submission, "question": question, "annotator": annotator, "attempt": attempt}
            row |= {"seconds": seconds, "created_at": _now()}
            rows = [row | {"axis": axis, "choice": choice} for axis, choice in choices.items()]
            return self._insert(connection, rows, question)

    def retract(self, submission: str, retracts: str, annotator: str) -> bool:
        """Undo a submission of this annotator by adding a row; again is acknowledged and adds nothing.

        Raises:
            UnknownQuestionError: no such submission of this annotator.
        """
        with _begin(self.engine, write=True) as connection:
            query = select(AnswerRow.question, AnswerRow.attempt).where(
                AnswerRow.submission == retracts, AnswerRow.annotator == annotator, AnswerRow.retracts.is_(None)
            )
            found = connection.execute(query).first()
            if found is None:
                raise UnknownQuestionError(f"only one's own answers can be undone; {annotator} has none {retracts!r}")
            done = connection.scalar(select(AnswerRow.id).where(AnswerRow.retracts == retracts))
            if done is not None:
                return False
            row = {"submission": submission, "question": found.question, "annotator": annotator, "axis": ""}
            row |= {"choice": RETRACTED, "attempt": found.attempt, "retracts": retracts, "created_at": _now()}
            return self._insert(connection, [row], found.question)

    def answered(self, annotator: str, task: str) -> int:
        """How many label questions of this kind have a standing answer of this annotator."""
        labels = (QuestionRow.annotator == annotator) & (QuestionRow.task == task) & (QuestionRow.purpose == "label")
        query = select(func.count(AnswerRow.question.distinct())).join(QuestionRow).where(labels, *_stands())
        with _begin(self.engine) as connection:
            return connection.scalar(query) or 0

    def answers(self) -> pd.DataFrame:
        """Every standing answer with its question, in the order stored: ``ANSWER_COLUMNS``. Cached until rows come."""
        with _begin(self.engine) as connection:
            rows, newest = connection.execute(select(func.count(), func.max(AnswerRow.id))).one()
            state = (rows, newest or 0)  # both, because PostgreSQL may show a lower number after a higher one
            with self._lock:
                if self._cache is None or self._cache[0] != state:
                    self._cache = (state, _standing(connection))
                return self._cache[1].copy(deep=False)

    def labels(self) -> pd.DataFrame:
        """Choices between pairs as every reader of labels takes them; hidden repeats and attention checks left out."""
        found = self.answers()
        found = found[(found["task"] == "pair") & (found["purpose"] == "label")]
        return found[list(LABEL_COLUMNS)].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Rows of each table and retractions, for the progress page and for tests."""
        with _begin(self.engine) as connection:
            return {
                "questions": connection.scalar(select(func.count()).select_from(QuestionRow)) or 0,
                "answers": connection.scalar(select(func.count()).where(AnswerRow.retracts.is_(None))) or 0,
                "retractions": connection.scalar(select(func.count()).where(AnswerRow.retracts.is_not(None))) or 0,
            }

    def _insert(self, connection: Connection, rows: list[dict[str, Any]], question: str) -> bool:
        """Add rows; a unique key that another transaction took in between is the same as having seen it."""
        try:
            with connection.begin_nested():
                connection.execute(insert(AnswerRow), rows)
        except IntegrityError as error:
            if _holds(connection, rows[0]["submission"]):
                return False
            raise AlreadyAnsweredError(f"a question has one standing answer; {question} was just answered") from error
        return True

    def _standing_questions(self, annotator: str) -> list[str]:
        query = select(AnswerRow.question).where(AnswerRow.annotator == annotator, *_stands())
        with _begin(self.engine) as connection:
            return list(connection.scalars(query.distinct()))


def _engine(place: str | Path) -> Engine:
    if isinstance(place, Path) or "://" not in place:
        path = Path(place).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        url = make_url("sqlite+pysqlite://").set(database=str(path))
    else:
        url = make_url(place)
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ArgumentError(f"SQLite and PostgreSQL are supported; got {url.get_backend_name()}")
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S, "check_same_thread": False})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, see below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer that first reads and then wants the lock would fail at once where another writes; this one waits.
    write = connection.get_execution_options().get("reelign_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _begin(engine: Engine, *, write: bool = False) -> Iterator[Connection]:
    with engine.connect().execution_options(reelign_write=write) as connection, connection.begin():
        yield connection


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # two servers that start at once migrate one after the other
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _own_question(connection: Connection, question: str, annotator: str, task: str) -> None:
    """Raises where the question is not theirs; locks its row, so that two windows answer one after the other."""
    same = (QuestionRow.id == question) & (QuestionRow.annotator == annotator) & (QuestionRow.task == task)
    if connection.scalar(select(QuestionRow.id).where(same).with_for_update()) is None:
        raise UnknownQuestionError(
            f"questions are answered by whom they were put to; {annotator} has none {question!r}"
        )


def _holds(connection: Connection, submission: str) -> bool:
    return connection.scalar(select(literal(1)).where(AnswerRow.submission == submission)) is not None


def _attempts(connection: Connection, question: str) -> tuple[int, bool]:
    """How often the question was answered and retracted, and whether an answer stands."""
    rows = connection.execute(select(AnswerRow.submission, AnswerRow.retracts).where(AnswerRow.question == question))
    found = list(rows)
    retracted = {row.retracts for row in found if row.retracts}
    stands = any(row.retracts is None and row.submission not in retracted for row in found)
    return len(retracted), stands


def _stands() -> tuple[Any, Any]:
    """Conditions: an answer, not a retraction, and not retracted."""
    other = aliased(AnswerRow)
    retracted = select(other.retracts).where(other.retracts.is_not(None))
    return AnswerRow.retracts.is_(None), AnswerRow.submission.not_in(retracted)


def _standing(connection: Connection) -> pd.DataFrame:
    columns = [getattr(AnswerRow, n, None) or getattr(QuestionRow, n) for n in ANSWER_COLUMNS]
    query = (
        select(*columns)
        .join(QuestionRow, QuestionRow.id == AnswerRow.question)
        .where(*_stands())
        .order_by(AnswerRow.id)
    )
    return pd.DataFrame([tuple(row) for row in connection.execute(query)], columns=list(ANSWER_COLUMNS))


def _question_columns() -> list[Any]:
    return [getattr(QuestionRow, name) for name in Question.__dataclass_fields__]


def _numbered(question: Question, number: int) -> Question:
    return Question(**{**vars(question), "number": number})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
