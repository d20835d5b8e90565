"""Fixtures of the integration tests."""

from tests.integration.postgres import postgres_server
from tests.integration.test_store_support import db, postgres_db, store_errors

__all__ = ["db", "postgres_db", "postgres_server", "store_errors"]
