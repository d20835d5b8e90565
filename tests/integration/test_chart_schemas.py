"""What the chart makes, held against the schemas of those who read it: Kubernetes and the Prometheus operator."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import localcluster
from localcluster import Cluster
from tests.support.helm import CHART, helm
from tests.support.kube import Namespace
from tests.support.operator import REPOSITORY

pytestmark = pytest.mark.e2e

PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
VALUES: dict[str, Any] = {
    "database": {"existingSecret": "db"},
    "jobNamespaces": ["team"],
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "maxCostUSDPerDay": 100.5},
        "dashboard": {"enabled": True},
    },
}


def strict(node: Any) -> Any:
    """The schema with no object open that names its fields. An int-or-string is published as a string."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    made = {key: strict(value) for key, value in node.items()}
    opened = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(node.get("properties"), dict) and not opened:
        made["additionalProperties"] = False
    return made


@pytest.fixture(scope="module")
def schemas(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Schema for each kind: of the API server's own OpenAPI, and of the Prometheus operator's CRDs."""
    folder = tmp_path_factory.mktemp("schemas")
    served = json.loads(Namespace(cluster, "default").kubectl("get", "--raw", "/openapi/v2"))["definitions"]
    text = json.dumps({"definitions": strict(served)}).replace("#/definitions/", "_all.json#/definitions/")
    (folder / "_all.json").write_text(text)
    for name, definition in served.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            suffix = "-".join(filter(None, (kind["group"].split(".")[0], kind["version"])))
            path = folder / f"{kind['kind'].lower()}-{suffix}.json"
            path.write_text(json.dumps({"$ref": f"_all.json#/definitions/{name}"}))
    module = REPOSITORY / "localcluster" / "charttools"
    subprocess.run(["go", "mod", "download", PROMETHEUS_OPERATOR], cwd=module, check=True, capture_output=True)
    where = ["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", PROMETHEUS_OPERATOR]
    source = Path(subprocess.run(where, cwd=module, check=True, capture_output=True, text=True).stdout.strip())
    for plural in ("podmonitors", "servicemonitors", "prometheusrules"):
        path = source / "example" / "prometheus-operator-crd" / f"monitoring.coreos.com_{plural}.yaml"
        crd = yaml.safe_load(path.read_text())["spec"]
        schema = strict(crd["versions"][0]["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        (folder / f"{crd['names']['kind'].lower()}-monitoring-v1.json").write_text(json.dumps(schema))
    return folder


def rendered(cluster: Cluster, values: dict[str, Any]) -> str:
    done = helm(cluster, "template", "release", CHART, "--namespace", "claudejobs-system", values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kubeconform(schemas: Path, text: str) -> dict[str, Any]:
    """Its verdict. Kinds without a schema are errors."""
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(localcluster.chart_tools() / "kubeconform"), "-strict", "-output", "json", "-summary"]
    command += ["-schema-location", location, "-verbose"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def test_all_that_the_chart_makes_is_of_its_kinds_schema(cluster: Cluster, schemas: Path) -> None:
    verdict = kubeconform(schemas, rendered(cluster, VALUES))
    wrong = [r for r in verdict["resources"] if r["status"] != "statusValid"]
    assert wrong == []
    kinds = {r["kind"] for r in verdict["resources"]}
    assert {"PodMonitor", "ServiceMonitor", "PrometheusRule", "CustomResourceDefinition", "Job"} <= kinds


@pytest.mark.parametrize(
    ("right", "wrong"), [("podMetricsEndpoints:", "podMetricEndpoints:"), ("maxUnavailable: 1", "maxUnavailabel: 1")]
)
def test_a_misspelt_field_would_be_found(cluster: Cluster, schemas: Path, right: str, wrong: str) -> None:
    text = rendered(cluster, VALUES)
    assert right in text
    verdict = kubeconform(schemas, text.replace(right, wrong))
    assert "statusInvalid" in {r["status"] for r in verdict["resources"]}


def test_prometheus_reads_the_alerts(cluster: Cluster) -> None:
    objects = yaml.safe_load_all(rendered(cluster, VALUES))
    (rule,) = [obj for obj in objects if obj and obj["kind"] == "PrometheusRule"]
    program = str(localcluster.chart_tools() / "rules")

    def read(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program], input=text, capture_output=True, text=True, check=False)

    text = yaml.safe_dump(rule["spec"])
    done = read(text)
    assert done.returncode == 0, done.stderr
    assert "ClaudejobsCost" in text
    assert read(text.replace("increase(", "increase((")).returncode == 1


def test_the_dashboard_is_json_whose_panels_ask_something(cluster: Cluster) -> None:
    objects = yaml.safe_load_all(rendered(cluster, VALUES))
    (found,) = [obj for obj in objects if obj and obj["kind"] == "ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(found["data"]["claudejobs.json"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 5
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
