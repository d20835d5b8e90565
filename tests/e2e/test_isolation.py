"""A hostile job in a real pod under the chart's policy; what it tries is in tests/support/isolation.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from localcluster.network import API_SERVICE
from localcluster.settings import from_environment
from tests.integration.test_chart import render
from tests.support.gateway import GatewayProcess
from tests.support.isolation import ALLOWED, CONTAINED, INSIDE, NETWORK, Try
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess

pytestmark = pytest.mark.e2e

SCRIPT = (Path(__file__).parent / "hostile.py").read_text()
INTERNET, METADATA, PRIVATE = "203.0.113.10", "169.254.169.254", "192.168.203.10"
SERVE = """
import socket, sys, threading
def serve(server):
    while True: server.accept()[0].close()
servers = [socket.create_server((sys.argv[1], int(port))) for port in sys.argv[2:]]
print(*[server.getsockname()[1] for server in servers], flush=True)
threads = [threading.Thread(target=serve, args=[server]) for server in servers]
[thread.start() for thread in threads]
"""

Targets = dict[str, tuple[str, int]]


def serve(stack: ExitStack, address: str, ports: Sequence[int], prefix: Sequence[str] = ()) -> list[int]:
    """Servers that accept; their ports."""
    command = [*prefix, sys.executable, "-c", SERVE, address, *map(str, ports)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    return [int(port) for port in process.stdout.readline().split()]


@pytest.fixture
def outside(own_namespace: Namespace) -> Iterator[ExitStack]:
    """Hosts in a network namespace of the test, routed from the node: no packet leaves the machine."""
    if own_namespace.cluster.kind != "local":
        pytest.skip("the network around this cluster is not ours")
    node = ["nsenter", f"--net=/run/netns/{from_environment().identity}", "--"]
    name = unique("hosts")
    inside = ["ip", "netns", "exec", name]
    with ExitStack() as stack:

        def run(*command: str) -> None:
            subprocess.run(command, check=True, capture_output=True)

        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        run(*node, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        stack.callback(subprocess.run, [*node, "ip", "link", "delete", name], check=False, capture_output=True)
        run(*node, "ip", "address", "add", "192.0.2.1/30", "dev", name)
        run(*node, "ip", "link", "set", name, "up")
        run(*inside, "ip", "address", "add", "192.0.2.2/30", "dev", "eth0")
        for link in ("lo", "eth0"):
            run(*inside, "ip", "link", "set", link, "up")
        run(*inside, "ip", "route", "add", "default", "via", "192.0.2.1")
        for address in (INTERNET, METADATA, PRIVATE):
            run(*inside, "ip", "address", "add", f"{address}/32", "dev", "lo")
            run(*node, "ip", "route", "add", address, "via", "192.0.2.2")
        serve(stack, "0.0.0.0", [80, 443], inside)
        yield stack


@pytest.fixture
def gateway(own_namespace: Namespace, model_url: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    """The gateway, where pods reach it; it alone has the key."""
    assert own_namespace.cluster.gateway
    own_namespace.kubectl("delete", "secret", "claude-credentials")
    gateway = GatewayProcess(own_namespace, tmp_path, model_url, host=own_namespace.cluster.gateway).start()
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture
def operator(own_operator: Callable[..., OperatorProcess], gateway: GatewayProcess) -> Iterator[OperatorProcess]:
    """An operator whose jobs call it."""
    operator = own_operator(model_gateway_url=gateway.url).start()
    yield operator
    assert operator.stop() == 0


def pod(name: str, image: str, program: str, *arguments: str, **env: str) -> dict[str, Any]:
    """A pod of the runner's image under Pod Security `restricted` that runs a Python program."""
    container = {
        "name": "python",
        "image": image,
        "command": ["python3", "-c", program, *arguments],
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


@pytest.fixture
def targets(
    outside: ExitStack,
    own_namespace: Namespace,
    namespace: Namespace,
    gateway: GatewayProcess,
    model_url: str,
    runner_image: str,
) -> Iterator[Targets]:
    """What there is to reach, by the names of the tries."""
    machine = own_namespace.cluster.gateway
    assert machine
    nodes = json.loads(own_namespace.kubectl("get", "nodes", "-o", "json"))["items"]
    addresses = [a for node in nodes for a in node["status"].get("addresses", [])]  # a fake node may have none
    node = next(a["address"] for a in addresses if a["type"] == "InternalIP")
    operator, redis, postgresql = serve(outside, machine, [0, 0, 0])
    victim = unique("victim")
    namespace.apply(pod(victim, runner_image, SERVE, "0.0.0.0", "8080"))
    namespace.kubectl("wait", "--for=condition=Ready", f"pod/{victim}", "--timeout=120s")
    found = namespace.get("pod", victim)
    assert found is not None
    yield {
        "api-service": (API_SERVICE, 443),
        "api-node": (node, 6443),
        "kubelet": (node, 10250),
        "metadata": (METADATA, 80),
        "pod": (found["status"]["podIP"], 8080),
        "private": (PRIVATE, 443),
        "internet-http": (INTERNET, 80),
        "operator": (machine, operator),
        "redis": (machine, redis),
        "postgresql": (machine, postgresql),
        "model": (machine, int(model_url.rpartition(":")[2])),
        "internet-https": (INTERNET, 443),
        "gateway": (machine, gateway.port),
    }
    namespace.kubectl("delete", "pod", victim, "--now", "--wait=false")


def policy(namespace: Namespace, gateway: GatewayProcess) -> dict[str, Any]:
    """The chart's policy with its defaults, but that the gateway is not a pod here."""
    values = {"jobNamespaces": [namespace.name], "createJobNamespaces": False}
    (found,) = [
        d for d in render(namespace, values) if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "claudejobs"
    ]
    address = {"ipBlock": {"cidr": f"{gateway.host}/32"}}
    found["spec"]["egress"].append({"to": [address], "ports": [{"protocol": "TCP", "port": gateway.port}]})
    return found


def outcomes(text: str) -> dict[str, str]:
    """What the script reported, by try."""
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


def expected(*groups: Sequence[Try]) -> dict[str, str]:
    return {one.key: one.outcome for group in groups for one in group}


def run_job(namespace: Namespace, name: str, wanted: str, env: dict[str, str], **spec: Any) -> None:
    """Start a job whose agent runs the script."""
    given = {"HOSTILE": SCRIPT, "WANTED": wanted} | env
    variables = [{"name": key, "value": value} for key, value in given.items()]
    retry = {"maxAttempts": 1}
    namespace.apply(job(name, 'script: tool python3 -c "$HOSTILE"', env=variables, retry=retry, **spec))


def told(namespace: Namespace, name: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What the script of a job that has ended reported, and all events of the pod's log."""
    events = [json.loads(line) for line in namespace.kubectl("logs", f"{name}-1").splitlines()]
    summaries = [event["summary"] for event in events if event["type"] == "tool_result"]
    return outcomes("\n".join(summaries)), events


def test_a_hostile_job_reaches_nothing_and_forges_nothing(
    own_namespace: Namespace,
    operator: OperatorProcess,
    gateway: GatewayProcess,
    targets: Targets,
    runner_image: str,
) -> None:
    env = {"TARGETS": json.dumps(targets)}
    # Without the policy all of it would be reached: what fails below, fails by the policy.
    control = unique("control")
    own_namespace.apply(pod(control, runner_image, SCRIPT, WANTED="network", **env))
    own_namespace.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{control}", "--timeout=120s")
    assert outcomes(own_namespace.kubectl("logs", control)) == dict.fromkeys(targets, "connected")

    own_namespace.apply(policy(own_namespace, gateway))
    name = unique("hostile")
    run_job(own_namespace, name, "network inside", env)
    status = own_namespace.wait_phase(name, "Completed", "Failed", timeout=180)
    seen, events = told(own_namespace, name)
    assert seen == expected(NETWORK, ALLOWED, INSIDE)
    assert status["phase"] == "Completed", status
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert not [event for event in events if event.get("text") == "FORGED"]
    assert not [event for event in events if event["type"] == "notice"], "the kernel does not hold all of it"


def test_a_job_that_takes_too_much_or_goes_on_is_contained(own_namespace: Namespace, operator: OperatorProcess) -> None:
    marks = {one.key: unique(one.key) for one in CONTAINED}  # each is also the name of its job
    limits = {"resources": {"limits": {"memory": "1Gi"}}}
    for key, mark in marks.items():
        run_job(own_namespace, mark, key, {"MARK": mark}, podTemplate=limits, timeoutSeconds=300)
    assert {key: contained(own_namespace, key, mark) for key, mark in marks.items()} == expected(CONTAINED)


def contained(namespace: Namespace, key: str, mark: str) -> str:
    """What stopped a job that took too much or went on."""
    status = namespace.wait_phase(mark, "Completed", "Failed", timeout=300)
    if key == "disk" and (status["reason"], "exceeds" in status["message"]) == ("workspace", True):
        return "evicted"
    if key == "memory" and status["reason"] == "oom":
        # With control groups of version 2 the whole container ends.
        return "killed"
    if status["phase"] != "Completed":
        return str(status)
    seen = told(namespace, mark)[0][key]
    if (key, seen) == ("survive", "started"):
        wait_for(lambda: not alive(mark), "nothing of the job lives")
        return "gone"
    return seen


def alive(mark: str) -> list[int]:
    """The processes of this machine, those in pods among them, that have the mark as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
