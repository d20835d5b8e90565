"""Warm pods: jobs that take a pod which was started before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client import CoreV1Api

from claudejobs.api.base import API_VERSION
from claudejobs.kube.client import MERGE_PATCH, jobs_path, pods_path
from claudejobs.reconcile.pool import POOL_LABEL, WarmPod, hand_over
from claudejobs.reconcile.report import session_id
from claudejobs.settings import Settings
from tests.chaos.api import Api
from tests.support.kube import Namespace, client_of, job, unique, wait_for
from tests.support.operator import OperatorProcess

pytestmark = pytest.mark.e2e

Json = dict[str, Any]


def pool(name: str, size: int, **template: Any) -> Json:
    """A pool as its author would write it."""
    spec = {"size": size, "template": template}
    return {"apiVersion": API_VERSION, "kind": "ClaudeCodePool", "metadata": {"name": name}, "spec": spec}


def pods_of(namespace: Namespace, name: str) -> list[Any]:
    """All pods that were ever the pool's and are there still."""
    return list(
        CoreV1Api(client_of(namespace.cluster.kubeconfig))
        .list_namespaced_pod(namespace.name, label_selector=f"{POOL_LABEL}={name}")
        .items
    )


def idle(namespace: Namespace, name: str) -> dict[str, str]:
    """UIDs, by name, of the pool's pods that run and wait."""
    return {
        pod.metadata.name: pod.metadata.uid
        for pod in pods_of(namespace, name)
        if pod.metadata.owner_references[0].kind == "ClaudeCodePool"
        and pod.status.phase == "Running"
        and not pod.metadata.deletion_timestamp
    }


def wait_idle(namespace: Namespace, name: str, size: int, without: dict[str, str] | None = None) -> dict[str, str]:
    """Wait until so many pods wait, none of them one of ``without``."""

    def reached() -> dict[str, str] | None:
        now = idle(namespace, name)
        return now if len(now) == size and not set(now.values()) & set((without or {}).values()) else None

    return wait_for(reached, f"{size} pods of pool {name} wait", 120)


def test_each_job_takes_a_waiting_pod_of_its_own_and_the_pool_is_filled_again(
    own_namespace: Namespace, own_operator: Callable[..., OperatorProcess]
) -> None:
    operator = own_operator(warm_pools=True).start()
    own_namespace.apply(pool("ready", 2))
    first = wait_idle(own_namespace, "ready", 2)
    wait_for(lambda: (own_namespace.get("ccp", "ready") or {}).get("status", {}).get("ready") == 2, "the status says 2")
    names = [unique("warm") for _ in range(2)]
    own_namespace.apply(*(job(name, "script: hello", timeoutSeconds=300) for name in names))
    taken = [own_namespace.wait_phase(name, "Completed") for name in names]
    assert {status["podName"] for status in taken} == set(first)
    assert all(status["result"]["text"] for status in taken)
    for name, status in zip(names, taken, strict=True):
        (pod,) = own_namespace.pods(name)
        assert pod["metadata"]["uid"] == first[status["podName"]]
        (owner,) = pod["metadata"]["ownerReferences"]
        assert owner["uid"] == own_namespace.uid_of(name)
        assert 300 < pod["spec"]["activeDeadlineSeconds"] < 300 + 600 + 60 + 600
    wait_idle(own_namespace, "ready", 2, without=first)

    other = unique("cold")
    own_namespace.apply(job(other, podTemplate={"labels": {"team": "a"}}))
    assert own_namespace.wait_phase(other, "Completed")["podName"] == f"{other}-1"
    assert operator.stop() == 0
    assert "a defect" not in operator.log.read_text()


def test_pods_of_an_old_template_are_replaced_and_a_smaller_pool_loses_idle_pods_only(
    own_namespace: Namespace, own_operator: Callable[..., OperatorProcess]
) -> None:
    operator = own_operator(warm_pools=True).start()
    own_namespace.apply(pool("ready", 1))
    old = wait_idle(own_namespace, "ready", 1)
    own_namespace.apply(pool("ready", 2, podTemplate={"labels": {"team": "a"}}))
    wait_idle(own_namespace, "ready", 2, without=old)
    name = unique("busy")
    own_namespace.apply(job(name, "script: slow 600", podTemplate={"labels": {"team": "a"}}))
    status = own_namespace.wait_phase(name, "Running")
    own_namespace.apply(pool("ready", 0, podTemplate={"labels": {"team": "a"}}))
    wait_for(lambda: [p.metadata.name for p in pods_of(own_namespace, "ready")] == [status["podName"]], "one is left")
    assert own_namespace.status(name)["phase"] == "Running"
    own_namespace.patch(name, cancel=True)
    own_namespace.wait_phase(name, "Cancelled")
    assert operator.stop() == 0


async def test_an_operator_carries_on_where_one_was_killed_in_a_hand_over(
    own_namespace: Namespace, own_operator: Callable[..., OperatorProcess], model_url: str, runner_image: str
) -> None:
    first = own_operator(warm_pools=True).start()
    own_namespace.apply(pool("ready", 2))
    chosen, given = sorted(wait_idle(own_namespace, "ready", 2))
    first.kill()
    # Killed after the status was written, after the pod was patched, and with a pod that is gone since.
    jobs = {unique("chosen"): chosen, unique("given"): given, unique("lost"): "ready-warm-gone"}
    own_namespace.apply(*(job(name) for name in jobs))
    for name, pod in jobs.items():
        reserve(own_namespace, name, pod)
    given_to = next(name for name, pod in jobs.items() if pod == given)
    settings = Settings(runner_image=runner_image, model_base_url=model_url, default_cpu_request="50m")
    await patch_pod(own_namespace, given, given_to, settings)

    second = own_operator(warm_pools=True).start()
    ended = {name: own_namespace.wait_phase(name, "Completed") for name in jobs}
    for name, status in ended.items():
        assert [a["attempt"] for a in status["attempts"]] == [1], status
        (pod,) = own_namespace.pods(name)
        assert pod["metadata"]["name"] == status["podName"] == status["attempts"][0]["podName"]
    assert [status["podName"] for status in ended.values()][:2] == [chosen, given]
    assert second.stop() == 0
    assert "a defect" not in second.log.read_text()


def reserve(namespace: Namespace, name: str, pod: str) -> None:
    """Write the status that the operator writes before it gives the pod away."""
    now = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
    session = session_id(namespace.uid_of(name))
    attempt = {"attempt": 1, "podName": pod, "startTime": now, "sessionId": session}
    status = {"phase": "Starting", "reason": "Reserved", "attempt": 1, "attempts": [attempt], "podName": pod}
    status |= {"sessionId": session, "startTime": now, "message": "taken", "progress": 0}
    patch = json.dumps({"status": status})
    namespace.kubectl("patch", "ccj", name, "--subresource=status", "--type=merge", "-p", patch)


async def patch_pod(namespace: Namespace, pod: str, name: str, settings: Settings) -> None:
    """Give a pod to a job, as the operator does."""
    async with Api.to(namespace.cluster) as client:
        waiting = WarmPod.parse(await client.get(pods_path(namespace.name, pod)) or {})
        resource = await client.get(jobs_path(namespace.name, name))
        assert waiting is not None
        assert resource is not None
        session = session_id(resource["metadata"]["uid"])
        body = hand_over(waiting, resource, 1, session, 0.0, settings, datetime.now(UTC))
        await client.request("PATCH", pods_path(namespace.name, pod), body, content_type=MERGE_PATCH)
