"""`make demo QUEUE=1`: a producer in Node enqueues a job with BullMQ, and gets the agent's answer back."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import localcluster
from localcluster import LocalClusterError, from_environment
from localcluster.progress import say, step
from localcluster.settings import REPOSITORY

REDIS = "redis"
QUEUE = "claude-tasks"
EXAMPLE = REPOSITORY / "examples" / "queue"
OLDEST_NODE = 20
PATIENCE = 300
"""Seconds that the producer waits for its job."""


class Kubectl(Protocol):
    """What is needed of kubectl here."""

    def command(self, tool: str, *arguments: str) -> list[str]:
        """The command line of a tool of the cluster."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; its output."""

    def apply(self, *objects: dict[str, Any]) -> bool:
        """Apply objects."""


def check_node() -> str:
    """The program of Node.

    Raises LocalClusterError when there is none, or it is too old.
    """
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise LocalClusterError(f"QUEUE=1 runs a producer in Node: install Node.js {OLDEST_NODE} or newer, with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        raise LocalClusterError(
            f"QUEUE=1 runs a producer in Node: {node} is {version}, {OLDEST_NODE} or newer is needed"
        )
    return node


def install_redis(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    """Put a Redis into the cluster; the chart's values by which the operator finds it."""
    with step("Building the image of Redis"):
        image = localcluster.build("claudejobs-demo-redis", Path(__file__).parent / "redis" / "Dockerfile")
    password = _password(kubectl, namespace)
    url = f"redis://:{password}@{REDIS}.{namespace}.svc:6379/0"
    meta = {"name": REDIS, "namespace": namespace}
    labels = {"app": REDIS}
    container = {
        "name": REDIS,
        "image": image,
        "args": ["--appendonly", "yes", "--dir", "/data", "--requirepass", "$(PASSWORD)"],
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "claudejobs-redis", "key": "password"}}}],
        "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    selector = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "claudejobs-redis", "namespace": namespace},
            "stringData": {"REDIS_URL": url, "password": password},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": selector},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 6379}]},
        },
    )
    return {"existingSecret": "claudejobs-redis"}


def _password(kubectl: Kubectl, namespace: str) -> str:
    """The password of the last run, which Redis has, or a new one."""
    path = "jsonpath={.data.password}"
    kept = kubectl("-n", namespace, "get", "secret", "claudejobs-redis", "--ignore-not-found", "-o", path)
    return base64.b64decode(kept).decode() if kept else secrets.token_hex(16)


def run(kubectl: Kubectl, system: str, jobs: str, scripted: bool) -> int:
    """Make the queue's resource, run the producer, show what came of it; the exit code."""
    node = check_node()
    kubectl.apply(
        {
            "apiVersion": "claudecode.dev/v1alpha1",
            "kind": "ClaudeCodeQueue",
            "metadata": {"name": QUEUE, "namespace": jobs},
            "spec": {"queueName": QUEUE},
        }
    )
    kubectl("-n", jobs, "wait", f"ccq/{QUEUE}", "--for=condition=Connected", "--timeout=60s")
    say(f"ClaudeCodeQueue {QUEUE} in namespace {jobs} drains the BullMQ queue of that name.")
    with step("Installing BullMQ for the producer"):
        folder = install_producer()
    with _forwarded(kubectl, system) as port:
        command = "script: tasks 3" if scripted else "Say hello to a task queue in one friendly line."
        environment = os.environ | {
            "REDIS_URL": f"redis://:{_password(kubectl, system)}@127.0.0.1:{port}",
            "QUEUE": QUEUE,
            "WAIT_SECONDS": str(PATIENCE),
        }
        print(f'\n$ node enqueue.js "{command}"')
        done = subprocess.run([node, "enqueue.js", command], cwd=folder, env=environment, check=False)
    print(f"\n$ kubectl get ccj,ccq -n {jobs}")
    print(kubectl("-n", jobs, "get", "ccj,ccq"))
    return done.returncode


def install_producer() -> Path:
    """The example with its packages, in a folder of the cache that is named after its content."""
    content = b"".join((EXAMPLE / name).read_bytes() for name in ("package.json", "package-lock.json", "enqueue.js"))
    cache = from_environment().cache
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"queue-example-{hashlib.sha256(content).hexdigest()[:16]}"
    with (cache / "queue-example.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            half = folder.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(EXAMPLE, half, ignore=shutil.ignore_patterns("node_modules"))
            quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run(["npm", "ci", *quiet], cwd=half, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LocalClusterError(f"npm ci in a copy of examples/queue: {done.stderr.strip()[-2000:]}")
            half.rename(folder)
    return folder


@contextmanager
def _forwarded(kubectl: Kubectl, namespace: str) -> Iterator[int]:
    """A port of this machine that leads to Redis in the cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    forward = kubectl.command("kubectl", "-n", namespace, "port-forward", f"service/{REDIS}", f"{port}:6379")
    process = subprocess.Popen(forward, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise LocalClusterError(f"port-forward to Redis: {process.stderr.read() if process.stderr else ''}")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
