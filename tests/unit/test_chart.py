"""The chart's files agree with each other and with the operator's settings."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from charts import generate
from claudejobs import __version__
from tests.support.operator import REPOSITORY

CHART = REPOSITORY / "charts" / "claudejobs"


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return loaded


@pytest.mark.parametrize(("program", "template"), [("operator", "deployment.yaml"), ("gateway", "gateway.yaml")])
def test_each_variable_is_set_by_the_chart_or_by_values(program: str, template: str) -> None:
    text = (CHART / "templates" / template).read_text()
    set_by_template = set(re.findall(r"- (?:\{name: |name: )([A-Z_]+)(?:,|$)", text, re.MULTILINE))
    node = schema()["properties"] if program == "operator" else schema()["properties"]["gateway"]["properties"]
    by_values = set(node["settings"]["properties"])
    model = generate.PROGRAMS[program]
    prefix = model.model_config.get("env_prefix", "")
    known = {f"{prefix}{name}".upper() for name in model.model_fields}
    assert set_by_template & by_values == set()
    # The Redis by its parts is for installations that have no chart.
    assert known - set_by_template - by_values <= {"REDIS_PASSWORD", "GATEWAY_HOST"}


def test_the_schema_and_the_readme_are_what_the_values_say() -> None:
    values = generate.read(generate.VALUES.read_text())
    assert generate.SCHEMA.read_text() == generate.render_schema(values)
    readme = generate.README.read_text()
    assert generate.render_readme(values, readme) == readme


def test_a_value_that_nobody_described_is_refused() -> None:
    with pytest.raises(SystemExit, match="line 3: b has no comment"):
        generate.read("# Described.\na: 1\nb: 2\n")


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
    images = (REPOSITORY / "images").glob("*/Dockerfile")
    built = {line for path in images for line in path.read_text().splitlines() if line.startswith("ARG VERSION=")}
    assert chart["version"] == chart["appVersion"] == project["version"] == __version__
    assert built == {f"ARG VERSION={__version__}"}


def metric_names(text: str) -> set[str]:
    """The metrics that a PromQL text speaks of, without the suffixes of a histogram's series."""
    names = set(re.findall(r"claudejobs_[a-z_]+", text))
    return {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in names}


def test_alerts_and_dashboard_speak_of_metrics_that_are_documented() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"^\| `(claudejobs_[a-z_]+)`", page, re.MULTILINE))
    for path in (CHART / "templates" / "alerts.yaml", CHART / "files" / "dashboard.json"):
        assert metric_names(path.read_text()) - documented == set(), path


def test_each_alert_says_what_to_do() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    alerts = re.findall(r"alert: (\w+)", (CHART / "templates" / "alerts.yaml").read_text())
    assert len(alerts) > 5
    assert re.findall(r"^### (Claudejobs\w+)", page, re.MULTILINE) == alerts
