"""The chart through real helm and a real API server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from claudejobs.gateway.settings import GatewaySettings
from localcluster import Cluster
from tests.support.helm import CHART, helm
from tests.support.kube import Namespace
from tests.support.operator import REPOSITORY

pytestmark = pytest.mark.e2e

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
RULES_OF_A_READER = {"get", "list", "watch"}

SHAPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cluster database": {"database": {"existingSecret": "db"}, "replicas": 3},
    "no claim": {"database": {"persistence": {"enabled": False}}},
    "claim that exists": {"database": {"persistence": {"existingClaim": "mine"}}},
    "watched namespaces": {"watchNamespaces": ["OWN"], "rbac": {"aggregateToDefaultRoles": False}},
    "job namespaces": {"jobNamespaces": ["OWN"], "createJobNamespaces": False},
    "jobs hold the key": {"gateway": {"enabled": False}, "jobNamespaces": ["OWN"], "createJobNamespaces": False},
    "gateway in watched namespaces": {"watchNamespaces": ["OWN"], "gateway": {"replicas": 1}},
    "all the rest": {
        "gateway": {
            "replicas": 3,
            "credentialsKey": "TOKEN",
            "keyScheme": "bearer",
            "settings": {"GATEWAY_DRAIN_SECONDS": 5, "GATEWAY_PRICES": '{"m": {"input": 1, "output": 2}}'},
        },
        "crds": {"keep": False},
        "imagePullSecrets": [{"name": "pull"}],
        "runner": {"pullPolicy": "Always"},
        "model": {"baseURL": "http://model.example", "default": "claude-sonnet-4-5", "credentialsSecret": "other"},
        "settings": {"MAX_CONCURRENT_JOBS": 100000, "JOB_TIMEOUT": "604800", "HOST_USERS": False},
        "serviceAccount": {"name": "runner", "annotations": {"a.example/b": "c"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a.example/b": "true"},
        "podLabels": {"team": "agents"},
        "warmPools": {"enabled": True},
        "priorityClassName": "high",
        "image": {"digest": f"sha256:{64 * '0'}"},
        "networkPolicy": {"operator": {"egress": [{"ports": [{"protocol": "TCP", "port": 443}]}]}},
        "monitoring": {"dashboard": {"enabled": True}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "example.com/rack", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-one"}},
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: two}",
        ],
    },
}


def render(namespace: Namespace, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What the chart makes of the values."""
    done = helm(namespace.cluster, "template", "release", CHART, "--namespace", namespace.name, values=values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refused(namespace: Namespace, values: dict[str, Any]) -> str:
    """Why the chart does not take the values."""
    done = helm(namespace.cluster, "template", "release", CHART, "--namespace", namespace.name, values=values)
    assert done.returncode != 0, f"taken: {values}"
    return done.stderr


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [obj for obj in objects if obj["kind"] == kind]


def operator_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = [d for d in of_kind(objects, "Deployment") if d["metadata"]["name"] == "release-claudejobs"]
    return deployment


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = operator_of(objects)["spec"]["template"]["spec"]["containers"]
    return dict(one)


def test_helm_finds_nothing_to_complain_about(cluster: Cluster) -> None:
    done = helm(cluster, "lint", CHART, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_the_api_server_takes_what_the_chart_makes(own_namespace: Namespace, shape: str) -> None:
    values = yaml.safe_load(yaml.safe_dump(SHAPES[shape]).replace("OWN", own_namespace.name))
    objects = render(own_namespace, values)
    # Under Pod Security `restricted`, as the namespace is; a pod that violates it is warned of on standard error.
    done = own_namespace.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(objects))
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr


def test_each_variable_is_set_once(own_namespace: Namespace) -> None:
    names = [variable["name"] for variable in container(render(own_namespace, SHAPES["all the rest"]))["env"]]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"watchNamespace": "a"}, "watchNamespace"),
        ({"database": {"url": "postgresql://"}}, "url"),
        ({"settings": {"MAX_CONCURENT_JOBS": 3}}, "MAX_CONCURENT_JOBS"),
        ({"settings": {"DATABASE_URL": "sqlite:///x"}}, "DATABASE_URL"),
        ({"replicas": 0}, "replicas"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest"),
        ({"watchNamespaces": ["a"], "jobNamespaces": ["b"]}, "jobNamespaces has b, which is not among watchNamespaces"),
    ],
)
def test_wrong_values_are_refused_by_name(own_namespace: Namespace, values: dict[str, Any], named: str) -> None:
    assert named in refused(own_namespace, values)


def test_the_crds_are_those_of_the_models_and_survive_the_chart(own_namespace: Namespace) -> None:
    rendered = {
        crd["spec"]["names"]["plural"]: crd for crd in of_kind(render(own_namespace), "CustomResourceDefinition")
    }
    assert set(rendered) == {"claudecodejobs", "claudecodequeues", "claudecodepools"}
    for plural, crd in rendered.items():
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == yaml.safe_load((REPOSITORY / "crds" / f"{plural}.yaml").read_text())
    assert of_kind(render(own_namespace, {"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def test_the_operator_reads_no_secrets_and_changes_no_pods(own_namespace: Namespace) -> None:
    (role,) = [
        r for r in of_kind(render(own_namespace), "ClusterRole") if r["metadata"]["name"] == "release-claudejobs"
    ]
    allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert allowed == {
        "claudecodejobs": RULES_OF_A_READER | {"create", "patch", "delete"},
        "claudecodejobs/status": {"patch"},
        "claudecodequeues": RULES_OF_A_READER,
        "claudecodequeues/status": {"patch"},
        "events": {"create"},
        "namespaces": {"get"},
        "persistentvolumeclaims": {"get", "create"},
        "pods": RULES_OF_A_READER | {"create", "delete"},
        "pods/log": {"get"},
    }


def test_with_warm_pools_the_operator_may_change_pods(own_namespace: Namespace) -> None:
    (role,) = [
        r
        for r in of_kind(render(own_namespace, {"warmPools": {"enabled": True}}), "ClusterRole")
        if r["metadata"]["name"] == "release-claudejobs"
    ]
    allowed = [(resource, set(rule["verbs"])) for rule in role["rules"] for resource in rule["resources"]]
    assert [verbs for resource, verbs in allowed if resource == "pods"][1:] == [{"patch"}]
    assert ("claudecodepools", RULES_OF_A_READER) in allowed
    assert ("claudecodepools/status", {"patch"}) in allowed


def test_the_gateway_alone_has_the_key_and_only_asks(own_namespace: Namespace) -> None:
    objects = render(own_namespace, {"watchNamespaces": ["team-a"]})
    gateway = "release-claudejobs-gateway"
    pods = {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in of_kind(objects, "Deployment")}
    holders = [name for name, spec in pods.items() if "claude-credentials" in str(spec["volumes"])]
    assert holders == [gateway]
    roles = [r for kind in ("Role", "ClusterRole") for r in of_kind(objects, kind) if r["metadata"]["name"] == gateway]
    verbs = {resource: set(rule["verbs"]) for r in roles for rule in r["rules"] for resource in rule["resources"]}
    assert verbs == {"tokenreviews": {"create"}, "pods": RULES_OF_A_READER, "claudecodejobs": RULES_OF_A_READER}
    (cluster_wide,) = [r for r in of_kind(objects, "ClusterRole") if r["metadata"]["name"] == gateway]
    assert [rule["resources"] for rule in cluster_wide["rules"]] == [["tokenreviews"]]
    env = {v["name"]: v.get("value") for v in container(objects)["env"]}
    assert env["MODEL_GATEWAY_URL"] == f"http://{gateway}.{own_namespace.name}.svc"
    without = render(own_namespace, {"gateway": {"enabled": False}})
    assert not [obj for obj in without if obj["metadata"]["name"] == gateway]


def test_the_gateways_settings_are_valid(own_namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render(own_namespace, SHAPES["all the rest"])
    (deployment,) = [d for d in of_kind(objects, "Deployment") if d["metadata"]["name"] == "release-claudejobs-gateway"]
    spec = deployment["spec"]["template"]["spec"]
    for variable in spec["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = GatewaySettings.load()
    assert settings.upstream_url == "http://model.example"
    assert (settings.key_scheme, settings.prices["m"].output) == ("bearer", 2)
    assert spec["terminationGracePeriodSeconds"] > settings.drain_seconds


def test_a_release_moves_to_a_database_server_and_back(own_namespace: Namespace) -> None:
    embedded = {"crds": {"enabled": False}, "rbac": {"create": False}, "image": {"repository": "localhost/none"}}
    embedded |= {"database": {"persistence": {"enabled": False}}, "gateway": {"enabled": False}}
    shared = embedded | {"database": {"existingSecret": "db", "migrationJob": {"enabled": False}}}
    for values in (embedded, shared, embedded):
        arguments = ("upgrade", "--install", "release", CHART, "--namespace", own_namespace.name)
        done = helm(own_namespace.cluster, *arguments, values=values)
        assert done.returncode == 0, done.stderr
    deployment = own_namespace.get("deployment", "release-claudejobs")
    assert deployment is not None
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_job_pods_may_reach_dns_and_the_model_only(own_namespace: Namespace) -> None:
    egress = [{"to": [{"podSelector": {"matchLabels": {"app": "model"}}}]}]
    values = {"jobNamespaces": ["team-a"], "networkPolicy": {"egress": egress}}
    objects = render(own_namespace, values)
    (policy,) = [p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["namespace"] == "team-a"]
    assert policy["spec"]["podSelector"] == {"matchExpressions": [{"key": "claudecode.dev/job", "operator": "Exists"}]}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    dns, gateway, own = policy["spec"]["egress"]
    assert (len(dns["ports"]), own) == (4, egress[0])
    (deployment,) = [d for d in of_kind(objects, "Deployment") if d["metadata"]["name"] == "release-claudejobs-gateway"]
    selected = gateway["to"][0]["podSelector"]["matchLabels"].items()
    assert selected <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert gateway["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": own_namespace.name}
    assert gateway["ports"] == [{"protocol": "TCP", "port": 8080}]
    (made,) = of_kind(objects, "Namespace")
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert of_kind(render(own_namespace, values | {"createJobNamespaces": False}), "Namespace") == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_api_server_takes_the_examples(own_namespace: Namespace, path: Any) -> None:
    done = own_namespace.run("apply", "--dry-run=server", "-f", str(path))
    assert done.returncode == 0, done.stderr
    assert all("namespace" not in obj["metadata"] for obj in yaml.safe_load_all(path.read_text()))


def test_the_first_job_of_the_notes_is_valid(own_namespace: Namespace) -> None:
    arguments = ("install", "release", CHART, "--namespace", own_namespace.name, "--dry-run=client")
    done = helm(own_namespace.cluster, *arguments, values={"crds": {"enabled": False}})
    assert done.returncode == 0, done.stderr
    job = done.stdout.split("<<EOF\n")[1].split("EOF")[0]
    assert "spec:" in job
    own_namespace.kubectl("apply", "--dry-run=server", "-f", "-", stdin=job)
