"""Which warm pods there should be, which job may take which, and what a hand-over changes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from claudejobs.api.events import RunnerInput
from claudejobs.api.job import JobSpec
from claudejobs.api.pool import PoolSpec, PoolStatus
from claudejobs.kube.client import KubeClient
from claudejobs.kube.pools import Pools
from claudejobs.reconcile.pod import INPUT_ANNOTATION, build_pod
from claudejobs.reconcile.pool import (
    LONGEST_REPLACE_SECONDS,
    REPLACE_SECONDS,
    PoolView,
    WarmPod,
    build_warm_pod,
    choose,
    fingerprint,
    hand_over,
    plan,
    replace_delay,
)
from claudejobs.reconcile.views import JOB_LABEL, MANAGED_BY_LABEL
from claudejobs.settings import Settings

from .model.objects import job_view

Json = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = Settings()
GATEWAY = Settings(model_gateway_url="http://gateway")


def pool(size: int = 2, settings: Settings = SETTINGS, **template: Any) -> PoolView:
    spec = PoolSpec.model_validate({"size": size, "template": template})
    return PoolView("team", "ready", "pool-uid", "1", 1, deleting=False, spec=spec, status=PoolStatus())


def warm(name: str, **values: Any) -> WarmPod:
    pod = WarmPod(
        "team",
        name,
        f"uid-{name}",
        "7",
        ("team", "ready"),
        "pool-uid",
        fingerprint(JobSpec(prompt="-"), SETTINGS) or "",
        started=NOW - timedelta(seconds=90),
        ready=True,
        ended=False,
        deleting=False,
    )
    return replace(pod, **values)


def resource(**spec: Any) -> Json:
    meta = {"name": "job", "namespace": "team", "uid": "job-uid"}
    return {"metadata": meta, "spec": {"prompt": "do it", **spec}}


def names(pods: tuple[WarmPod, ...]) -> list[str]:
    return [pod.name for pod in pods]


@pytest.mark.parametrize(
    ("size", "pods", "held", "deleted", "created"),
    [
        (2, [], (), [], 2),
        (2, [warm("a"), warm("b")], (), [], 0),
        (1, [warm("a"), warm("b", ready=False)], (), ["b"], 0),  # one that waits is worth more than one that starts
        (0, [warm("a"), warm("b")], (), ["a", "b"], 0),
        (0, [warm("a"), warm("b")], ("a",), ["b"], 0),  # a job is about to have it
        (2, [warm("a"), warm("b")], ("a",), [], 1),
        (2, [warm("a"), warm("b", fingerprint="old")], (), ["b"], 1),
        (2, [warm("a"), warm("b", deleting=True)], (), [], 1),
        (1, [warm("a"), warm("b", ended=True)], (), ["b"], 0),
        (2, [warm("a"), warm("b", ended=True)], (), ["b"], 1),
    ],
)
def test_a_pool_becomes_what_it_should_be(
    size: int, pods: list[WarmPod], held: tuple[str, ...], deleted: list[str], created: int
) -> None:
    todo = plan(pool(size), pods, held, SETTINGS)
    assert (names(todo.delete), todo.create) == (deleted, created)


def test_pods_that_end_by_themselves_are_replaced_after_a_pause() -> None:
    todo = plan(pool(2), [warm("a"), warm("b", ended=True)], (), SETTINGS)
    assert (names(todo.delete), todo.create, todo.ready, todo.lost) == (["b"], 1, 1, True)
    assert not plan(pool(2), [warm("a"), warm("b", deleting=True, ended=True)], (), SETTINGS).lost
    assert [replace_delay(losses) for losses in (1, 2, 3, 100)] == [
        REPLACE_SECONDS,
        2 * REPLACE_SECONDS,
        4 * REPLACE_SECONDS,
        LONGEST_REPLACE_SECONDS,
    ]


def test_a_pool_that_goes_or_cannot_be_read_is_left_alone() -> None:
    for view in (replace(pool(2), deleting=True), replace(pool(2), spec=None)):
        todo = plan(view, [warm("a", ended=True)], (), SETTINGS)
        assert (todo.delete, todo.create) == ((), 0)


def test_a_new_image_makes_pods_old() -> None:
    todo = plan(pool(1), [warm("a")], (), Settings(runner_image="new"))
    assert (names(todo.delete), todo.create) == (["a"], 1)


def test_a_job_takes_the_pod_that_has_waited_longest() -> None:
    wanted = fingerprint(JobSpec(prompt="x"), SETTINGS)
    older = warm("z", started=NOW - timedelta(hours=1))
    assert choose([warm("a"), older], wanted, ()) == older
    assert choose([warm("a"), older], wanted, ("z",)) == warm("a")
    for unfit in ({"ready": False}, {"ended": True}, {"deleting": True}, {"fingerprint": "other"}, {"started": None}):
        assert choose([warm("a", **unfit)], wanted, ()) is None
    assert choose([warm("a", fingerprint="")], None, ()) is None


@pytest.mark.parametrize("settings", [SETTINGS, GATEWAY])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"timeoutSeconds": 60, "env": [{"name": "A", "value": "b"}], "claude": {"maxTurns": 3}},
        {"workspace": {"emptyDir": {"sizeLimit": "2Gi"}}},
    ],
)
def test_jobs_that_differ_in_what_the_runner_is_told_take_pods_of_one_pool(spec: Json, settings: Settings) -> None:
    made = build_warm_pod(pool(), settings)["metadata"]["annotations"]["claudecode.dev/pool-fingerprint"]
    assert fingerprint(JobSpec.model_validate({"prompt": "x", **spec}), settings) == made


@pytest.mark.parametrize(
    "spec",
    [
        {"podTemplate": {"labels": {"a": "b"}}},
        {"podTemplate": {"annotations": {"a": "b"}}},
        {"podTemplate": {"resources": {"limits": {"memory": "4Gi"}}}},
        {"podTemplate": {"nodeSelector": {"a": "b"}}},
        {"credentialsSecretRef": {"name": "other"}},
        {"terminationGracePeriodSeconds": 16},
        {"workspace": {"emptyDir": {"sizeLimit": "3Gi"}}},
        {"workspace": {"persistentVolumeClaim": {"claimName": "c"}}},
        {"workspace": {"volumeClaimTemplate": {"size": "1Gi"}}},
        {"workspace": {"git": {"url": "https://host/r.git"}}},
    ],
)
def test_a_job_whose_pod_would_be_another_one_starts_cold(spec: Json) -> None:
    assert fingerprint(JobSpec.model_validate({"prompt": "x", **spec}), SETTINGS) != fingerprint(
        JobSpec(prompt="-"), SETTINGS
    )


@pytest.mark.parametrize("settings", [SETTINGS, GATEWAY])
def test_a_waiting_pod_is_the_jobs_pod_without_a_job(settings: Settings) -> None:
    waiting = build_warm_pod(pool(), settings)
    built = build_pod(resource(), 1, "session", 0.0, settings)
    assert set(waiting["metadata"]["labels"]) >= {JOB_LABEL, MANAGED_BY_LABEL}, "NetworkPolicies select by them"
    assert INPUT_ANNOTATION not in waiting["metadata"]["annotations"]
    assert "activeDeadlineSeconds" not in waiting["spec"]
    assert waiting["spec"] == {k: v for k, v in built["spec"].items() if k != "activeDeadlineSeconds"}


def test_a_hand_over_is_one_patch_over_the_very_pod_and_its_deadline_counts_from_now() -> None:
    patch = hand_over(warm("a"), resource(timeoutSeconds=100), 2, "session", 0.0, SETTINGS, NOW)
    built = build_pod(resource(timeoutSeconds=100), 2, "session", 0.0, SETTINGS)
    meta = patch["metadata"]
    assert (meta["uid"], meta["resourceVersion"]) == ("uid-a", "7")
    for part in ("labels", "annotations", "ownerReferences"):
        assert meta[part] == built["metadata"][part]
    assert RunnerInput.model_validate(json.loads(meta["annotations"][INPUT_ANNOTATION])).prompt == "do it"
    assert patch["spec"] == {"activeDeadlineSeconds": built["spec"]["activeDeadlineSeconds"] + 90}


def test_a_pod_that_a_job_has_taken_is_no_pools_any_more() -> None:
    waiting = build_warm_pod(pool(), SETTINGS)
    waiting["metadata"] |= {"name": "ready-warm-x", "uid": "u", "resourceVersion": "7"}
    states = [{"name": "runner", "state": {"running": {}}}]
    waiting["status"] = {"phase": "Running", "startTime": "2026-03-01T11:00:00Z", "containerStatuses": states}
    seen = WarmPod.parse(waiting)
    assert seen is not None
    assert seen.free
    waiting["metadata"] |= hand_over(seen, resource(), 1, "session", 0.0, SETTINGS, NOW)["metadata"]
    assert WarmPod.parse(waiting) is None


async def test_a_pool_whose_pods_end_is_filled_after_longer_and_longer_pauses() -> None:
    """No pod is made before the pause is over, though the dead one has left the list."""
    pools = Pools(cast(KubeClient, None), Settings(warm_pools=True))
    lost, calm = plan(pool(1), [warm("a", ended=True)], (), SETTINGS), plan(pool(1), [], (), SETTINGS)
    key = ("team", "ready")
    assert pools.pause(key, calm) == 0
    assert REPLACE_SECONDS - 1 < pools.pause(key, lost) <= REPLACE_SECONDS
    assert pools.pause(key, calm) > REPLACE_SECONDS - 1
    assert pools.pause(key, lost) > REPLACE_SECONDS


async def test_a_job_of_kueue_is_offered_no_pod() -> None:
    pools = Pools(cast(KubeClient, None), Settings(warm_pools=True))
    waiting = build_warm_pod(pool(), SETTINGS)
    waiting["metadata"] |= {"name": "ready-warm-x", "uid": "u", "resourceVersion": "7"}
    states = [{"name": "runner", "state": {"running": {}}}]
    waiting["status"] = {"phase": "Running", "startTime": "2026-03-01T11:00:00Z", "containerStatuses": states}
    pools.on_pod("ADDED", waiting)
    assert pools.offer(job_view()) == "ready-warm-x"
    assert pools.offer(job_view(labels={"kueue.x-k8s.io/queue-name": "main"})) is None
