"""A node without a kubelet, whose part the test plays: pods on it get on only as a scenario says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import Outcome, RunnerResult, Usage
from claudejobs.kube.client import ApiError, pods_path
from claudejobs.reconcile.views import CONTAINER
from tests.support.kube import unique

from .api import Api

LABEL = "claudejobs-chaos/node"
_NODES = "/api/v1/nodes"


@asynccontextmanager
async def fake_node(api: Api) -> AsyncIterator[str]:
    """Make a node; its name is also the value of its label."""
    name = unique("chaos")
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {LABEL: name}},
        "spec": {"taints": [{"key": "claudejobs-chaos/only", "effect": "NoSchedule"}]},
    }
    amounts = {"cpu": "1000", "memory": "1000Gi", "pods": "10000", "ephemeral-storage": "1000Gi"}
    await api.request("POST", _NODES, node)
    try:
        await api.merge(f"{_NODES}/{name}/status", {"status": {"capacity": amounts, "allocatable": amounts}})
        yield name
    finally:
        await api.request("DELETE", f"{_NODES}/{name}")


def placement(node: str) -> dict[str, Any]:
    """The podTemplate of a job that runs on that node."""
    return {"nodeSelector": {LABEL: node}, "tolerations": [{"operator": "Exists"}]}


def now() -> str:
    """As Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def completed() -> RunnerResult:
    """A result as the runner leaves it."""
    usage = Usage(input_tokens=10, output_tokens=20)
    return RunnerResult(outcome=Outcome.COMPLETED, text="hello", num_turns=2, cost_usd=0.25, usage=usage)


def failed(category: Category) -> RunnerResult:
    """The same, of an attempt that failed."""
    return RunnerResult(outcome=Outcome.FAILED, category=category, message="as the scenario says", cost_usd=0.5)


def cancelled() -> RunnerResult:
    """The same, of an agent that was told to stop."""
    return RunnerResult(outcome=Outcome.CANCELLED, category=Category.CANCELLED, message="stopped", cost_usd=0.125)


class Kubelet:
    """What a kubelet does to the pods of one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def run(self, pod: str) -> None:
        """The container has started."""
        state = {"running": {"startedAt": now()}}
        await self._report(pod, "Running", state, ready=True)

    async def end(self, pod: str, result: RunnerResult) -> None:
        """The container has ended, and left its result."""
        category = result.category
        code = POLICIES[category].exit_code if category else 0
        state = {
            "terminated": {
                "exitCode": code,
                "reason": "Error" if code else "Completed",
                "startedAt": now(),
                "finishedAt": now(),
                "message": result.model_dump_json(exclude_defaults=True),
            }
        }
        await self._report(pod, "Failed" if code else "Succeeded", state, ready=False)

    async def remove(self, pod: str) -> None:
        """The pod's deletion is complete."""
        try:
            await self._api.request("DELETE", pods_path(self._namespace, pod), {"gracePeriodSeconds": 0})
        except ApiError as error:
            if error.status != 404:
                raise

    async def _report(self, pod: str, phase: str, state: dict[str, Any], ready: bool) -> None:
        container = {
            "name": CONTAINER,
            "image": "none",
            "imageID": "none",
            "ready": ready,
            "restartCount": 0,
            "state": state,
        }
        patch = {"status": {"phase": phase, "startTime": now(), "containerStatuses": [container]}}
        await self._api.merge(pods_path(self._namespace, pod, "status"), patch)
