"""Releases of the chart on a real cluster: upgraded from the version before, uninstalled, installed again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import localcluster
from localcluster import Cluster
from tests.support.helm import CHART, PREVIOUS, helm
from tests.support.kube import Namespace, job, unique, wait_for

pytestmark = pytest.mark.e2e

CRDS = ("claudecodejobs.claudecode.dev", "claudecodequeues.claudecode.dev")


def run(cluster: Cluster, *arguments: str, values: dict[str, Any] | None = None) -> None:
    """Run helm, which must succeed."""
    done = helm(cluster, *arguments, values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def image(cluster: Cluster) -> dict[str, str]:
    """The operator's image of this checkout, as values."""
    built = localcluster.build_and_load_images("claudejobs-operator")["claudejobs-operator"]
    repository, _, tag = built.rpartition(":")
    return {"repository": repository, "tag": tag}


@pytest.fixture
def release(own_namespace: Namespace) -> Iterator[str]:
    """A name, of which nothing is left that is not in the namespace."""
    name = unique("claudejobs")
    yield name
    helm(own_namespace.cluster, "uninstall", name, "--namespace", own_namespace.name, "--ignore-not-found")
    # Their owner is gone; the next release of another name could not take them.
    for crd in CRDS:
        own_namespace.kubectl("annotate", "crd", crd, "meta.helm.sh/release-name-", "meta.helm.sh/release-namespace-")


def rows(namespace: Namespace, release: str) -> list[dict[str, Any]]:
    """What the release's operator has in its database; waits until it can be asked."""

    def ask() -> list[dict[str, Any]] | None:
        show = ("claudejobs", "rows", "--output", "json")
        done = namespace.run("exec", f"deployment/{release}", "--", *show)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.startswith("[") else None

    return wait_for(ask, "rows in the database")


def may(namespace: Namespace, account: str, verb: str, resource: str, *where: str) -> bool:
    """Whether a service account may do something."""
    who = f"system:serviceaccount:{namespace.name}:{account}"
    done = namespace.run("auth", "can-i", verb, resource, f"--as={who}", *where)
    assert done.stdout.strip() in ("yes", "no"), done.stderr
    return done.stdout.strip() == "yes"


def test_jobs_and_rows_outlive_upgrade_and_uninstall(
    own_namespace: Namespace, release: str, model_url: str, runner_image: str
) -> None:
    """In namespaced mode throughout, on the chart's own claim, with the gateway in the cluster."""
    cluster, space = own_namespace.cluster, own_namespace.name
    watched = {"image": image(cluster), "runner": {"image": runner_image}, "watchNamespaces": [space]}
    watched |= {"model": {"baseURL": model_url}, "jobNamespaces": [space], "createJobNamespaces": False}
    watched |= {"networkPolicy": {"egress": []}}
    # The CRDs of the version before must not reach the cluster of other tests.
    before = watched | {"crds": {"enabled": False}}
    run(cluster, "install", release, PREVIOUS, "--namespace", space, values=before)
    claim = own_namespace.get("pvc", f"{release}-state")
    assert claim is not None

    now = watched | {"gateway": {"replicas": 1}}
    # The CRDs are there, by the tests' own kubectl.
    taken = ("--take-ownership", "--force-conflicts")
    wait = ("--namespace", space, *taken, "--wait", "--timeout", "5m")
    run(cluster, "upgrade", release, CHART, *wait, values=now)
    own_namespace.apply(job("first", "script: tool true"))
    assert own_namespace.wait_phase("first", "Completed", "Failed")["phase"] == "Completed"
    written = wait_for(
        lambda: [row for row in rows(own_namespace, release) if row["status"] == "completed"], "its row is written"
    )
    check_permissions(own_namespace, release)

    run(cluster, "uninstall", release, "--namespace", space, "--wait", "--timeout", "5m")
    assert own_namespace.get("deployment", release) is None
    for crd in CRDS:
        assert own_namespace.get("crd", crd) is not None
    assert own_namespace.status("first")["phase"] == "Completed"
    kept = own_namespace.get("pvc", f"{release}-state")
    assert kept is not None
    assert kept["metadata"]["uid"] == claim["metadata"]["uid"]
    own_namespace.apply(job("meanwhile", "script: tool true"))

    run(cluster, "install", release, CHART, *wait, values=now)
    assert own_namespace.wait_phase("meanwhile", "Completed", "Failed")["phase"] == "Completed"
    found = {row["job_uid"]: row for row in rows(own_namespace, release)}
    assert found[written[0]["job_uid"]] == written[0]


def check_permissions(namespace: Namespace, release: str) -> None:
    """The operator may do in its namespace what a job has just shown it needs, and nothing else, anywhere."""
    needed = [
        ("create", "pods"),
        ("delete", "pods"),
        ("get", "pods", "--subresource=log"),
        ("patch", "claudecodejobs", "--subresource=status"),
        ("patch", f"leases/{release}"),
    ]
    for one in needed:
        assert may(namespace, release, *one), one
        assert not may(namespace, release, *one, "--namespace=kube-system"), one
    never = [
        ("get", "secrets"),
        ("get", "configmaps"),
        ("update", "pods"),
        ("patch", "pods"),
        ("create", "pods", "--subresource=exec"),
        ("patch", "pods", "--subresource=ephemeralcontainers"),
        ("create", "serviceaccounts", "--subresource=token"),
        ("update", "claudecodequeues"),
        ("delete", "persistentvolumeclaims"),
        ("create", "rolebindings"),
        ("get", "nodes"),
        ("get", "namespaces"),
        ("delete", "leases"),
        ("patch", "leases/other"),
    ]
    for account in (release, f"{release}-gateway", "default"):
        assert [one for one in never if may(namespace, account, *one)] == [], account
    assert not may(namespace, f"{release}-gateway", "create", "pods")
    assert not may(namespace, release, "create", "tokenreviews")


def test_an_upgrade_whose_migration_fails_changes_nothing(own_namespace: Namespace, release: str) -> None:
    cluster, space = own_namespace.cluster, own_namespace.name
    place = ("--namespace", space, "--timeout", "2m")

    def database(url: str) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}}
        own_namespace.apply(secret | {"stringData": {"DATABASE_URL": url}})

    # No claim: a file inside the Job's pod shows that the schema is made as well as a server would.
    database("sqlite:////tmp/state.db")
    values: dict[str, Any] = {
        "image": image(cluster),
        "crds": {"enabled": False},
        "rbac": {"create": False},
        "gateway": {"enabled": False},
        "watchNamespaces": [space],
        "replicas": 1,
        "database": {"existingSecret": "db", "migrationJob": {"timeoutSeconds": 60}},
    }
    run(cluster, "install", release, CHART, *place, values=values)
    migration = f"involvedObject.name={release}-migrate,reason=Completed"
    assert own_namespace.kubectl("get", "events", "--field-selector", migration, "-o", "name") == ""
    run(cluster, "upgrade", release, CHART, *place, values=values | {"podAnnotations": {"turn": "2"}})
    assert own_namespace.kubectl("get", "events", "--field-selector", migration, "-o", "name") != ""
    assert own_namespace.get("job", f"{release}-migrate") is None

    database("postgresql://nobody@127.0.0.1:1/none")
    values["database"]["migrationJob"]["timeoutSeconds"] = 10
    done = helm(cluster, "upgrade", release, CHART, *place, values=values | {"podAnnotations": {"turn": "3"}})
    assert done.returncode != 0
    assert "pre-upgrade" in done.stderr
    deployment = own_namespace.get("deployment", release)
    assert deployment is not None
    assert deployment["spec"]["template"]["metadata"]["annotations"]["turn"] == "2"
