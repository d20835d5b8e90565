"""Replicas of the operator: one leads, another takes over when it is killed, stopped, frozen or cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from claudejobs.kube.client import USER_AGENT
from localcluster import Cluster
from tests.conftest import audit_writes
from tests.support.kube import Namespace, job, wait_for
from tests.support.operator import REPOSITORY, OperatorProcess, wait_rows
from tests.support.proxy import ApiServerProxy

pytestmark = pytest.mark.e2e

Make = Callable[..., OperatorProcess]
FAST = {"lease_duration": 6, "lease_renew_deadline": 4, "lease_retry": 1}


LEASE = "claudejobs"
"""The name that the chart's Role allows, for a release of that name."""


@pytest.fixture
def service_account(own_namespace: Namespace, tmp_path: Path) -> Path:
    """A kubeconfig with the chart's permissions and no others."""
    chart, name = str(REPOSITORY / "charts" / "claudejobs"), own_namespace.name
    values = yaml.safe_dump({"watchNamespaces": [name], "rbac": {"aggregateToDefaultRoles": False}})
    helm = [str(own_namespace.cluster.bin_dir / "helm"), "template", LEASE, chart, "--namespace", name]
    roles = subprocess.run(
        [*helm, "--show-only", "templates/rbac.yaml", "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=True,
    )
    own_namespace.kubectl("apply", "-f", "-", stdin=roles.stdout)
    config = yaml.safe_load(own_namespace.cluster.kubeconfig.read_text())
    token = own_namespace.kubectl("create", "token", "claudejobs", "--duration=1h").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    return tmp_path / "kubeconfig"


@pytest.fixture
def replica(own_namespace: Namespace, own_operator: Make, service_account: Path) -> Iterator[Make]:
    """Makes operators that elect a leader, in the order in which they are to lead; none outlives the test."""
    made: list[OperatorProcess] = []
    common = {"leader_election": "true", "lease_namespace": own_namespace.name, "lease_name": LEASE}

    def make(**settings: object) -> OperatorProcess:
        made.append(own_operator(**common, **{"kubeconfig": service_account, **settings}).start())
        if len(made) == 1:
            wait_for(lambda: state(made[0]) == "ok", "the first leads")
        return made[-1]

    yield make
    for operator in made:
        assert operator.process is not None
        if operator.process.poll() is None:
            operator.process.send_signal(signal.SIGCONT)
            operator.kill()
        assert "a defect" not in operator.log.read_text()


def state(operator: OperatorProcess) -> str | None:
    """What /readyz calls the operator, if it answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/readyz", timeout=2) as response:
            return str(json.load(response)["state"])
    except OSError:
        return None


def lease(namespace: Namespace) -> dict[str, Any]:
    """The spec of the replicas' Lease."""
    obj = namespace.get("lease", LEASE)
    assert obj is not None
    spec: dict[str, Any] = obj["spec"]
    return spec


def identity(operator: OperatorProcess) -> str:
    """The name that an operator that has led gave itself."""
    lines = [json.loads(line) for line in operator.log.read_text().splitlines() if line.startswith("{")]
    return next(str(line["identity"]) for line in lines if line["message"] == "leading")


def wait_leads(operator: OperatorProcess, since: float, what: str, timeout: float) -> float:
    """Wait until an operator leads and has listed everything; prints and returns the seconds since ``since``."""
    wait_for(lambda: state(operator) == "ok", f"the standby leads after {what}", timeout)
    took = time.monotonic() - since
    print(f"\nfailover after {what}: {took:.2f} s")
    return took


def writes_of(cluster: Cluster, who: str) -> list[tuple[datetime, str]]:
    """All API writes of one process, of whatever outcome: when they arrived, and what they were."""
    assert cluster.audit_log is not None
    events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines() if who in line]
    return [
        (datetime.fromisoformat(event["requestReceivedTimestamp"]), f"{event['verb']} {event['requestURI']}")
        for event in events
        if event.get("userAgent") == f"{USER_AGENT}/{who}" and event["stage"] == "ResponseComplete"
    ]


def created_pods(namespace: Namespace, name: str) -> int:
    return sum(write == ("create", "pods", 201) for write in audit_writes(namespace.cluster, name, namespace.name))


async def test_a_killed_leaders_jobs_are_taken_over(own_namespace: Namespace, replica: Make) -> None:
    first, second = replica(), replica()
    assert (state(first), state(second)) == ("ok", "standby")
    own_namespace.apply(job("ends-meanwhile", "script: slow 3"), job("ends-after", "script: slow 18"))
    for name in ("ends-meanwhile", "ends-after"):
        own_namespace.wait_phase(name, "Running")
    first.kill()
    killed = time.monotonic()
    own_namespace.apply(job("came-meanwhile"))
    assert wait_leads(second, killed, "kill -9", 25) < 20
    assert lease(own_namespace)["leaseTransitions"] == 1
    for name in ("ends-meanwhile", "came-meanwhile", "ends-after"):
        status = own_namespace.wait_phase(name, "Completed", "Failed")
        assert (status["phase"], status["attempt"]) == ("Completed", 1), status
        await wait_rows(second, name, "completed")
        assert created_pods(own_namespace, name) == 1
    assert second.stop() == 0
    assert lease(own_namespace)["holderIdentity"] == ""


async def test_a_leader_that_is_stopped_hands_over_at_once(own_namespace: Namespace, replica: Make) -> None:
    first, second, third = replica(), replica(), replica()
    own_namespace.apply(job("during", "script: slow 4"))
    own_namespace.wait_phase("during", "Running")
    assert third.stop() == 0, "a standby stops cleanly, too"
    asked = time.monotonic()
    assert first.process is not None
    first.process.send_signal(signal.SIGTERM)
    assert wait_leads(second, asked, "SIGTERM", 10) < 5
    assert first.process.wait(10) == 0
    status = own_namespace.wait_phase("during", "Completed", "Failed")
    assert (status["phase"], status["attempt"]) == ("Completed", 1), status
    assert created_pods(own_namespace, "during") == 1
    assert second.stop() == 0


async def test_a_frozen_leader_ends_without_writing_when_it_thaws(own_namespace: Namespace, replica: Make) -> None:
    first, second = replica(**FAST), replica(**FAST)
    own_namespace.apply(job("ends-meanwhile", "script: slow 2"), job("ends-after", "script: slow 60"))
    for name in ("ends-meanwhile", "ends-after"):
        own_namespace.wait_phase(name, "Running")
    assert first.process is not None
    halfway = [f"halfway-{n}" for n in range(2)]
    own_namespace.apply(*[job(name, "script: tool true") for name in halfway])
    first.process.send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    wait_leads(second, frozen, "SIGSTOP (LEASE_DURATION=6)", 20)
    taken = datetime.fromisoformat(lease(own_namespace)["acquireTime"])
    own_namespace.apply(job("came-meanwhile", "script: tool true"))
    own_namespace.patch("ends-after", cancel=True)
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1
    assert "the leadership is lost" in first.log.read_text()
    completed = [(name, "Completed") for name in ("ends-meanwhile", "came-meanwhile", *halfway)]
    for name, phase in [("ends-after", "Cancelled"), *completed]:
        assert own_namespace.wait_phase(name, "Completed", "Failed", "Cancelled")["phase"] == phase
        assert created_pods(own_namespace, name) == 1
    before, after = (
        writes_of(own_namespace.cluster, identity(first)),
        writes_of(own_namespace.cluster, identity(second)),
    )
    assert before, "the audit log tells processes apart"
    assert [what for when, what in before if when >= taken] == []
    assert [what for when, what in after if when < taken and "leases" not in what] == []
    assert second.stop() == 0


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("hang", "it was not renewed for"),
        ("cut", "it was not renewed for"),
        ("delete", "somebody deleted it"),
        ("take", "an-intruder holds it"),
    ],
)
def test_a_leader_that_cannot_renew_ends(
    what: str, reason: str, own_namespace: Namespace, replica: Make, service_account: Path, tmp_path: Path
) -> None:
    proxy = ApiServerProxy(service_account, tmp_path)
    try:
        leader = replica(kubeconfig=proxy.kubeconfig, **FAST)
        since = time.monotonic()
        if what == "hang":
            proxy.hang()
        elif what == "cut":
            proxy.cut()
        elif what == "delete":
            own_namespace.kubectl("delete", "lease", LEASE)
        else:
            spec = {"spec": {"holderIdentity": "an-intruder"}}
            own_namespace.kubectl("patch", "lease", LEASE, "--type=merge", "-p", json.dumps(spec))
        assert leader.process is not None
        assert leader.process.wait(15) == 1
        print(f"\nended {time.monotonic() - since:.2f} s after: {what}")
    finally:
        proxy.cut()
    assert time.monotonic() - since < FAST["lease_duration"] + 2
    assert f"the leadership is lost: {reason}" in leader.log.read_text()
