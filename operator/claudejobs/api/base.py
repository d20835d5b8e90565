"""What all models of the resource share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "claudecode.dev"
VERSION = "v1alpha1"
KIND = "ClaudeCodeJob"
PLURAL = "claudecodejobs"
API_VERSION = f"{GROUP}/{VERSION}"

MAX_JOB_NAME = 57
"""A job's pods are called ``NAME-ATTEMPT`` and carry the name as a label value, which may have 63 characters."""


class SpecModel(BaseModel):
    """A part of the resource, as its author writes it: camelCase, and unknown fields are errors.

    The API server refuses what these models refuse, because its schema is generated from them; they are
    checked again when the operator reads a resource, in case an older schema let something through.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class StatusModel(BaseModel):
    """A part of the status: as the spec, but unknown fields are ignored, so that an older operator can read
    what a newer one wrote."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def cel(rule: str, message: str, field: str | None = None) -> dict[str, str]:
    """One ``x-kubernetes-validations`` entry: a CEL expression that the API server evaluates. ``field`` is the field
    that the error names, where that is not the one with the rule."""
    return {"rule": rule, "message": message} | ({"fieldPath": f".{field}"} if field else {})


def validations(*rules: dict[str, str], **extra: Any) -> dict[str, Any]:
    """``json_schema_extra`` with CEL rules and further schema keywords (written with their own names)."""
    return {"x-kubernetes-validations": list(rules), **extra}


Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
"""Name of an object in the job's namespace."""

LabelValue = Annotated[str, Field(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]

Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^([0-9]+|[0-9]*\.[0-9]+)(m|k|K|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei|[eE][+-]?[0-9]+)?$",
    ),
]
"""A Kubernetes quantity: 500m, 1.5, 2Gi."""
