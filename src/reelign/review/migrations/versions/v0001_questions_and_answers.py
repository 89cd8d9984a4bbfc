"""Questions and answers, and triggers that refuse to change or delete either."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("review_questions", "review_answers")


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "review_questions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("annotator", sa.String(64), nullable=False),
        sa.Column("task", sa.String(8), nullable=False),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("left", sa.String(64), nullable=False),
        sa.Column("right", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(8), nullable=False),
        sa.Column("expected", sa.String(16), nullable=False),
        sa.Column("repeats", sa.String(36), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("annotator", "task", "number", name="one_question_at_a_time"),
    )
    op.create_table(
        "review_answers",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("submission", sa.String(36), nullable=False),
        sa.Column("question", sa.String(36), sa.ForeignKey("review_questions.id"), nullable=False, index=True),
        sa.Column("annotator", sa.String(64), nullable=False),
        sa.Column("axis", sa.String(64), nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=True),
        sa.Column("retracts", sa.String(36), nullable=True, unique=True),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("submission", "axis", name="one_submission_once"),
        sa.UniqueConstraint("question", "axis", "attempt", name="one_answer_a_question"),
    )
    make = _sqlite_triggers if op.get_bind().dialect.name == "sqlite" else _postgresql_triggers
    for statement in make():
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would delete labels."""
    raise NotImplementedError("labels are never deleted; keep a copy of the database and drop its tables by hand")


def _sqlite_triggers() -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in TABLES
        for verb in ("update", "delete")
    ]


def _postgresql_triggers() -> list[str]:
    function = (
        "CREATE FUNCTION review_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    return [function] + [
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION review_append_only()"
        for table in TABLES
    ]
