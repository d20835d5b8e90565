"""Writes the CustomResourceDefinitions from the pydantic models.

The models are the single source: names, descriptions, defaults, bounds and CEL rules. What a structural schema
cannot hold (``$ref``, ``anyOf`` with null, titles) is resolved or dropped here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

from .base import GROUP, KIND, MAX_JOB_NAME, PLURAL, VERSION, cel
from .job import INTERRUPT_RULE, MUTABLE_FIELDS, JobSpec
from .pool import POOL_KIND, POOL_PLURAL, PoolSpec, PoolStatus
from .queue import QUEUE_KIND, QUEUE_PLURAL, QueueSpec, QueueStatus
from .status import JobStatus

_KEPT = {
    "type",
    "format",
    "description",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    "required",
}


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Turn one JSON Schema node of pydantic's into a structural schema node.

    Raises:
        ValueError: the node has a form that Kubernetes does not take (a union of types).
    """
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return structural({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    if "anyOf" in schema:
        # An optional field: Kubernetes says so by leaving it out of `required`, not by null.
        variants = [v for v in schema["anyOf"] if v.get("type") != "null"]
        if len(variants) != 1:
            raise ValueError(f"a union of {len(variants)} types cannot be in a structural schema: {schema}")
        rest = {k: v for k, v in schema.items() if k not in ("anyOf", "default")}
        return structural({**variants[0], **rest}, definitions)
    out = {k: v for k, v in schema.items() if k in _KEPT or k.startswith("x-kubernetes-")}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    if "exclusiveMinimum" in schema:
        out |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if schema.get("format") == "date-time":
        out["type"] = "string"
    if "properties" in schema:
        out["properties"] = {name: structural(node, definitions) for name, node in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(schema["additionalProperties"], definitions)
        if "maxProperties" in schema:
            out["maxProperties"] = schema["maxProperties"]
    if "items" in schema:
        out["items"] = structural(schema["items"], definitions)
    if out.get("x-kubernetes-preserve-unknown-fields") and out.get("type") != "object":
        out.pop("default", None)
    return out


def _immutable(model: type[BaseModel], names: Iterable[str], message: str) -> list[dict[str, str]]:
    """Rules for the spec as a whole, because a rule on an optional field is not asked when the field is added or
    removed."""
    rules = []
    for name in names:
        field = model.model_fields[name]
        key = field.serialization_alias or field.alias or name
        same = (
            f"self.{key} == oldSelf.{key}"
            if field.is_required()
            else (f"has(self.{key}) == has(oldSelf.{key}) && (!has(self.{key}) || self.{key} == oldSelf.{key})")
        )
        rules.append(cel(same, f"{key} cannot be changed{message}"))
    return rules


def _job_rules() -> list[dict[str, str]]:
    names = [name for name in JobSpec.model_fields if name not in MUTABLE_FIELDS]
    rules = [INTERRUPT_RULE, *_immutable(JobSpec, names, " once the job exists; make a new job")]
    rules.append(
        cel(
            "!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)",
            "cancel cannot be undone; make a new job",
        )
    )
    return rules


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return structural(schema, schema.get("$defs", {}))


def _column(name: str, path: str, kind: str = "string", priority: int = 0, description: str = "") -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "priority": priority}
    return column | ({"description": description} if description else {})


COLUMNS = [
    _column("Phase", ".status.phase"),
    _column("Progress", ".status.progress", "integer", description="Percent."),
    _column("Attempt", ".status.attempt", "integer"),
    _column("Cost", ".status.costUSD", "number", description="US dollars, all attempts."),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Pod", ".status.podName", priority=1),
    _column("Task", ".spec.taskId", priority=1),
    _column("User", ".spec.userId", priority=1),
    _column("Model", ".spec.claude.model", priority=1),
    _column("Message", ".status.message", priority=1),
]


SELECTABLE = [".status.phase", ".status.reason", ".spec.taskId", ".spec.userId"]
"""Fields for ``kubectl get --field-selector``, such as ``status.phase=Failed``."""


QUEUE_COLUMNS = [
    _column("Queue", ".spec.queueName"),
    _column("Accepted", '.status.conditions[?(@.type=="Accepted")].status', description="Whether it is drained."),
    _column("Connected", ".status.connected", "boolean"),
    _column("Waiting", ".status.counts.waiting", "integer"),
    _column("Prioritized", ".status.counts.prioritized", "integer", priority=1),
    _column("Delayed", ".status.counts.delayed", "integer", priority=1),
    _column("Held", ".status.held", "integer", description="Fetched by this operator and not finished."),
    _column("Dead", ".status.counts.deadLetter", "integer", description="In the dead-letter queue."),
    _column("Lag", ".status.lagSeconds", "integer", description="Age of the job that waits longest, seconds."),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Error", ".status.lastError", priority=1),
]


POOL_COLUMNS = [
    _column("Size", ".spec.size", "integer"),
    _column("Ready", ".status.ready", "integer", description="Pods that wait for a job."),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Message", ".status.message", priority=1),
]


def custom_resource_definition() -> dict[str, Any]:
    """The CustomResourceDefinition of ClaudeCodeJob, ready to be written as YAML."""
    spec = _schema(JobSpec)
    own = JobSpec.__annotations__
    spec["properties"] = dict(sorted(spec["properties"].items(), key=lambda item: to_snake(item[0]) not in own))
    spec["x-kubernetes-validations"] = _job_rules()
    named = cel(
        f"self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= {MAX_JOB_NAME}",
        f"metadata.name must be lower-case letters, digits and '-', at most {MAX_JOB_NAME} characters, "
        "because the job's pods are called NAME-ATTEMPT",
    )
    version = {"selectableFields": [{"jsonPath": path} for path in SELECTABLE], "additionalPrinterColumns": COLUMNS}
    about = "A job for Claude Code: one isolated pod per attempt runs the agent until it is done."
    root = _root(about, spec, _schema(JobStatus)) | {"x-kubernetes-validations": [named]}
    return _definition(KIND, PLURAL, "ccj", version, root)


def queue_definition() -> dict[str, Any]:
    """The CustomResourceDefinition of ClaudeCodeQueue."""
    spec = _schema(QueueSpec)
    fixed = ("queue_name", "prefix", "target_namespace")
    spec["x-kubernetes-validations"] = _immutable(QueueSpec, fixed, "; make another ClaudeCodeQueue")
    root = _root("A BullMQ queue in Redis whose jobs become ClaudeCodeJobs.", spec, _schema(QueueStatus))
    return _definition(QUEUE_KIND, QUEUE_PLURAL, "ccq", {"additionalPrinterColumns": QUEUE_COLUMNS}, root)


def pool_definition() -> dict[str, Any]:
    """The CustomResourceDefinition of ClaudeCodePool."""
    named = cel(
        f"size(self.metadata.name) <= {MAX_JOB_NAME}",
        f"metadata.name must have at most {MAX_JOB_NAME} characters, because the pool's pods carry it as a label",
    )
    root = _root("Pods that wait for ClaudeCodeJobs, each for one.", _schema(PoolSpec), _schema(PoolStatus))
    root |= {"x-kubernetes-validations": [named]}
    return _definition(POOL_KIND, POOL_PLURAL, "ccp", {"additionalPrinterColumns": POOL_COLUMNS}, root)


def definitions() -> dict[str, dict[str, Any]]:
    """All CustomResourceDefinitions by plural name."""
    return {
        PLURAL: custom_resource_definition(),
        QUEUE_PLURAL: queue_definition(),
        POOL_PLURAL: pool_definition(),
    }


def _root(about: str, spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }


def _definition(kind: str, plural: str, short: str, version: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    served = {"name": VERSION, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["all"],
            },
            "versions": [served | version | {"schema": {"openAPIV3Schema": root}}],
        },
    }
