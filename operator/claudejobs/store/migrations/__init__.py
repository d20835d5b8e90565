"""Alembic migrations of the store, run by ``claudejobs.store.upgrade``."""
