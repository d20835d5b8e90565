"""Fixtures of all tests that need the cluster. It is made when the first of them asks, and kept running."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import localcluster
from claudejobs.kube.client import USER_AGENT
from localcluster import Cluster
from tests.support.kube import Namespace, unique
from tests.support.model import scripted_model
from tests.support.operator import REPOSITORY

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster, with the CRD of this checkout."""
    cluster = localcluster.ensure()
    Namespace(cluster, "default").kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    Namespace(cluster, "default").kubectl("wait", "--for=condition=Established", "-f", str(REPOSITORY / "crds"))
    return cluster


@pytest.fixture(scope="session")
def runner_image(cluster: Cluster) -> str:
    """The runner's image of this checkout, loaded into the cluster."""
    return localcluster.build_and_load_images("claudejobs-runner")["claudejobs-runner"]


def make_namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace under Pod Security `restricted`, with credentials for the scripted model."""
    namespace = Namespace(cluster, unique("ccj"))
    namespace.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name, "labels": RESTRICTED}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "claude-credentials", "namespace": namespace.name},
            "stringData": {"ANTHROPIC_API_KEY": "key-of-no-use"},
        },
    )
    yield namespace
    namespace.kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture
def own_namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace for one test."""
    yield from make_namespace(cluster)


@pytest.fixture(scope="module")
def module_namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace for the tests of one file."""
    yield from make_namespace(cluster)


@pytest.fixture(scope="session")
def model_url(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scripted model, a process on the machine's side of the cluster's network."""
    assert cluster.gateway, "the end-to-end tests need a cluster whose pods reach this machine"
    with scripted_model(cluster.gateway, tmp_path_factory.mktemp("model") / "out") as url:
        yield url


def audit_writes(cluster: Cluster, name: str, namespace: str | None = None) -> list[tuple[str, str, int]]:
    """The operators' API writes for a job and its pods, from the API server's audit log: verb, resource, status.

    The log goes back to former runs of the tests: give the ``namespace`` unless the job's name is unique.
    """
    assert cluster.audit_log is not None
    writes = []
    for line in cluster.audit_log.read_text().splitlines():
        event = json.loads(line)
        reference = event.get("objectRef", {})
        about = reference.get("name") == name or str(reference.get("name", "")).startswith(f"{name}-")
        about = about and namespace in (None, reference.get("namespace"))
        if event.get("userAgent", "").startswith(f"{USER_AGENT}/") and about and event["stage"] == "ResponseComplete":
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            writes.append((event["verb"], resource, event["responseStatus"]["code"]))
    return writes
