"""The local cluster works as any cluster does: DNS, Services, tokens, exec, audit log; and its pods stay inside."""

import json
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import localcluster
from localcluster import Cluster

pytestmark = pytest.mark.e2e

DOCKERFILE = """
FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
"""
# Addresses reserved for documentation: no real host has them.
OUTSIDE, OUTSIDE_ROUTER = "198.51.100.2", "198.51.100.1"


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return localcluster.ensure()


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    context = tmp_path_factory.mktemp("image")
    (context / "Dockerfile").write_text(DOCKERFILE)
    return localcluster.build("localcluster-test", context / "Dockerfile", context)


@dataclass(frozen=True)
class Namespace:
    """A namespace that enforces the restricted Pod Security standard."""

    cluster: Cluster
    image: str
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        kubectl, kubeconfig = str(self.cluster.bin_dir / "kubectl"), str(self.cluster.kubeconfig)
        command = [kubectl, "--kubeconfig", kubeconfig, "-n", self.name]
        done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str, code: str, **spec: object) -> None:
        """Start a pod that runs Python code."""
        container = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-u", "-c", textwrap.dedent(code)],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                **spec,
            },
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(pod))

    def run(self, name: str, code: str) -> str:
        """Run Python code in a pod to its end and return what it printed."""
        self.start(name, code)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            phase = self.kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}")
            if phase in ("Succeeded", "Failed"):
                output = self.kubectl("logs", name)
                assert phase == "Succeeded", output
                return output.strip()
            time.sleep(0.2)
        raise AssertionError(self.kubectl("describe", "pod", name))


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, image: str) -> Iterator[Namespace]:
    space = Namespace(cluster, image, f"localcluster-{uuid.uuid4().hex[:8]}")
    space.kubectl("create", "namespace", space.name)
    try:
        space.kubectl("label", "namespace", space.name, "pod-security.kubernetes.io/enforce=restricted")
        yield space
    finally:
        space.kubectl("delete", "namespace", space.name, "--wait=false")


def test_a_pod_finds_the_api_server_by_dns_and_is_let_in_by_its_token(namespace: Namespace) -> None:
    output = namespace.run(
        "client",
        """
        import json, ssl, urllib.request
        home = "/var/run/secrets/kubernetes.io/serviceaccount"
        request = urllib.request.Request("https://kubernetes.default.svc/version")
        request.add_header("Authorization", "Bearer " + open(home + "/token").read())
        context = ssl.create_default_context(cafile=home + "/ca.crt")
        print(json.load(urllib.request.urlopen(request, context=context, timeout=10))["gitVersion"])
        """,
    )
    assert output.startswith("v1.")


def test_a_service_leads_to_its_pod(namespace: Namespace) -> None:
    namespace.start(
        "web",
        """
        from http.server import BaseHTTPRequestHandler, HTTPServer
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.end_headers(); self.wfile.write(b"from web")
        HTTPServer(("", 8080), Handler).serve_forever()
        """,
    )
    namespace.kubectl("expose", "pod", "web", "--port=80", "--target-port=8080")
    namespace.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    output = namespace.run(
        "visitor",
        f"""
        import time, urllib.request
        for url in ("http://web", "http://web.{namespace.name}.svc.cluster.local"):
            for attempt in range(20):
                try:
                    print(urllib.request.urlopen(url, timeout=5).read().decode())
                    break
                except OSError as error:
                    time.sleep(0.5)
        """,
    )
    assert output.splitlines() == ["from web", "from web"]


def test_commands_run_in_a_running_container(namespace: Namespace) -> None:
    namespace.start("sleeper", "import time; print('awake'); time.sleep(600)")
    namespace.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
    assert namespace.kubectl("exec", "sleeper", "--", "python3", "-c", "print(6 * 7)") == "42\n"
    assert namespace.kubectl("logs", "sleeper") == "awake\n"


ACCEPT = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    server.accept()[0].close()
"""


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[bytes]"
    address: str
    port: int


def serve(address: str, port: int, prefix: tuple[str, ...] = ()) -> Server:
    """Start a server and wait until it answers from here."""
    process = subprocess.Popen([*prefix, sys.executable, "-c", ACCEPT, address, str(port)])
    for _ in range(100):
        try:
            socket.create_connection((address, port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return Server(process, address, port)
    process.kill()
    process.wait()
    raise AssertionError(f"no server at {address}:{port}")


@pytest.fixture
def host_outside(cluster: Cluster) -> Iterator[Server]:
    """A host beyond this machine: a network namespace of the test, behind this machine as its router."""
    if cluster.kind != "local":
        pytest.skip("the network around this cluster is not ours")
    name = f"outside-{uuid.uuid4().hex[:6]}"
    inside = ("ip", "netns", "exec", name)
    commands: list[tuple[str, ...]] = [
        ("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name),
        ("ip", "address", "add", f"{OUTSIDE_ROUTER}/30", "dev", name),
        ("ip", "link", "set", name, "up"),
        (*inside, "ip", "address", "add", f"{OUTSIDE}/30", "dev", "eth0"),
        (*inside, "ip", "link", "set", "eth0", "up"),
        (*inside, "ip", "route", "add", "default", "via", OUTSIDE_ROUTER),
    ]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in commands:
            subprocess.run(command, check=True)
        server = serve(OUTSIDE, 8000, inside)
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        # The pair of interfaces goes with the namespace, a moment later.
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


CONNECT = """
import socket
try:
    socket.create_connection(({address!r}, {port}), 3).close()
    print("reached")
except OSError as error:
    print("not reached:", error)
"""


def test_pods_do_not_reach_hosts_outside(namespace: Namespace, host_outside: Server) -> None:
    output = namespace.run("escaper", CONNECT.format(address=host_outside.address, port=host_outside.port))
    assert output.startswith("not reached")


def test_pods_reach_this_machine_at_the_gateway(cluster: Cluster, namespace: Namespace) -> None:
    if cluster.gateway is None:
        pytest.skip("this machine is not in the pods' reach")
    with socket.create_server((cluster.gateway, 0)) as server:
        output = namespace.run("neighbour", CONNECT.format(address=cluster.gateway, port=server.getsockname()[1]))
    assert output == "reached"


def test_the_audit_log_has_one_line_for_a_write_and_none_for_a_read(cluster: Cluster, namespace: Namespace) -> None:
    if cluster.audit_log is None:
        pytest.skip("this cluster's audit log cannot be read from here")
    before = cluster.audit_log.stat().st_size
    namespace.kubectl("create", "configmap", "written", "--from-literal=a=b")
    namespace.kubectl("get", "configmap", "written")
    found = [e for e in audit_events(cluster.audit_log, before) if e["objectRef"].get("name") == "written"]
    assert [(e["verb"], e["user"]["username"], e["level"]) for e in found] == [
        ("create", "kubernetes-admin", "Metadata")
    ]


def audit_events(path: Path, offset: int) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(offset)
        return [event for line in file if "objectRef" in (event := json.loads(line))]


def test_a_second_ensure_is_quick(cluster: Cluster) -> None:
    started = time.monotonic()
    assert localcluster.ensure() == cluster
    assert time.monotonic() - started < 5
