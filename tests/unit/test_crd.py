"""The CustomResourceDefinition: structural, described, and the one that is checked in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from claudejobs.api.crd import custom_resource_definition, structural
from claudejobs.api.job import MUTABLE_FIELDS, JobSpec
from claudejobs.api.status import MAX_ATTEMPTS

from .model.objects import Json

CHECKED_IN = Path(__file__).parents[2] / "crds" / "claudecodejobs.yaml"


def root() -> Json:
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: Json = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema node below this one, with its path."""
    yield path, schema
    for name, node in schema.get("properties", {}).items():
        yield from nodes(node, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}.{key}")


NODES = list(nodes(root()))


def test_the_file_is_what_the_models_say() -> None:
    assert yaml.safe_load(CHECKED_IN.read_text()) == custom_resource_definition()


def test_every_field_has_a_description() -> None:
    fields = [
        f"{path}.{name}"
        for path, node in NODES
        if path
        for name, field in node.get("properties", {}).items()
        if not field.get("description")
    ]
    assert fields == []


def test_the_schema_is_structural() -> None:
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "const", "definitions", "examples"}
    for path, node in NODES:
        assert not forbidden & set(node), path
        assert node.get("type") or node.get("x-kubernetes-preserve-unknown-fields"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path


def test_unbounded_data_is_bounded() -> None:
    """The API server's own estimate of what a CEL rule costs needs it."""
    for path, node in NODES:
        if path.startswith(".spec"):
            assert node.get("type") != "array" or "maxItems" in node, path


@pytest.mark.parametrize("name", sorted(JobSpec.model_fields))
def test_a_field_is_immutable_unless_it_is_meant_to_change(name: str) -> None:
    key = JobSpec.model_fields[name].alias or name
    rules = [rule["message"] for rule in root()["properties"]["spec"]["x-kubernetes-validations"]]
    assert (f"{key} cannot be changed once the job exists; make a new job" in rules) == (name not in MUTABLE_FIELDS)


def test_names_bounds_and_defaults_are_those_of_the_models() -> None:
    spec, status = root()["properties"]["spec"], root()["properties"]["status"]
    assert spec["required"] == ["prompt"]
    assert spec["properties"]["claude"]["properties"]["maxBudgetUSD"]["exclusiveMinimum"] is True
    assert spec["properties"]["retry"]["properties"]["backoff"]["properties"]["delaySeconds"]["default"] == 10
    assert "default" not in spec["properties"]["timeoutSeconds"]
    assert status["properties"]["attempts"]["maxItems"] == MAX_ATTEMPTS
    assert "costUSD" in status["properties"]


def test_a_union_of_types_is_refused() -> None:
    union: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}
    with pytest.raises(ValueError, match="union of 2 types"):
        structural(union, {})
