"""`make demo`: a first job on a real cluster, from nothing to the row that says completed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

import localcluster
from claudejobs.api.events import Event, Progress, ToolResult, ToolUse, parse_event
from claudejobs.api.events import Text as AgentText
from localcluster import Cluster, LocalClusterError, from_environment
from localcluster.progress import say, step
from localcluster.settings import REPOSITORY

SYSTEM, JOBS, NAME = "claudejobs-system", "claudejobs-demo", "hello"
MODEL = "scripted-model"
USER = 65532
PATIENCE = 600
"""Seconds that the job may take."""


class Kubectl:
    """kubectl against one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._tools = cluster.bin_dir

    def command(self, tool: str, *arguments: str) -> list[str]:
        """The command line of a tool of the cluster."""
        own = self._tools / tool
        flag = ["--kubeconfig", str(self.cluster.kubeconfig)]
        return [str(own) if own.exists() else tool, *flag, *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; its output. Raises LocalClusterError with its message."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def run(self, tool: str, *arguments: str, stdin: str | None = None) -> str:
        """Run a tool; its output. Raises LocalClusterError with its message."""
        done = subprocess.run(self.command(tool, *arguments), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LocalClusterError(f"{tool} {' '.join(arguments[:4])}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))


def main() -> int:
    """Set everything up, run the job, show what came of it."""
    key = os.environ.get("ANTHROPIC_API_KEY")
    if key:
        os.environ.setdefault("CLUSTER_EGRESS", "open")  # the real model is outside
    cluster = localcluster.ensure()
    images = localcluster.build_and_load_images("claudejobs-operator", "claudejobs-runner")
    kubectl = Kubectl(cluster)
    if key:
        say("The model is the real one, with your ANTHROPIC_API_KEY.")
    else:
        say("The model is scripted, because ANTHROPIC_API_KEY is not set: a local server speaks the Messages API.")
        say("Everything else is real: API server, scheduler, kubelet, containerd, the pod, the Agent SDK and its CLI.")
    with step("Installing the operator"):
        install(kubectl, images, key)
    prepare_workspace(kubectl, cluster)
    kubectl("-n", JOBS, "apply", "-f", str(REPOSITORY / "examples" / "hello.yaml"))
    say(f"Applied examples/hello.yaml in namespace {JOBS}.")
    phase = follow(kubectl)
    return show(kubectl, phase, images["claudejobs-runner"])


def install(kubectl: Kubectl, images: dict[str, str], key: str | None) -> None:
    """Install the chart, and the scripted model where there is no key."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    for name in (SYSTEM, JOBS):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    kubectl.apply(_secret(JOBS, "claude-credentials", {"ANTHROPIC_API_KEY": key or "key-of-no-use"}))
    repository, _, tag = images["claudejobs-operator"].rpartition(":")
    values: dict[str, Any] = {
        "image": {"repository": repository, "tag": tag},
        "runner": {"image": images["claudejobs-runner"]},
        "watchNamespaces": [JOBS],
        # The chart's claim needs a StorageClass, which the local cluster has none of.
        "database": {"persistence": {"enabled": kubectl.cluster.kind != "local"}},
    }
    url = os.environ.get("DATABASE_URL")
    if url:
        kubectl.apply(_secret(SYSTEM, "claudejobs-database", {"DATABASE_URL": url}))
        values["database"] = {"existingSecret": "claudejobs-database"}
    if not key:
        kubectl.apply(*scripted_model(images["claudejobs-operator"]))
        kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{MODEL}", "--timeout=120s")
        values["model"] = {"baseURL": f"http://{MODEL}.{SYSTEM}.svc:8080"}
    chart = str(REPOSITORY / "charts" / "claudejobs")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    values["crds"] = {"enabled": False}  # applied above: the cluster's CRD may belong to a test run
    arguments = ("upgrade", "--install", "claudejobs", chart, "--namespace", SYSTEM, "--values", "-")
    kubectl.run("helm", *arguments, stdin=yaml.safe_dump(values))
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/claudejobs", "--timeout=120s")


def scripted_model(image: str) -> list[dict[str, Any]]:
    """A Deployment of the scripted model, from the operator's image, and its Service."""
    code = (REPOSITORY / "images" / "scripted-model" / "scripted_model.py").read_text()
    labels = {"app": MODEL}
    meta = {"name": MODEL, "namespace": SYSTEM}
    container = {
        "name": "model",
        "image": image,
        "command": ["/opt/venv/bin/python", "/model/scripted_model.py", "--host", "0.0.0.0", "--port", "8080"],  # noqa: S104
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "code", "mountPath": "/model"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "code", "configMap": {"name": MODEL}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"scripted_model.py": code}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    ]


def prepare_workspace(kubectl: Kubectl, cluster: Cluster) -> None:
    """Remove the last run's job and workspace; the local cluster has no provisioner, so make the volume by hand."""
    with step("Making room for the job"):
        kubectl("-n", JOBS, "delete", "ccj,pod,pvc", "--all", "--wait=true", "--timeout=60s")
    if cluster.kind != "local":
        return
    kubectl("delete", "pv", f"{JOBS}-workspace", "--ignore-not-found", "--wait=true", "--timeout=60s")
    folder = from_environment().state / "volumes" / f"{JOBS}-workspace"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chown(folder, USER, USER)
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{JOBS}-workspace"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "claimRef": {"namespace": JOBS, "name": "hello-workspace"},
                "hostPath": {"path": str(folder)},
            },
        }
    )


def follow(kubectl: Kubectl) -> str:
    """Show one live line until the job is at its end; its phase."""
    console = Console()
    newest = {"step": ""}
    threading.Thread(target=_steps, args=(kubectl, console, newest), daemon=True).start()
    deadline = time.monotonic() + PATIENCE
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while True:
            status = json.loads(kubectl("-n", JOBS, "get", "ccj", NAME, "-o", "json")).get("status", {})
            phase = str(status.get("phase", "Pending"))
            doing = newest["step"] or status.get("message", "")
            if console.is_terminal:
                live.update(
                    Text(f"{phase:<10} {status.get('progress', 0):>3} %  {doing}", overflow="ellipsis", no_wrap=True)
                )
            if phase in ("Completed", "Failed", "Cancelled"):
                return phase
            if time.monotonic() > deadline:
                raise LocalClusterError(f"the job is still {phase} after {PATIENCE} s: {status.get('message')}")
            time.sleep(0.3)


def _steps(kubectl: Kubectl, console: Console, newest: dict[str, str]) -> None:
    """Read the agent's steps from its pod's log: kept as the newest one, or printed where there is no terminal."""
    pod = f"{NAME}-1"
    wait = kubectl.command("kubectl", "-n", JOBS, "wait", f"pod/{pod}", "--for=create", "--timeout=60s")
    subprocess.run(wait, capture_output=True, check=False)
    ready = "--for=jsonpath={.status.containerStatuses[0].started}=true"
    subprocess.run(
        kubectl.command("kubectl", "-n", JOBS, "wait", f"pod/{pod}", ready, "--timeout=120s"),
        capture_output=True,
        check=False,
    )
    log = subprocess.Popen(
        kubectl.command("kubectl", "-n", JOBS, "logs", "-f", pod),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert log.stdout is not None
    for line in log.stdout:
        text = _describe(parse_event(line))
        if text:
            newest["step"] = text
            if not console.is_terminal:
                print(f"  {text}", flush=True)


def _describe(event: Event | None) -> str:
    match event:
        case ToolUse():
            return f"{event.tool}: {event.summary}"[:140]
        case ToolResult() if event.is_error:
            return f"tool failed: {event.summary}"[:140]
        case Progress():
            return f"{event.percent} %: {event.message}"
        case AgentText():
            return event.text.strip().splitlines()[0][:140]
        case _:
            return ""


def show(kubectl: Kubectl, phase: str, image: str) -> int:
    """Print what came of the job; the exit code."""
    job = json.loads(kubectl("-n", JOBS, "get", "ccj", NAME, "-o", "json"))
    status = job["status"]
    print(f"\n$ kubectl get claudecodejobs -n {JOBS}")
    print(kubectl("-n", JOBS, "get", "claudecodejobs"))
    if phase != "Completed":
        print(f"The job ended as {phase}: {status.get('reason')}: {status.get('message')}")
        print(kubectl("-n", SYSTEM, "logs", "deployment/claudejobs", "--tail=20"))
        return 1
    print(f"The agent's answer:\n  {status['result']['text']}\n")
    print(f"hello.txt in its workspace:\n  {read_file(kubectl, image).strip()}\n")
    print("Its ProcessState row:")
    rows = ("exec", "deployment/claudejobs", "--", "claudejobs", "rows", "--uid", job["metadata"]["uid"])
    # The row follows the resource by some milliseconds.
    deadline = time.monotonic() + 10
    table = kubectl("-n", SYSTEM, *rows)
    while "completed" not in table and time.monotonic() < deadline:
        table = kubectl("-n", SYSTEM, *rows)
    print(table)
    print(f"The cluster keeps running: export KUBECONFIG={kubectl.cluster.kubeconfig}; `make cluster-down` removes it.")
    return 0 if "completed" in table else 1


def read_file(kubectl: Kubectl, image: str) -> str:
    """What the agent wrote, read by a pod of its own from the job's claim."""
    container = {
        "name": "reader",
        "image": image,
        "command": ["cat", "/workspace/hello.txt"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "workspace", "mountPath": "/workspace", "readOnly": True}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "hello-workspace"}}],
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "namespace": JOBS}, "spec": spec})
    kubectl("-n", JOBS, "wait", "pod/reader", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    return kubectl("-n", JOBS, "logs", "reader")


def _secret(namespace: str, name: str, data: dict[str, str]) -> dict[str, Any]:
    """A Secret; it goes to kubectl by standard input, so that no process list shows it."""
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LocalClusterError as error:
        sys.exit(f"make demo: {error}")
    except KeyboardInterrupt:
        sys.exit("make demo: interrupted; run it again to go on")
