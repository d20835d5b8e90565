"""`make demo`: a first job on a real cluster, from nothing to the row that says completed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import yaml

import localcluster
from localcluster import Cluster, LocalClusterError, demo_queue
from localcluster.following import follow, printable
from localcluster.progress import say, step
from localcluster.settings import REPOSITORY

SYSTEM, JOBS, NAME = "claudejobs-system", "claudejobs-demo", "hello"
MODEL = "scripted-model"
USER = 65532
PATIENCE = 600
"""Seconds that the job may take."""
ROLLOUT = 300
"""Seconds that a Deployment may take; a loaded machine needs most of them."""


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

    def apply(self, *objects: dict[str, Any]) -> bool:
        """Apply objects; whether one that was there is another now."""
        return "configured" in self("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def roll_out(self, deployment: str) -> None:
        """Wait for a Deployment. Raises LocalClusterError with what its pods say when it does not come."""
        try:
            self("-n", SYSTEM, "rollout", "status", f"deployment/{deployment}", f"--timeout={ROLLOUT}s")
        except LocalClusterError as error:
            pods = self.glimpse("get", "pods", "-o", "wide")
            log = self.glimpse("logs", f"deployment/{deployment}", "--tail=20")
            raise LocalClusterError(f"{error}\n\n{pods}\nthe end of its log:\n{log}") from None

    def glimpse(self, *arguments: str) -> str:
        """What kubectl says about the operator's namespace, be it an error: for messages about other errors."""
        try:
            return self("-n", SYSTEM, *arguments)
        except LocalClusterError as error:
            return f"{error}\n"


def main() -> int:
    """Set everything up, run the job, show what came of it."""
    # Taken out of the environment, so that no program started from here inherits them.
    key, database = os.environ.pop("ANTHROPIC_API_KEY", ""), os.environ.pop("DATABASE_URL", "")
    if key:
        os.environ.setdefault("CLUSTER_EGRESS", "open")  # the real model is outside
    queue = os.environ.pop("QUEUE", "") not in ("", "0")
    if queue:
        demo_queue.check_node()
    cluster = localcluster.ensure()
    images = localcluster.build_and_load_images("claudejobs-operator", "claudejobs-runner")
    kubectl = Kubectl(cluster)
    if key:
        say("The model is the real one, with your ANTHROPIC_API_KEY.")
    else:
        say("The model is scripted, because ANTHROPIC_API_KEY is not set: a local server speaks the Messages API.")
        say("Everything else is real: API server, scheduler, kubelet, containerd, the pod, the Agent SDK and its CLI.")
    more: dict[str, Any] = {}
    if queue:
        kubectl.apply(_namespace(SYSTEM))
        more["redis"] = demo_queue.install_redis(kubectl, SYSTEM)
        kubectl.roll_out(demo_queue.REDIS)
    with step("Installing the operator"):
        install(kubectl, images, key, database, more)
    if queue:
        return demo_queue.run(kubectl, SYSTEM, JOBS, scripted=not key)
    prepare_workspace(kubectl)
    kubectl("-n", JOBS, "apply", "-f", str(REPOSITORY / "examples" / "hello.yaml"))
    say(f"Applied examples/hello.yaml in namespace {JOBS}.")
    try:
        follow(kubectl, JOBS, NAME, PATIENCE)
    except LocalClusterError as error:
        print(f"\n{error}")
    return show(kubectl, images["claudejobs-runner"])


def _namespace(name: str) -> dict[str, Any]:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def install(kubectl: Kubectl, images: dict[str, str], key: str, database: str, more: dict[str, Any]) -> None:
    """Install the chart with ``more`` values, and the scripted model where there is no key."""
    kubectl.apply(_namespace(SYSTEM), _namespace(JOBS))
    # The gateway's; no job's namespace has it, be it from a demo of former times.
    kubectl("-n", JOBS, "delete", "secret", "claude-credentials", "--ignore-not-found")
    kubectl.apply(_secret(SYSTEM, "claude-credentials", {"ANTHROPIC_API_KEY": key or "key-of-no-use"}))
    repository, _, tag = images["claudejobs-operator"].rpartition(":")
    values: dict[str, Any] = {
        "image": {"repository": repository, "tag": tag},
        "runner": {"image": images["claudejobs-runner"]},
        "watchNamespaces": [JOBS],
        "jobNamespaces": [JOBS],  # for its NetworkPolicy
        "createJobNamespaces": False,
        "gateway": {"replicas": 1},  # of a small machine
        # The chart's claim needs a StorageClass, which the local cluster has none of.
        "database": {"persistence": {"enabled": kubectl.cluster.kind != "local"}},
        **more,
    }
    moved = False
    if database:
        moved = kubectl.apply(_secret(SYSTEM, "claudejobs-database", {"DATABASE_URL": database}))
        values["database"] = {"existingSecret": "claudejobs-database"}
    if not key:
        kubectl.apply(*scripted_model(images["claudejobs-operator"]))
        values["model"] = {"baseURL": f"http://{MODEL}.{SYSTEM}.svc:8080"}
        values["networkPolicy"] = {"egress": []}
    chart = str(REPOSITORY / "charts" / "claudejobs")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    values["crds"] = {"enabled": False}  # applied above: the cluster's CRD may belong to a test run
    # helm that was cut short leaves a release "in progress", and refuses to go on for ever after.
    for state in ("pending-install", "pending-upgrade", "pending-rollback"):
        kubectl("-n", SYSTEM, "delete", "secret", "-l", f"owner=helm,name=claudejobs,status={state}")
    arguments = ("upgrade", "--install", "claudejobs", chart, "--namespace", SYSTEM, "--values", "-")
    kubectl.run("helm", *arguments, stdin=yaml.safe_dump(values))
    if moved:  # which no Deployment notices
        kubectl("-n", SYSTEM, "rollout", "restart", "deployment/claudejobs")
    for deployment in ("claudejobs", "claudejobs-gateway", *(() if key else (MODEL,))):
        kubectl.roll_out(deployment)


def scripted_model(image: str) -> list[dict[str, Any]]:
    """A Deployment of the scripted model, from the operator's image, and its Service."""
    code = (REPOSITORY / "images" / "scripted-model" / "scripted_model.py").read_text()
    labels = {"app": MODEL}
    meta = {"name": MODEL, "namespace": SYSTEM}
    container = {
        "name": "model",
        "image": image,
        # Under tini, because a PID 1 without handlers would ignore SIGTERM.
        "command": ["/usr/bin/tini", "--", "/opt/venv/bin/python", "/model/scripted_model.py"],
        "args": ["--host", "0.0.0.0", "--port", "8080"],  # noqa: S104
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "code", "mountPath": "/model"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
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


def prepare_workspace(kubectl: Kubectl) -> None:
    """Remove the last run's job and workspace."""
    with step("Making room for the job"):
        # Only what the demo made: the namespace may hold jobs of the person who tries things out.
        gone = ("--ignore-not-found", "--wait=true", "--timeout=120s")
        kubectl("-n", JOBS, "delete", "ccj", NAME, *gone)
        kubectl("-n", JOBS, "delete", "pod", "--selector", f"claudecode.dev/job={NAME}", *gone)
        kubectl("-n", JOBS, "delete", "pod", "reader", *gone)
        kubectl("-n", JOBS, "delete", "pvc", "hello-workspace", *gone)


def show(kubectl: Kubectl, image: str) -> int:
    """Print what came of the job; the exit code."""
    job = json.loads(kubectl("-n", JOBS, "get", "ccj", NAME, "-o", "json"))
    status = job.get("status", {})
    print(f"\n$ kubectl get claudecodejobs -n {JOBS}")
    print(kubectl("-n", JOBS, "get", "claudecodejobs", NAME))
    if status.get("phase") != "Completed":
        return _explain(kubectl, status)
    print(f"The agent's answer:\n  {printable(status.get('result', {}).get('text') or '')}\n")
    print(f"hello.txt in its workspace:\n  {printable(read_file(kubectl, image)).strip()}\n")
    print("Its ProcessState row:")
    rows = ("exec", "deployment/claudejobs", "--", "claudejobs", "rows", "--uid", job["metadata"]["uid"])
    # The row follows the resource by some milliseconds.
    deadline = time.monotonic() + 10
    table = kubectl("-n", SYSTEM, *rows)
    while "completed" not in table and time.monotonic() < deadline:
        time.sleep(0.5)
        table = kubectl("-n", SYSTEM, *rows)
    print(table)
    if "completed" not in table:
        print("The row should say completed by now. The end of the operator's log:")
        print(kubectl.glimpse("logs", "deployment/claudejobs", "--tail=20"))
        return 1
    print(f"The cluster keeps running: export KUBECONFIG={kubectl.cluster.kubeconfig}; `make cluster-down` removes it.")
    return 0


def _explain(kubectl: Kubectl, status: dict[str, Any]) -> int:
    print(
        f"The job is {status.get('phase', 'Pending')}: {status.get('reason')}: {printable(status.get('message', ''))}"
    )
    for line in status.get("logTail", []):
        print(f"  {printable(line)}")
    print("\nThe end of the operator's log:")
    print(kubectl.glimpse("logs", "deployment/claudejobs", "--tail=20"))
    return 1


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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        phase = kubectl("-n", JOBS, "get", "pod", "reader", "-o", "jsonpath={.status.phase}")
        if phase in ("Succeeded", "Failed"):  # a real agent may have written another file
            return kubectl("-n", JOBS, "logs", "reader")
        time.sleep(0.3)
    raise LocalClusterError(f"the pod that reads hello.txt is still {phase} after 60 s")


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
        print("\nmake demo: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(130)
