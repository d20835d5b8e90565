"""What the API server itself refuses: bad input is seen where the author looks, before anything runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.kube import Namespace, job, unique

pytestmark = pytest.mark.e2e


def template(**fields: Any) -> dict[str, Any]:
    return {"podTemplate": fields}


REJECTED = [
    ("unknown field", {"promtp": "x"}, 'unknown field "spec.promtp"'),
    ("unknown nested field", {"claude": {"modle": "x"}}, 'unknown field "spec.claude.modle"'),
    ("empty prompt", {"prompt": ""}, "spec.prompt"),
    ("prompt too long", {"prompt": "x" * 131073}, "spec.prompt"),
    ("timeout 0", {"timeoutSeconds": 0}, "spec.timeoutSeconds"),
    ("timeout of a week and a second", {"timeoutSeconds": 604801}, "spec.timeoutSeconds"),
    ("escape from the workspace", {"workingDirectory": "../.."}, "must be a relative path inside the workspace"),
    ("hidden escape", {"workingDirectory": "a/../../b"}, "must be a relative path inside the workspace"),
    ("absolute working directory", {"workingDirectory": "/etc"}, "must be a relative path inside the workspace"),
    ("reserved label", template(labels={"claudecode.dev/job": "other"}), "reserved"),
    ("reserved label of Kubernetes", template(labels={"app.kubernetes.io/managed-by": "x"}), "reserved"),
    (
        "reserved annotation",
        template(annotations={"container.apparmor.security.beta.kubernetes.io/runner": "u"}),
        "res",
    ),
    ("bad label value", template(labels={"team": "a b"}), "spec.podTemplate.labels"),
    ("bad quantity", template(resources={"limits": {"memory": "much"}}), "spec.podTemplate.resources"),
    ("system priority class", template(priorityClassName="system-node-critical"), "system-"),
    ("host path", template(volumes=[{"hostPath": {"path": "/"}}]), "unknown field"),
    (
        "toleration with a typo",
        template(tolerations=[{"operator": "Exist"}]),
        "spec.podTemplate.tolerations[0].operator",
    ),
    ("model of wrong type", {"claude": {"model": 3}}, "spec.claude.model"),
    ("model with spaces", {"claude": {"model": "a b"}}, "spec.claude.model"),
    ("tool list of wrong type", {"claude": {"allowedTools": "Bash"}}, "spec.claude.allowedTools"),
    ("unknown permission mode", {"claude": {"permissionMode": "yolo"}}, "spec.claude.permissionMode"),
    ("no budget at all", {"claude": {"maxBudgetUSD": 0}}, "spec.claude.maxBudgetUSD"),
    ("MCP server of no kind", {"claude": {"mcpServers": {"a": {}}}}, "exactly one of stdio and http"),
    (
        "two workspaces",
        {"workspace": {"emptyDir": {}, "persistentVolumeClaim": {"claimName": "c"}}},
        "at most one of emptyDir, persistentVolumeClaim and volumeClaimTemplate",
    ),
    (
        "a claim of the job's own and another",
        {"workspace": {"volumeClaimTemplate": {"size": "1Gi"}, "persistentVolumeClaim": {"claimName": "c"}}},
        "at most one of emptyDir, persistentVolumeClaim and volumeClaimTemplate",
    ),
    ("claim without a size", {"workspace": {"volumeClaimTemplate": {}}}, "spec.workspace.volumeClaimTemplate.size"),
    (
        "claim with an unknown retention",
        {"workspace": {"volumeClaimTemplate": {"size": "1Gi", "retentionPolicy": "Keep"}}},
        "spec.workspace.volumeClaimTemplate.retentionPolicy",
    ),
    (
        "claim for one pod and for many",
        {"workspace": {"volumeClaimTemplate": {"size": "1Gi", "accessModes": ["ReadWriteOncePod", "ReadWriteMany"]}}},
        "ReadWriteOncePod cannot be combined",
    ),
    ("git from a file", {"workspace": {"git": {"url": "file:///etc"}}}, "spec.workspace.git.url"),
    (
        "git option as ref",
        {"workspace": {"git": {"url": "https://x/y", "ref": "--upload-pack=x"}}},
        "workspace.git.ref",
    ),
    ("reserved variable", {"env": [{"name": "ANTHROPIC_BASE_URL", "value": "http://x"}]}, "reserved"),
    ("linker variable", {"env": [{"name": "LD_PRELOAD", "value": "x"}]}, "reserved"),
    ("variable twice", {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "Duplicate value"),
    ("variable from a secret", {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}, "unknown field"),
    ("another key of a secret", {"credentialsSecretRef": {"name": "s", "key": "password"}}, "credentialsSecretRef.key"),
    (
        "interrupt as long as the grace period",
        {"interruptSeconds": 15},
        "spec.interruptSeconds: Invalid value",
    ),
    ("no attempts", {"retry": {"maxAttempts": 0}}, "spec.retry.maxAttempts"),
]


@pytest.mark.parametrize(("spec", "message"), [r[1:] for r in REJECTED], ids=[r[0] for r in REJECTED])
def test_a_bad_spec_is_rejected_with_its_field(namespace: Namespace, spec: dict[str, Any], message: str) -> None:
    bad = job("bad")
    bad["spec"] |= spec
    assert message in namespace.rejected(bad)


@pytest.mark.parametrize("name", ["a" * 58, "dots.are.not", "9" * 63])
def test_a_name_that_its_pods_could_not_have_is_rejected(namespace: Namespace, name: str) -> None:
    assert "at most 57 characters" in namespace.rejected(job(name))


def test_a_name_of_57_characters_is_taken(namespace: Namespace) -> None:
    namespace.apply(job("a" * 57, suspend=True))
    namespace.kubectl("delete", "ccj", "a" * 57)


class TestChanges:
    """What may change in a job that exists. The job is suspended: nothing runs."""

    @pytest.fixture
    def name(self, namespace: Namespace) -> str:
        name = unique("fixed")
        namespace.apply(job(name, suspend=True, metadata={"ticket": 1}, env=[{"name": "A", "value": "1"}]))
        return name

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("prompt", "another"),
            ("taskId", "added"),
            ("env", None),
            ("metadata", {"ticket": 2}),
            ("claude", {"model": "another"}),
            ("workspace", {"emptyDir": {"sizeLimit": "1Gi"}}),
            ("retry", {"maxAttempts": 9}),
            ("podTemplate", {"labels": {"a": "b"}}),
        ],
    )
    def test_the_spec_cannot_change(self, namespace: Namespace, name: str, field: str, value: Any) -> None:
        changed = job(name, suspend=True, metadata={"ticket": 1}, env=[{"name": "A", "value": "1"}])
        changed["spec"][field] = value
        if value is None:
            del changed["spec"][field]
        assert f"{field} cannot be changed once the job exists" in namespace.rejected(changed)

    def test_suspend_and_ttl_may_change(self, namespace: Namespace, name: str) -> None:
        namespace.patch(name, ttlSecondsAfterFinished=60)
        namespace.patch(name, ttlSecondsAfterFinished=None)

    def test_cancel_cannot_be_undone(self, namespace: Namespace, name: str) -> None:
        namespace.patch(name, cancel=True)
        done = namespace.run("patch", "ccj", name, "--type=merge", "-p", '{"spec":{"cancel":false}}')
        assert "cancel cannot be undone" in done.stderr
        done = namespace.run("patch", "ccj", name, "--type=merge", "-p", '{"spec":{"cancel":null}}')
        assert "cancel cannot be undone" in done.stderr


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("queueName", "tasks", "others"),
        ("prefix", "bull", "horse"),
        ("targetNamespace", None, "default"),
        ("targetNamespace", "default", None),
        ("targetNamespace", "default", "others"),
    ],
)
def test_where_a_queue_leads_cannot_change(namespace: Namespace, field: str, old: str | None, new: str | None) -> None:
    spec = {"queueName": "tasks", "suspend": True, field: old}
    queue = {
        "apiVersion": "claudecode.dev/v1alpha1",
        "kind": "ClaudeCodeQueue",
        "metadata": {"name": unique("queue")},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }
    namespace.apply(queue)
    patch = json.dumps({"spec": {field: new, "lookAhead": 5}})
    done = namespace.run("patch", "ccq", queue["metadata"]["name"], "--type=merge", "-p", patch)
    assert f"{field} cannot be changed; make another ClaudeCodeQueue" in done.stderr
    namespace.kubectl("patch", "ccq", queue["metadata"]["name"], "--type=merge", "-p", '{"spec":{"lookAhead":5}}')


def test_the_resource_is_listed_as_documented(namespace: Namespace) -> None:
    name = unique("listed")
    namespace.apply(job(name, suspend=True, taskId="task-1", userId="user-1"))
    short = namespace.kubectl("get", "ccj", name).splitlines()[0].split()
    everything = namespace.kubectl("get", "all", "-o", "wide").splitlines()
    wide = everything[next(n for n, line in enumerate(everything) if "PHASE" in line) :]
    assert short == ["NAME", "PHASE", "PROGRESS", "ATTEMPT", "COST", "AGE"]
    assert wide[0].split()[6:] == ["POD", "TASK", "USER", "MODEL", "MESSAGE"]
    assert any("task-1" in line and "user-1" in line for line in wide)
    explained = namespace.kubectl("explain", "ccj.spec.workingDirectory")
    assert "relative to the workspace" in " ".join(explained.split())
