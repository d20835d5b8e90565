"""Jobs that a real Kueue admits: they wait for quota, are preempted, and come back. kwok plays the nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import localcluster
from localcluster import Cluster, Kueue
from localcluster.shell import run
from tests.support.kube import Namespace, job, wait_for
from tests.support.kwok import attempt_stages, stop_stage
from tests.support.operator import REPOSITORY, OperatorProcess

pytestmark = pytest.mark.e2e

EXAMPLES = REPOSITORY / "examples" / "kueue"
PRIORITY = "kueue.x-k8s.io/priority-class"

Json = dict[str, Any]


def documented(command: str) -> str:
    """The commands of docs/operations.md on Kueue that begin with this one, to the end of their block."""
    section = (REPOSITORY / "docs" / "operations.md").read_text().split("\n## Kueue\n")[1].split("\n## ")[0]
    found = re.search(rf"^ +{re.escape(command)}.*(\n +.*)*", section, re.MULTILINE)
    assert found, f"docs/operations.md has no command {command}"
    return found[0]


class Scene:
    """The namespace whose pods Kueue manages, and the nodes on which they end up."""

    def __init__(self, namespace: Namespace, placement: Json, kueue: Kueue, kubeconfig: Path) -> None:
        self.namespace, self.kueue = namespace, kueue
        self._placement, self._kubeconfig = placement, kubeconfig
        kubeconfig.write_bytes(namespace.cluster.kubeconfig.read_bytes())
        self._shell(f"kubectl config set-context --current --namespace={namespace.name}")

    def follow(self, command: str) -> str:
        """Run what the documentation says, in this namespace; its output."""
        return self._shell(documented(command))

    def _shell(self, script: str) -> str:
        path = f"{self.namespace.cluster.bin_dir}:{os.environ['PATH']}"
        environment = {"KUBECONFIG": str(self._kubeconfig), "PATH": path}
        return run(["sh", "-ec", script], env=environment, cwd=REPOSITORY)

    def queued(self, name: str, prompt: str, **labels: str) -> None:
        """Make the job of the example, with another prompt, that must do with one attempt."""
        made: Json = yaml.safe_load((EXAMPLES / "job.yaml").read_text())
        made["metadata"]["name"] = name
        made["metadata"]["labels"] |= labels
        made["spec"] |= {"prompt": prompt, "retry": {"maxAttempts": 1}}
        made["spec"]["podTemplate"] |= self._placement
        self.namespace.apply(made)

    def plain(self, name: str, prompt: str) -> None:
        """Make a job of the same size that knows nothing of Kueue."""
        template = self._placement | {"resources": {"requests": {"cpu": "1"}}}
        self.namespace.apply(job(name, prompt, podTemplate=template))

    def waits(self, name: str) -> Json:
        """Wait until a job says that it waits for Kueue; its status."""

        def probe() -> Json | None:
            status = self.namespace.status(name)
            return status if status.get("reason") == "WaitingForKueue" else None

        return wait_for(probe, f"job {name} waits for Kueue")

    def told(self, words: str) -> str | None:
        """What the documented commands tell of jobs that wait, if that has these words."""
        told = self.follow("kubectl get ccj -o wide")
        return told if words in told else None

    def pod(self, name: str) -> Json:
        (pod,) = self.namespace.pods(name)
        return pod


@pytest.fixture
def scene(cluster: Cluster, own_namespace: Namespace, tmp_path: Path) -> Iterator[Scene]:
    with (
        localcluster.kwok(cluster, [*attempt_stages(), stop_stage()]) as nodes,
        localcluster.kueue(cluster, own_namespace.name) as kueue,
    ):
        scene = Scene(own_namespace, nodes.placement, kueue, tmp_path / "kubeconfig")
        scene.follow("kubectl apply -f examples/kueue/queues.yaml")
        database = f"sqlite:///{tmp_path}/state.db"
        operator = OperatorProcess(own_namespace, tmp_path / "log", database, allowed_priority_classes="urgent")
        try:
            operator.start()
            yield scene
        finally:
            operator.stop()


def test_jobs_wait_for_quota_give_way_to_urgent_ones_and_come_back(scene: Scene) -> None:
    namespace = scene.namespace
    scene.queued("first", "hang")
    namespace.wait_phase("first", "Running")
    for name in ("second", "third"):
        scene.queued(name, "complete")
    scene.follow("kubectl apply -f examples/kueue/job.yaml")
    scene.plain("plain", "complete")

    waiting = scene.waits("second")
    assert (waiting["phase"], waiting.get("startTime")) == ("Pending", None)
    assert waiting["message"].startswith("waits in Kueue's LocalQueue agents; ")
    held = scene.pod("second")
    assert held["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/admission"}]
    assert "nodeName" not in held["spec"]
    namespace.wait_phase("plain", "Completed")
    untouched = scene.pod("plain")["metadata"]
    assert "finalizers" not in untouched
    assert not [label for label in untouched["labels"] if label.startswith("kueue.")]

    scene.waits("admitted")
    told = wait_for(lambda: scene.told("insufficient unused quota for cpu"), "Kueue says what is missing")
    assert re.search(r"^admitted +Pending .*waits in Kueue's LocalQueue agents", told, re.MULTILINE)

    # Jobs that are held back obey, and nothing is left of their pods.
    namespace.patch("admitted", cancel=True)
    namespace.patch("third", suspend=True)
    namespace.wait_phase("admitted", "Cancelled")
    suspended = namespace.wait_phase("third", "Suspended")
    assert [one["outcome"] for one in suspended["attempts"]] == ["suspended"]
    wait_for(lambda: not namespace.pods("admitted") + namespace.pods("third"), "their pods are gone")

    scene.queued("urgent", "complete", **{PRIORITY: "urgent"})
    namespace.wait_phase("urgent", "Completed")
    # The job that had to go allows one attempt only: this one did not count.
    wait_for(lambda: namespace.status("first")["attempt"] == 2, "another attempt")
    lost = namespace.status("first")["attempts"][0]
    assert (lost["outcome"], lost["category"]) == ("failed", "preempted")
    assert "Preempted to accommodate a workload" in lost["message"]
    # Its first pod may be given the quota once more, until the garbage collector has removed that pod's workload. It
    # learns of a new kind of objects within half a minute only.
    again = namespace.wait_phase("first", "Running", timeout=240)
    assert [one.get("outcome") for one in again["attempts"]] == ["failed", None]

    namespace.patch("first", cancel=True)
    namespace.patch("third", suspend=False)
    for name in ("second", "third"):
        done = namespace.wait_phase(name, "Completed")
        assert done["attempts"][-1]["outcome"] == "completed"
    assert waiting["attempts"][0]["startTime"] < namespace.status("second")["attempts"][0]["admittedTime"]

    # Where Kueue is gone, nobody takes its finalizer from pods: a job that has waited ends all the same.
    scene.queued("holder", "hang")
    namespace.wait_phase("holder", "Running")
    scene.queued("left", "complete")
    wait_for(lambda: namespace.pods("left"), "the pod that is held back")
    scene.kueue.process.kill()
    scene.kueue.process.wait()
    namespace.patch("left", cancel=True)
    namespace.wait_phase("left", "Cancelled")
    assert scene.pod("left")["metadata"]["finalizers"] == ["kueue.x-k8s.io/managed"]
    scene.follow("kubectl get pods -l kueue.x-k8s.io/managed=true")
    wait_for(lambda: not namespace.pods("left"), "the pod of the job that was left")
