"""Jobs whose pods have a token for the model gateway in place of the model's key."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.events import BUDGET_SPENT
from tests.support.gateway import KEY, GatewayProcess, pod_token
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess

from .test_warm import pool, wait_idle

pytestmark = pytest.mark.e2e

DEAR = {"claude-haiku-4-5": {"input": 3000, "output": 15000}}
"""A price of which the agent's client knows nothing."""


@pytest.fixture
def gateway(own_namespace: Namespace, model_url: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    """The gateway, where pods reach it."""
    assert own_namespace.cluster.gateway
    own_namespace.kubectl("delete", "secret", "claude-credentials")
    address = own_namespace.cluster.gateway
    gateway = GatewayProcess(own_namespace, tmp_path, model_url, host=address, prices=json.dumps(DEAR)).start()
    yield gateway
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.log.read_text(), gateway.log.read_text()[-5000:]


@pytest.fixture
def operator(own_operator: Callable[..., OperatorProcess], gateway: GatewayProcess) -> Iterator[OperatorProcess]:
    """An operator whose jobs call it."""
    operator = own_operator(model_gateway_url=gateway.url).start()
    yield operator
    assert operator.stop() == 0


def ask(gateway: GatewayProcess, token: str) -> int:
    """Status of a call."""
    body = json.dumps({"model": "claude-sonnet-4-5", "messages": [], "max_tokens": 1}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{gateway.url}/v1/messages", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_job_runs_without_the_models_key(
    own_namespace: Namespace, gateway: GatewayProcess, operator: OperatorProcess
) -> None:
    """The agent itself looks for the key: in its environment, in every file it may read and in every process."""
    name = unique("gateway")
    # The last letter in brackets, so that the search does not find itself.
    search = (
        f"(env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; find / -xdev -type f -size -1M -newer /etc/hostname"
        f" -exec cat {{}} +; cat /etc/claudejobs/* /var/run/claudejobs/*) 2>/dev/null | tr '\\0' '\\n'"
        f" | grep -c '{KEY[:-1]}[{KEY[-1]}]' > found.txt; cat found.txt; test -s /var/run/claudejobs/token"
        f" && ! env | grep -q eyJ && echo token-in-file-only"
    )
    own_namespace.apply(job(name, f"script: tool {search}", credentialsSecretRef={"name": "of-no-use"}))
    status = own_namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert "spec.credentialsSecretRef" in own_namespace.condition(name, "FieldsIgnored")["message"]
    (pod,) = own_namespace.pods(name)
    assert "secretKeyRef" not in json.dumps(pod)
    log = own_namespace.kubectl("logs", f"{name}-1")
    results = [e for e in map(json.loads, log.splitlines()) if e["type"] == "tool_result"]
    assert [e["summary"].split() for e in results] == [["0", "token-in-file-only"]], results
    (account,) = json.loads(gateway.admin(f"/jobs?namespace={own_namespace.name}"))["jobs"]
    assert (account["job"], account["requests"]) == (name, 2)
    # The client's own prices are of the same list.
    assert account["costUSD"] == pytest.approx(status["costUSD"], rel=0.01)


def test_a_token_ends_with_its_pod(
    own_namespace: Namespace, gateway: GatewayProcess, operator: OperatorProcess
) -> None:
    name = unique("ends")
    own_namespace.apply(job(name, "script: slow 600"))
    own_namespace.wait_phase(name, "Running")
    token = pod_token(own_namespace, f"{name}-1")
    assert wait_for(lambda: ask(gateway, token) == 200, "the attempt is served")
    own_namespace.patch(name, cancel=True)
    own_namespace.wait_phase(name, "Cancelled")
    assert wait_for(lambda: ask(gateway, token) in (401, 403), "the token is refused")

    own_namespace.apply(job(unique("finished")), job("finished"))
    own_namespace.wait_phase("finished", "Completed")
    assert ask(gateway, pod_token(own_namespace, "finished-1")) == 403


def test_a_pod_without_a_job_is_refused(own_namespace: Namespace, gateway: GatewayProcess, runner_image: str) -> None:
    container: dict[str, Any] = {
        "name": "runner",
        "image": runner_image,
        "command": ["sleep", "600"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    labels = {"app.kubernetes.io/managed-by": "claudejobs", "claudecode.dev/job": "x", "claudecode.dev/attempt": "1"}
    spec = {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    own_namespace.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x-1", "labels": labels}, "spec": spec}
    )
    own_namespace.kubectl("wait", "--for=condition=Ready", "pod/x-1", "--timeout=120s")
    assert ask(gateway, pod_token(own_namespace, "x-1")) == 403


def test_a_spent_budget_ends_the_job_as_such(
    own_namespace: Namespace, gateway: GatewayProcess, operator: OperatorProcess
) -> None:
    """Though the agent's client thinks that it has much left."""
    name = unique("budget")
    claude = {"model": "claude-haiku-4-5", "maxBudgetUSD": 2.5}
    own_namespace.apply(job(name, "script: tool echo spent", claude=claude))
    status = own_namespace.wait_phase(name, "Failed", "Completed")
    assert (status["phase"], status["reason"], status["attempt"]) == ("Failed", "budget_exceeded", 1), status
    assert BUDGET_SPENT in status["message"]
    assert status["costUSD"] < 1


def test_a_warm_pod_may_use_the_model_as_soon_as_it_is_a_jobs_and_not_before(
    own_namespace: Namespace, gateway: GatewayProcess, own_operator: Callable[..., OperatorProcess]
) -> None:
    operator = own_operator(model_gateway_url=gateway.url, warm_pools=True).start()
    own_namespace.apply(pool("ready", 1))
    (waiting,) = wait_idle(own_namespace, "ready", 1)
    token = pod_token(own_namespace, waiting)
    assert ask(gateway, token) == 403
    name = unique("warm")
    own_namespace.apply(job(name, "script: hello"))
    status = own_namespace.wait_phase(name, "Completed", "Failed")
    assert (status["phase"], status["podName"]) == ("Completed", waiting), status
    (account,) = json.loads(gateway.admin(f"/jobs?namespace={own_namespace.name}"))["jobs"]
    assert account["job"] == name
    assert ask(gateway, token) == 403, "the job has ended"
    assert operator.stop() == 0
