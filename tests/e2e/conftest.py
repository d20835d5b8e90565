"""One operator for the session, on PostgreSQL, in a namespace of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import localcluster
from localcluster import Cluster
from tests.conftest import make_namespace
from tests.integration.postgres import PostgresServer, postgres_server
from tests.support.kube import Namespace
from tests.support.operator import OperatorProcess

__all__ = ["postgres_server"]

HERE = Path(__file__).parent


Serve = Callable[..., AbstractContextManager[OperatorProcess]]

PACE = {"resync_seconds": 10, "default_cpu_request": "50m"}
"""Small requests, so that the pods of many tests fit a machine with two cores; what they use is not bounded by it."""


@pytest.fixture(scope="session")
def serve(
    model_url: str, runner_image: str, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Serve:
    """Runs an operator for a namespace, on a PostgreSQL database of its own: ``with serve(namespace, SETTING=…)``.
    At the end it must stop cleanly, and its log must tell of no defect."""

    @contextmanager
    def run(namespace: Namespace, **settings: object) -> Iterator[OperatorProcess]:
        given = {"model_base_url": model_url, "runner_image": runner_image, "start_timeout": 60} | PACE | settings
        database = postgres_server.url(postgres_server.create_database())
        process = OperatorProcess(namespace, tmp_path_factory.mktemp("operator") / "log", database, **given)
        yield process.start()
        assert process.stop() == 0
        text = process.log.read_text()
        assert "a defect" not in text, text[-5000:]
        assert "Traceback" not in text, text[-5000:]

    return run


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """The namespace that the session's operator watches."""
    yield from make_namespace(cluster)


@pytest.fixture(scope="session")
def operator(namespace: Namespace, serve: Serve) -> Iterator[OperatorProcess]:
    """The session's operator."""
    with serve(namespace) as process:
        yield process


@pytest.fixture
def own_operator(
    own_namespace: Namespace, model_url: str, runner_image: str, tmp_path: Path
) -> Iterator[Callable[..., OperatorProcess]]:
    """Makes operators (not started) on SQLite for one test's namespace; all have the same database. Those that a
    failing test leaves running are killed."""
    made: list[OperatorProcess] = []

    def make(**settings: object) -> OperatorProcess:
        given = {"model_base_url": model_url, "runner_image": runner_image} | PACE | settings
        log = tmp_path / f"operator-{len(made) + 1}.log"
        made.append(OperatorProcess(own_namespace, log, f"sqlite:///{tmp_path}/state.db", **given))
        return made[-1]

    yield make
    for operator in made:
        if operator.process and operator.process.poll() is None:
            operator.kill()


@pytest.fixture(scope="session")
def misbehaving_image(cluster: Cluster) -> str:
    """An image whose runner breaks the protocol in the way that the prompt names."""
    folder = HERE / "misbehaving-runner"
    return localcluster.build("claudejobs-misbehaving", folder / "Dockerfile", folder)
