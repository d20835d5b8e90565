"""The chart's files agree with each other and with the operator's settings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml

from claudejobs.gateway.settings import GatewaySettings
from claudejobs.settings import Settings
from tests.support.operator import REPOSITORY

CHART = REPOSITORY / "charts" / "claudejobs"

# The chart knows these itself, or they are secrets, which do not belong into values.
OF_THE_CHART = {
    "RUNNER_IMAGE",
    "RUNNER_IMAGE_PULL_POLICY",
    "WATCH_NAMESPACES",
    "CREDENTIALS_SECRET",
    "MODEL_BASE_URL",
    "MODEL_GATEWAY_URL",
    "DEFAULT_MODEL",
    "HEALTH_PORT",
    "LEADER_ELECTION",
    "LEASE_NAMESPACE",
    "LEASE_NAME",
    "DATABASE_URL",
}


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return loaded


def test_each_setting_is_a_value_of_the_chart() -> None:
    secrets = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    expected = {name.upper() for name in Settings.model_fields} - OF_THE_CHART - secrets
    assert set(schema()["properties"]["settings"]["properties"]) == expected


def test_the_deployment_sets_what_the_values_may_not() -> None:
    text = (CHART / "templates" / "deployment.yaml").read_text()
    for name in OF_THE_CHART:
        assert f"name: {name}" in text, name


OF_THE_GATEWAY = {"PORT", "ADMIN_PORT", "HOST", "WATCH_NAMESPACES", "UPSTREAM_URL", "KEY_FILE", "KEY_SCHEME"}
"""Its settings that the chart knows itself."""


def test_each_setting_of_the_gateway_is_a_value_of_the_chart() -> None:
    expected = {
        f"GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields if name.upper() not in OF_THE_GATEWAY
    }
    assert set(schema()["properties"]["gateway"]["properties"]["settings"]["properties"]) == expected


def closed_objects(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in node:
        yield path, node
        for name, inner in node["properties"].items():
            yield from closed_objects(inner, f"{path}.{name}")


def test_no_object_of_the_schema_takes_unknown_keys() -> None:
    opened = [path for path, node in closed_objects(schema()) if node.get("additionalProperties") is not False]
    assert opened == []


def test_values_and_schema_have_the_same_keys() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, node in closed_objects(schema()):
        if path in (".settings", ".gateway.settings"):
            continue  # has no defaults
        here = values
        for name in path.split(".")[1:]:
            here = here[name]
        # Helm itself adds `global`.
        assert set(here) == set(node["properties"]) - {"global"}, path or "the top"


def test_the_versions_are_one() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
