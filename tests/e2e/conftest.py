"""One operator for the session, on PostgreSQL, in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import localcluster
from tests.integration.postgres import PostgresServer, postgres_server
from tests.support.kube import Namespace
from tests.support.operator import OperatorProcess

__all__ = ["postgres_server"]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def operator(
    namespace: Namespace,
    model_url: str,
    runner_image: str,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """The session's operator."""
    log = tmp_path_factory.mktemp("operator") / "log"
    process = OperatorProcess(
        namespace,
        log,
        postgres_server.url(postgres_server.create_database()),
        model_base_url=model_url,
        runner_image=runner_image,
        start_timeout=12,
        resync_seconds=10,
    )
    yield process.start()
    assert process.stop() == 0
    text = log.read_text()
    assert "a defect" not in text, text[-5000:]
    assert "Traceback" not in text, text[-5000:]


@pytest.fixture(scope="session")
def misbehaving_image(runner_image: str) -> str:
    """An image whose runner breaks the protocol in the way that the prompt names."""
    folder = HERE / "misbehaving-runner"
    return localcluster.build("claudejobs-misbehaving", folder / "Dockerfile", folder)
