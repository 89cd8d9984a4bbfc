"""The two tables of a label database, as SQLAlchemy models. Both only grow: triggers refuse updates and deletions.

A question is one pair (or one take) shown to one annotator, with the sides as they were shown. An answer is one axis of
one submission; undoing one adds a row that retracts it. Made and changed by ``reelign.review.migrations`` only.
"""

from __future__ import annotations

from sqlalchemy import Float, ForeignKey, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RETRACTED = "retracted"  # the choice of a row that retracts


class Base(DeclarativeBase):
    """Root of the models."""


class QuestionRow(Base):
    """One pair or take, shown to one annotator.

    ``left`` and ``right`` are takes as shown (``right`` is empty when one take is rated); ``purpose`` is ``label``,
    ``repeat`` (asked before, sides swapped; ``repeats`` names that question) or ``check`` (``expected`` is known).
    """

    __tablename__ = "review_questions"
    __table_args__ = (UniqueConstraint("annotator", "task", "number", name="one_question_at_a_time"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    number: Mapped[int] = mapped_column(Integer)
    annotator: Mapped[str] = mapped_column(String(64))
    task: Mapped[str] = mapped_column(String(8))
    group: Mapped[str] = mapped_column(Text)
    left: Mapped[str] = mapped_column(String(64))
    right: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(8))
    expected: Mapped[str] = mapped_column(String(16))
    repeats: Mapped[str] = mapped_column(String(36))
    created_at: Mapped[str] = mapped_column(String(32))


class AnswerRow(Base):
    """One axis of one submission, or its retraction (axis empty, ``retracts`` names the submission).

    ``attempt`` is how often the question had been answered and retracted before, so that two answers at the same moment
    from two windows of one annotator cannot both stand. ``seconds`` is how long the question was in sight.
    """

    __tablename__ = "review_answers"
    __table_args__ = (
        UniqueConstraint("submission", "axis", name="one_submission_once"),
        UniqueConstraint("question", "axis", "attempt", name="one_answer_a_question"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    submission: Mapped[str] = mapped_column(String(36))
    question: Mapped[str] = mapped_column(ForeignKey("review_questions.id"), index=True)
    annotator: Mapped[str] = mapped_column(String(64))
    axis: Mapped[str] = mapped_column(String(64))
    choice: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(Integer)
    seconds: Mapped[float | None] = mapped_column(Float)
    retracts: Mapped[str | None] = mapped_column(String(36), unique=True)
    created_at: Mapped[str] = mapped_column(String(32))


metadata: MetaData = Base.metadata
