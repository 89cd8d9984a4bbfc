"""What Alembic runs for each migration: the store hands over its open connection, so all steps are one transaction."""

from __future__ import annotations

from alembic import context

from reelign.review.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="reelign_review_version",
    transaction_per_migration=False,
)
context.run_migrations()
