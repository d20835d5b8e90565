"""The pod of an attempt: what it may do, what it is given, and what a job's author can and cannot change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from claudejobs.api.events import RunnerInput
from claudejobs.api.job import JobSpec
from claudejobs.reconcile.pod import INPUT_ANNOTATION, PodBuildError, build_pod, ignored_fields
from claudejobs.reconcile.views import PodView

from .model.objects import JOB_UID, Json, job_object, make_settings

SETTINGS = make_settings(job_timeout=3600, start_timeout=600)


def pod_of(spec: Json | None = None, attempt: int = 1, spent: float = 0.0, **settings: Any) -> Json:
    chosen = make_settings(**settings) if settings else SETTINGS
    return build_pod(job_object(spec), attempt, "session-1", spent, chosen)


def input_of(pod: Json) -> RunnerInput:
    return RunnerInput.model_validate_json(pod["metadata"]["annotations"][INPUT_ANNOTATION])


def container_of(pod: Json) -> Json:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_the_pod_is_restricted() -> None:
    pod = pod_of()
    spec, container = pod["spec"], container_of(pod)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(spec)


def test_the_pod_has_no_token_and_no_service_links_and_is_not_restarted() -> None:
    spec = pod_of()["spec"]
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["restartPolicy"] == "Never"


def test_every_volume_is_bounded_or_a_claim_and_the_input_is_read_only() -> None:
    pod = pod_of()
    for volume in pod["spec"]["volumes"]:
        assert "downwardAPI" in volume or volume["emptyDir"]["sizeLimit"]
    mounts = {m["name"]: m for m in container_of(pod)["volumeMounts"]}
    assert {v["name"] for v in pod["spec"]["volumes"]} == set(mounts)
    assert mounts["input"]["readOnly"] is True


def test_the_workspace_is_a_claim_when_the_job_names_one() -> None:
    volumes = pod_of({"workspace": {"persistentVolumeClaim": {"claimName": "repo"}}})["spec"]["volumes"]
    assert {"name": "workspace", "persistentVolumeClaim": {"claimName": "repo"}} in volumes
    sized = pod_of({"workspace": {"emptyDir": {"sizeLimit": "9Gi"}}})["spec"]["volumes"]
    assert {"name": "workspace", "emptyDir": {"sizeLimit": "9Gi"}} in sized


def test_the_pod_is_read_as_an_attempt_of_its_job() -> None:
    pod = pod_of(attempt=3)
    pod["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-03-01T12:00:00Z"}
    view = PodView.parse(pod)
    assert view is not None
    assert (view.name, view.job, view.job_uid, view.attempt) == ("job-3", ("team", "job"), JOB_UID, 3)


def test_the_same_job_gives_the_same_pod() -> None:
    spec = {"env": [{"name": "B", "value": "1"}, {"name": "A", "value": "2"}], "arguments": {"z": 1, "a": [None]}}
    assert json.dumps(pod_of(spec)) == json.dumps(pod_of(spec))


def test_the_input_reaches_the_runner_through_the_downward_api() -> None:
    spec = {
        "prompt": "Grüße, 世界 🚀",
        "timeoutSeconds": 60,
        "stallTimeoutSeconds": 30,
        "workingDirectory": "src",
        "env": [{"name": "COLOUR", "value": "blue"}],
        "arguments": {"ticket": "T-1"},
        "claude": {"maxTurns": 5, "outputSchema": {"properties": {"a": {"default": None}}}},
    }
    pod = pod_of(spec, attempt=2)
    given = input_of(pod)
    assert (given.prompt, given.attempt, given.session_id, given.job) == ("Grüße, 世界 🚀", 2, "session-1", "team/job")
    assert (given.timeout_seconds, given.stall_timeout_seconds, given.working_directory) == (60, 30, "src")
    assert given.env["COLOUR"] == "blue"
    assert json.loads(given.env["CLAUDE_JOB_ARGUMENTS"]) == {"ticket": "T-1"}
    assert given.claude.max_turns == 5
    assert given.claude.output_schema == {"properties": {"a": {"default": None}}}
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "input"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{INPUT_ANNOTATION}']"


def test_mcp_servers_are_in_the_form_of_the_sdk() -> None:
    servers = {"a": {"stdio": {"command": "x", "args": ["y"]}}, "b": {"http": {"url": "https://b"}}}
    given = input_of(pod_of({"claude": {"mcpServers": servers}})).claude.mcp_servers
    assert given["a"] == {"type": "stdio", "command": "x", "args": ["y"], "env": {}}
    assert given["b"] == {"type": "http", "url": "https://b", "headers": {}}


@pytest.mark.parametrize("prompt", ["a" * 131072, "é" * 100_000])
def test_an_input_that_fits_is_taken(prompt: str) -> None:
    assert input_of(pod_of({"prompt": prompt})).prompt == prompt


def test_an_input_that_does_not_fit_is_counted_in_bytes_and_names_the_fields() -> None:
    """131072 characters are allowed, and each of these has three bytes."""
    with pytest.raises(PodBuildError, match=r"spec.prompt, .* together have 39\d{4} bytes.* at most 245760"):
        pod_of({"prompt": "世" * 131072})


@pytest.mark.parametrize(("spent", "left"), [(0.0, 2.0), (0.5, 1.5), (2.0, 0.01), (3.0, 0.01)])
def test_an_attempt_may_spend_what_the_ones_before_have_left(spent: float, left: float) -> None:
    assert input_of(pod_of({"claude": {"maxBudgetUSD": 2.0}}, spent=spent)).claude.max_budget_usd == left


@pytest.mark.parametrize(
    "workspace", [{"persistentVolumeClaim": {"claimName": "repo"}}, {"volumeClaimTemplate": {"size": "1Gi"}}]
)
def test_on_a_lasting_workspace_the_runner_counts_itself(workspace: Json) -> None:
    spec = {"claude": {"maxBudgetUSD": 2.0}, "workspace": workspace}
    assert input_of(pod_of(spec, spent=1.5)).claude.max_budget_usd == 2.0


def test_the_kubelets_deadline_leaves_the_runner_time_to_end_by_itself() -> None:
    spec = {"timeoutSeconds": 100, "terminationGracePeriodSeconds": 300}
    assert pod_of(spec)["spec"]["activeDeadlineSeconds"] == 100 + 600 + 300 + 60
    assert pod_of({"terminationGracePeriodSeconds": 7})["spec"]["terminationGracePeriodSeconds"] == 7


@pytest.mark.parametrize(
    ("spec", "interrupt", "grace"),
    [
        ({}, 5, 15),
        ({"terminationGracePeriodSeconds": 6}, 2, 6),
        ({"terminationGracePeriodSeconds": 600}, 5, 600),
        ({"terminationGracePeriodSeconds": 60, "interruptSeconds": 30}, 30, 60),
        ({"interruptSeconds": 0}, 0, 15),
    ],
)
def test_the_runner_is_told_how_long_an_agent_that_is_stopped_has(
    spec: dict[str, Any], interrupt: float, grace: float
) -> None:
    given = RunnerInput.model_validate_json(pod_of(spec)["metadata"]["annotations"][INPUT_ANNOTATION])
    assert (given.interrupt_seconds, given.grace_seconds) == (interrupt, grace)
    assert given.interrupt_seconds < given.grace_seconds


def test_an_interrupt_as_long_as_the_grace_period_is_refused_with_both() -> None:
    with pytest.raises(ValidationError, match=r"interruptSeconds is 7, but must be less than .*, which is 7"):
        JobSpec.model_validate({"prompt": "x", "terminationGracePeriodSeconds": 7, "interruptSeconds": 7})


def test_the_key_comes_from_the_secret_and_is_not_in_the_pod() -> None:
    (env,) = container_of(pod_of())["env"]
    assert env["valueFrom"]["secretKeyRef"] == {"name": "claude-credentials", "key": "ANTHROPIC_API_KEY"}
    own = {"credentialsSecretRef": {"name": "mine", "key": "CLAUDE_CODE_OAUTH_TOKEN"}}
    (env,) = container_of(pod_of(own))["env"]
    assert (env["name"], env["valueFrom"]["secretKeyRef"]["name"]) == ("CLAUDE_CODE_OAUTH_TOKEN", "mine")
    _, url = container_of(pod_of(model_base_url="http://model"))["env"]
    assert url == {"name": "ANTHROPIC_BASE_URL", "value": "http://model"}


def test_no_autoscaler_moves_a_running_agent() -> None:
    """Whatever the author says, and the operator allows."""
    marks = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    own = {"karpenter.sh/do-not-disrupt": "false"}
    pod = pod_of({"podTemplate": {"annotations": own}}, allowed_metadata_domains=["karpenter.sh"])
    assert pod["metadata"]["annotations"].items() >= marks.items()


DISK = "ephemeral-storage"
REQUESTS, LIMITS = {"cpu": "250m", "memory": "512Mi", DISK: "512Mi"}, {"cpu": "2", "memory": "2Gi", DISK: "3072Mi"}


@pytest.mark.parametrize(
    ("own", "requests", "limits"),
    [
        ({}, REQUESTS, LIMITS),
        ({"limits": {"memory": "8Gi"}}, REQUESTS, LIMITS | {"memory": "8Gi"}),
        ({"limits": {"memory": "256Mi"}}, REQUESTS | {"memory": "256Mi"}, LIMITS | {"memory": "256Mi"}),
        ({"requests": {"cpu": "0.5"}}, REQUESTS | {"cpu": "0.5"}, LIMITS),
        ({"requests": {"cpu": "3000m"}}, REQUESTS | {"cpu": "3000m"}, LIMITS | {"cpu": "3000m"}),
        ({"requests": {"memory": "3e9"}}, REQUESTS | {"memory": "3e9"}, LIMITS | {"memory": "3e9"}),
        ({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}, REQUESTS | {"cpu": "1"}, LIMITS | {"cpu": "1"}),
        ({"limits": {DISK: "64Mi"}}, REQUESTS | {DISK: "64Mi"}, LIMITS | {DISK: "64Mi"}),
        ({"requests": {DISK: "5Gi"}}, REQUESTS | {DISK: "5Gi"}, LIMITS | {DISK: "5Gi"}),
        ({"limits": {"nvidia.com/gpu": "1"}}, REQUESTS, LIMITS | {"nvidia.com/gpu": "1"}),
    ],
)
def test_requests_and_limits_are_always_set_and_fit(own: Json, requests: Json, limits: Json) -> None:
    resources = container_of(pod_of({"podTemplate": {"resources": own}}))["resources"]
    assert resources == {"requests": requests, "limits": limits}


@pytest.mark.parametrize(
    ("workspace", "limit"),
    [
        ({"emptyDir": {"sizeLimit": "9Gi"}}, "10240Mi"),
        ({"emptyDir": {"sizeLimit": "1.5k"}}, "1025Mi"),
        ({"persistentVolumeClaim": {"claimName": "repo"}}, "1024Mi"),
    ],
)
def test_the_limit_of_disk_has_room_for_every_volume_and_the_log(workspace: Json, limit: str) -> None:
    assert container_of(pod_of({"workspace": workspace}))["resources"]["limits"][DISK] == limit


def test_the_clone_of_a_repository_costs_no_disk_of_its_own() -> None:
    git = {"git": {"url": "https://git.example/repo.git"}}
    assert container_of(pod_of({"workspace": git}))["resources"]["limits"] == LIMITS


METADATA = {"team": "blue", "example.org/x": "1", "evil.example/y": "2"}


def test_the_authors_metadata_is_filtered_by_domain() -> None:
    template = {"labels": METADATA, "annotations": METADATA}
    pod = pod_of({"podTemplate": template}, allowed_metadata_domains=["example.org"])
    for kind in ("labels", "annotations"):
        assert pod["metadata"][kind].items() >= {"team": "blue", "example.org/x": "1"}.items()
        assert "evil.example/y" not in pod["metadata"][kind]
    spec = JobSpec.model_validate({"prompt": "-", "podTemplate": template})
    assert ignored_fields(spec, make_settings(allowed_metadata_domains=["example.org"])) == [
        "spec.podTemplate.labels[evil.example/y]",
        "spec.podTemplate.annotations[evil.example/y]",
    ]


def test_the_operators_own_labels_cannot_be_changed() -> None:
    mine = {"claudecode.dev/attempt": "9", "app.kubernetes.io/managed-by": "me"}
    domains = ["claudecode.dev", "app.kubernetes.io"]
    labels = pod_of({"podTemplate": {"labels": mine}}, allowed_metadata_domains=domains)["metadata"]["labels"]
    assert labels["claudecode.dev/attempt"] == "1"
    assert labels["app.kubernetes.io/managed-by"] == "claudejobs"


def test_scheduling_is_passed_on_as_it_is_written() -> None:
    template = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": {}}
                ]
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "claudejobs"}},
            }
        ],
        "imagePullSecrets": [{"name": "registry"}],
    }
    spec = pod_of({"podTemplate": template})["spec"]
    assert {key: spec[key] for key in template} == template


@pytest.mark.parametrize(("allowed", "used"), [([], None), (["batch"], None), (["batch", "low"], "low")])
def test_a_priority_class_must_be_one_that_jobs_may_have(allowed: list[str], used: str | None) -> None:
    spec: Json = {"podTemplate": {"priorityClassName": "low"}}
    assert pod_of(spec, allowed_priority_classes=allowed)["spec"].get("priorityClassName") == used
    ignored = ignored_fields(
        JobSpec.model_validate({"prompt": "-"} | spec), make_settings(allowed_priority_classes=allowed)
    )
    assert ignored == ([] if used else ["spec.podTemplate.priorityClassName"])


@pytest.mark.parametrize(
    ("own", "prescribed", "used"),
    [(None, None, None), ("kata", None, "kata"), (None, "gvisor", "gvisor"), ("kata", "gvisor", "gvisor")],
)
def test_the_operators_runtime_class_comes_first(own: str | None, prescribed: str | None, used: str | None) -> None:
    spec: Json = {"podTemplate": {"runtimeClassName": own} if own else {}}
    assert pod_of(spec, runtime_class_name=prescribed)["spec"].get("runtimeClassName") == used
    ignored = ignored_fields(
        JobSpec.model_validate({"prompt": "-"} | spec), make_settings(runtime_class_name=prescribed)
    )
    assert ignored == (["spec.podTemplate.runtimeClassName"] if own and used != own else [])


def test_a_user_namespace_is_asked_for_when_the_operator_says_so() -> None:
    assert "hostUsers" not in pod_of()["spec"]
    assert pod_of(host_users=False)["spec"]["hostUsers"] is False
