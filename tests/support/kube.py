"""A namespace of a real cluster, through real kubectl."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from kubernetes.client import ApiClient, ApiException, CoreV1Api, CustomObjectsApi
from kubernetes.config import new_client_from_config

from claudejobs.api.base import API_VERSION, GROUP, KIND, PLURAL, VERSION
from claudejobs.api.queue import QUEUE_PLURAL
from localcluster import Cluster

T = TypeVar("T")

_OUR_PLURALS = {"ccj": PLURAL, "ccq": QUEUE_PLURAL}


def wait_for(
    probe: Callable[[], T | None], what: str | Callable[[], str], timeout: float = 60.0, pause: float = 0.1
) -> T:
    """The first truthy answer of ``probe``; fails after ``timeout`` seconds, saying ``what`` did not come.

    ``what`` is a function where it tells of the state, which is that at the end then; ``pause`` is the time between two
    looks, seconds: longer where a look costs the machine much.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)


def job(name: str, prompt: str = "script: hello", **spec: Any) -> dict[str, Any]:
    """A job as its author would write it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"prompt": prompt, "claude": {"model": "claude-sonnet-4-5"}, **spec},
    }


@cache
def client_of(kubeconfig: Path) -> ApiClient:
    """For what tests read many times a second: a kubectl each time would take the machine's processors."""
    return new_client_from_config(str(kubeconfig))


@dataclass(frozen=True)
class Namespace:
    """One namespace. Names of objects are made unique by ``unique``."""

    cluster: Cluster
    name: str

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl in this namespace, whatever comes of it."""
        command = [*self._kubectl, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def start(self, *arguments: str, stdout: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a kubectl that watches; the caller ends it."""
        return subprocess.Popen([*self._kubectl, *arguments], stdin=subprocess.DEVNULL, stdout=stdout)

    @property
    def _kubectl(self) -> list[str]:
        return [*self.cluster.kubectl, "-n", self.name]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; its output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def rejected(self, obj: dict[str, Any]) -> str:
        """Apply an object that must be refused; the API server's message."""
        done = self.run("apply", "-f", "-", stdin=yaml.safe_dump(obj))
        assert done.returncode != 0, f"accepted: {obj}"
        return done.stderr

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object, ``None`` when there is none."""
        if plural := _OUR_PLURALS.get(kind):
            return self._get_ours(plural, name)
        done = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _get_ours(self, plural: str, name: str) -> dict[str, Any] | None:
        api = CustomObjectsApi(client_of(self.cluster.kubeconfig))
        try:
            obj: dict[str, Any] = api.get_namespaced_custom_object(GROUP, VERSION, self.name, plural, name)
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        return obj

    def status(self, name: str) -> dict[str, Any]:
        """A job's status."""
        return (self.get("ccj", name) or {}).get("status", {})

    def uid_of(self, name: str) -> str:
        """A job's UID."""
        obj = self.get("ccj", name)
        assert obj is not None
        return str(obj["metadata"]["uid"])

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The pods of a job."""
        api = CoreV1Api(client_of(self.cluster.kubeconfig))
        selector = f"claudecode.dev/job={name}"
        found = api.list_namespaced_pod(self.name, label_selector=selector, _preload_content=False)
        items: list[dict[str, Any]] = json.loads(found.data)["items"]
        return items

    def wait_phase(self, name: str, *phases: str, timeout: float = 120.0) -> dict[str, Any]:
        """Wait until a job is in one of the phases; its status."""
        seen: dict[str, Any] = {}

        def probe() -> dict[str, Any] | None:
            seen.clear()
            seen.update(self.status(name))
            return dict(seen) if seen.get("phase") in phases else None

        try:
            return wait_for(probe, f"job {name} in {phases}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {json.dumps(seen)}") from None

    def patch(self, name: str, **spec: Any) -> None:
        """Change a job's spec."""
        self.kubectl("patch", "ccj", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of a job, empty when it has none of that type."""
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})


def unique(stem: str) -> str:
    """A name that no other test has."""
    return f"{stem}-{uuid.uuid4().hex[:6]}"
