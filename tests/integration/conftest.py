"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.postgres import postgres_server
from tests.integration.test_store_support import db, postgres_db, store_errors
from tests.support.kube import Namespace
from tests.support.redis import RedisServer

__all__ = ["db", "postgres_db", "postgres_server", "store_errors"]


@pytest.fixture(scope="module")
def namespace(module_namespace: Namespace) -> Namespace:
    """A namespace of the file's own, which no operator watches."""
    return module_namespace


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of the file's own, with persistence and without a password."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
