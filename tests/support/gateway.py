"""The model gateway as a process of its own, and attempts of jobs that exist in the API server only."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from claudejobs.api.events import GATEWAY_AUDIENCE
from claudejobs.reconcile.pod import build_pod
from claudejobs.settings import Settings

from .kube import Namespace, job
from .operator import command_environment, free_port, start_command, wait_for

KEY = "sk-ant-the-key-that-no-pod-may-see"


class GatewayProcess:
    """Starts and ends ``claudejobs gateway``. Settings are environment variables."""

    def __init__(
        self, namespace: Namespace, folder: Path, upstream: str, kubeconfig: Path | None = None, **settings: object
    ) -> None:
        self.namespace = namespace
        self._kubeconfig = kubeconfig or namespace.cluster.kubeconfig
        self.log = folder / "gateway.log"
        self.key_file = folder / "key"
        self.key_file.write_text(KEY + "\n")
        self.host = str(settings.get("host", "127.0.0.1"))
        self.port, self.admin_port = free_port(), free_port()
        self._settings = {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()} | {
            "GATEWAY_HOST": self.host,
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_PORT": str(self.admin_port),
            "GATEWAY_UPSTREAM_URL": upstream,
            "GATEWAY_KEY_FILE": str(self.key_file),
            "GATEWAY_WATCH_NAMESPACES": namespace.name,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where jobs call it."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> GatewayProcess:
        """Start, and wait until it is ready."""
        environment = command_environment(KUBECONFIG=str(self._kubeconfig))
        self.process = start_command("gateway", self.log, environment | self._settings)
        wait_for(lambda: self.state() == "ok", f"the gateway is ready; its log: {self.log}")
        return self

    def state(self) -> str:
        """What /readyz says, empty when nothing answers."""
        assert self.process is not None
        assert self.process.poll() is None, f"the gateway ended: {self.log.read_text()[-3000:]}"
        try:
            return str(json.loads(self.admin("/readyz"))["state"])
        except urllib.error.HTTPError as error:
            return str(json.loads(error.read())["state"])
        except OSError:
            return ""

    def admin(self, path: str) -> str:
        """A page of the port that jobs do not reach."""
        with urllib.request.urlopen(f"http://{self.host}:{self.admin_port}{path}", timeout=5) as response:
            body: bytes = response.read()
            return body.decode()

    def calls(self) -> list[dict[str, Any]]:
        """The log's lines of calls that have ended."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["message"] == "call"]

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


class Attempt:
    """A job whose attempt the operator has recorded, with a pod that no node runs."""

    def __init__(self, namespace: Namespace, name: str, **claude: Any) -> None:
        self.namespace = namespace
        self.name = name
        self.pod_name = f"{name}-1"
        made = job(name, claude={"model": "claude-sonnet-4-5", **claude}, userId="user-9")
        made["spec"]["podTemplate"] = {"nodeSelector": {"test": "nowhere"}}
        namespace.apply(made)
        self.pod = self.make_pod()
        self.record()

    def make_pod(self, attempt: int = 1) -> dict[str, Any]:
        """The pod that the operator makes."""
        obj = self.namespace.get("ccj", self.name)
        assert obj is not None
        pod = build_pod(obj, attempt, "00000000-0000-0000-0000-000000000000", 0.0, Settings())
        self.namespace.apply(pod)
        return pod

    def record(self, **status: Any) -> None:
        """Write the status, as the operator does."""
        recorded = {"phase": "Running", "attempt": 1, "podName": self.pod_name} | status
        patch = json.dumps({"status": recorded})
        self.namespace.kubectl("patch", "ccj", self.name, "--subresource=status", "--type=merge", "-p", patch)

    def token(self, audience: str = GATEWAY_AUDIENCE, pod: str | None = None) -> str:
        """A token such as the kubelet asks for on the pod's behalf."""
        return pod_token(self.namespace, pod or self.pod_name, audience)


def pod_token(namespace: Namespace, pod: str, audience: str = GATEWAY_AUDIENCE) -> str:
    """A token that is bound to a pod."""
    obj = namespace.get("pod", pod)
    assert obj is not None
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={obj['metadata']['uid']}")
    return namespace.kubectl("create", "token", "default", f"--audience={audience}", *bound).strip()
