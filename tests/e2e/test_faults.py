"""Faults around running jobs: killed processes, evictions, a model server in trouble.

A full volume is noticed within seconds, a killed shim later. All jobs are applied at once, before the first test, so
that the others come to their ends meanwhile; the operator keeps the machine from running them all at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from claudejobs.api.categories import POLICIES, Category
from tests.e2e.conftest import Serve
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess, wait_rows
from tests.support.processes import PodProcess, agent_of, processes_of, runner_of, shim_of, sleeper_of

pytestmark = pytest.mark.e2e

ONCE: dict[str, Any] = {"maxAttempts": 1}

TROUBLE = {
    "401": Category.AUTH,
    "403": Category.AUTH,
    "404": Category.INVALID_REQUEST,
    "credit": Category.BILLING,
    "toolong": Category.CONTEXT_OVERFLOW,
    "429 2": Category.RATE_LIMITED,
    "500": Category.OVERLOADED,
    "529": Category.OVERLOADED,
    "hang": Category.STALLED,
    "silent": Category.STALLED,
    "drop 1": None,
    "truncated": None,
    "malformed": None,
    "sse-error": None,
    "flaky529 1": None,
}
"""What the model server does, and the category that a job ends with; ``None`` where it completes after all."""


@pytest.fixture(scope="module")
def operator(module_namespace: Namespace, serve: Serve) -> Iterator[OperatorProcess]:
    with serve(module_namespace, max_concurrent_jobs=8) as process:
        yield process


@pytest.fixture(scope="module")
def names(module_namespace: Namespace, operator: OperatorProcess) -> dict[str, str]:
    """The names of the module's jobs, by what happens to them."""
    fill = "dd if=/dev/zero of=full bs=1M count=32; sleep 600"
    jobs = {
        "volume": job("", f"script: tool {fill}", workspace={"emptyDir": {"sizeLimit": "16Mi"}}),
        "disk": job("", f"script: tool {fill}", podTemplate={"resources": {"limits": {"ephemeral-storage": "16Mi"}}}),
        "agent": job("", "script: slow 600", retry=ONCE),
        "runner": job("", "script: slow 600", retry={"backoff": {"delaySeconds": 0}}),
        "shim": job("", "script: slow 600", retry={"backoff": {"delaySeconds": 0}}),
        "drain": job("", "script: slow 600", retry=ONCE),
    }
    for script, category in TROUBLE.items():
        # What is not to be tried again has attempts left that must not be used.
        attempts = 1 if category is None or POLICIES[category].retriable else 5
        stall = 5 if category is Category.STALLED else None
        extra = {"stallTimeoutSeconds": stall} if stall else {}
        jobs[script] = job("", f"script: {script}", retry={"maxAttempts": attempts}, **extra)
    for priority, (what, resource) in enumerate(reversed(jobs.items())):
        resource["spec"]["priority"] = priority  # the first to be waited for goes first
        resource["metadata"]["name"] = unique(what.replace(" ", "-"))
    module_namespace.apply(*jobs.values())
    return {what: resource["metadata"]["name"] for what, resource in jobs.items()}


def pod_of(namespace: Namespace, name: str, attempt: int = 1) -> dict[str, Any]:
    """The pod of an attempt, once it is there."""

    def probe() -> dict[str, Any] | None:
        pods = namespace.pods(name)
        return next((pod for pod in pods if pod["metadata"]["name"] == f"{name}-{attempt}"), None)

    return wait_for(probe, f"the pod of attempt {attempt} of {name}", 120)


def in_its_tool(namespace: Namespace, name: str, attempt: int = 1) -> dict[str, Any]:
    """The pod of an attempt, once its agent is in the middle of a tool."""
    pod = pod_of(namespace, name, attempt)
    wait_for(lambda: sleeper_of(pod), f"the tool of attempt {attempt} of {name} runs", 120)
    return pod


def end_the_tool(pod: dict[str, Any]) -> None:
    """Let the tool of a pod end before its time."""
    sleeper = sleeper_of(pod)
    assert sleeper
    sleeper.kill()


async def test_a_killed_agent_goes_on_in_its_pod(
    module_namespace: Namespace, operator: OperatorProcess, names: dict[str, str]
) -> None:
    name = names["agent"]
    pod = in_its_tool(module_namespace, name)
    agent = agent_of(pod)
    assert agent
    agent.kill()
    status = module_namespace.wait_phase(name, "Completed", "Failed")
    assert (status["phase"], len(status["attempts"])) == ("Completed", 1), status
    # The model answers so only to a conversation that has the tool call.
    assert status["result"]["text"] == "Done after 600 s."
    log = module_namespace.kubectl("logs", f"{name}-1").splitlines()
    events = [json.loads(line) for line in log if line.startswith("{")]  # the SDK has a word to say, too
    sessions = [(event["session_id"], event["resumed"]) for event in events if event["type"] == "session"]
    assert sessions == [(status["sessionId"], False), (status["sessionId"], True)]
    assert events[-1]["result"]["restarts"] == 1
    assert any("was killed by SIGKILL" in event["text"] for event in events if event["type"] == "notice")
    (row,) = await wait_rows(operator, name, "completed")
    assert row["session_id"] == status["sessionId"]


@pytest.mark.parametrize(
    ("what", "find", "said"),
    [("runner", runner_of, "was killed by signal 9"), ("shim", shim_of, "exited with code 255")],
)
async def test_a_killed_runner_or_shim_costs_an_attempt(
    module_namespace: Namespace,
    operator: OperatorProcess,
    names: dict[str, str],
    what: str,
    find: Callable[[dict[str, Any]], PodProcess | None],
    said: str,
) -> None:
    name = names[what]
    first = in_its_tool(module_namespace, name)
    victim = find(first)
    assert victim
    victim.kill()
    second = pod_of(module_namespace, name, 2)
    assert processes_of(first) == [], "two attempts run at once"
    in_its_tool(module_namespace, name, 2)
    end_the_tool(second)
    status = module_namespace.wait_phase(name, "Completed", "Failed")
    assert (status["phase"], len(status["attempts"])) == ("Completed", 2), status
    assert status["attempts"][0]["category"] == "runner_crash"
    assert said in status["attempts"][0]["message"]
    rows = await wait_rows(operator, name, "failed", "completed")
    assert rows[0]["error_category"] == "runner_crash"


async def test_a_drained_node_costs_no_attempt(
    module_namespace: Namespace, operator: OperatorProcess, names: dict[str, str]
) -> None:
    name = names["drain"]
    pod = in_its_tool(module_namespace, name)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": f"{name}-1"}}
    path = f"/api/v1/namespaces/{module_namespace.name}/pods/{name}-1/eviction"
    module_namespace.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    second = in_its_tool(module_namespace, name, 2)
    assert processes_of(pod) == [], "two attempts run at once"
    end_the_tool(second)
    status = module_namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert [a.get("category") for a in status["attempts"]] == ["evicted", None]
    rows = await wait_rows(operator, name, "failed", "completed")
    assert rows[0]["error_category"] == "evicted"


@pytest.mark.parametrize("script", TROUBLE)
async def test_what_a_model_server_in_trouble_leads_to(
    module_namespace: Namespace, operator: OperatorProcess, names: dict[str, str], script: str
) -> None:
    category = TROUBLE[script]
    status = module_namespace.wait_phase(names[script], "Completed", "Failed")
    assert status["phase"] == ("Failed" if category else "Completed"), status
    assert status["reason"] == (category or "Completed")
    assert status["attempt"] == 1
    (row,) = await wait_rows(operator, names[script], "failed" if category else "completed")
    assert row["error_category"] == category
    assert bool(row["error"]) == bool(category)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("volume", 'volume "workspace" exceeds the limit "16Mi"; raise spec.workspace.emptyDir.sizeLimit'),
        ("disk", "total limit of containers 16Mi; raise spec.podTemplate.resources.limits[ephemeral-storage]"),
    ],
)
async def test_a_pod_that_fills_its_disk_is_evicted_and_told_which_limit_it_was(
    module_namespace: Namespace, operator: OperatorProcess, names: dict[str, str], what: str, says: str
) -> None:
    status = module_namespace.wait_phase(names[what], "Completed", "Failed", timeout=180)
    assert (status["phase"], status["reason"]) == ("Failed", "workspace"), status
    assert status["message"].endswith(f"{says}, or write less")
    assert module_namespace.pods(names[what])[0]["status"]["reason"] == "Evicted"
    (row,) = await wait_rows(operator, names[what], "failed")
    assert row["error_category"] == "workspace"
