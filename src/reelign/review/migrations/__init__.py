"""Steps from one shape of the label database to the next, run when a store opens; written for Alembic."""
