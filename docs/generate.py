"""Writes docs/reference.md from the models: ``python docs/generate.py``; with ``--check`` it only compares.

The models carry the descriptions that the API server shows in ``kubectl explain``; writing them twice would let
one of the two lie.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from claudejobs.api.categories import POLICIES
from claudejobs.api.crd import custom_resource_definition, pool_definition, queue_definition
from claudejobs.api.job import JobTemplate
from claudejobs.api.job_data import ClaudeCodeJobData
from claudejobs.gateway.settings import GatewaySettings
from claudejobs.settings import Settings

TARGET = Path(__file__).parent / "reference.md"

HEAD = """# Reference

Generated from the models by `make docs`; do not edit.

- [ClaudeCodeJob: spec](#claudecodejob-spec)
- [ClaudeCodeJob: status](#claudecodejob-status)
- [ClaudeCodeQueue: spec](#claudecodequeue-spec)
- [ClaudeCodeQueue: status](#claudecodequeue-status)
- [ClaudeCodePool: spec](#claudecodepool-spec)
- [ClaudeCodePool: status](#claudecodepool-status)
- [ClaudeCodeJobData: what a producer puts into a queue](#claudecodejobdata-what-a-producer-puts-into-a-queue)
- [How an attempt can end](#how-an-attempt-can-end)
- [Settings of the operator](#settings-of-the-operator)
- [Settings of the gateway](#settings-of-the-gateway)
"""


def render() -> str:
    """The whole page."""
    schema, queue = _properties(custom_resource_definition()), _properties(queue_definition())
    pool = _properties(pool_definition())
    # Said once, with the job.
    queue["spec"]["properties"]["template"]["properties"] = {}
    pool["spec"]["properties"]["template"]["properties"]["podTemplate"]["properties"] = {}
    shared = ", ".join(f"`{to_camel(name)}`" for name in JobTemplate.model_fields)
    data = ClaudeCodeJobData.model_json_schema(by_alias=True)
    parts = [
        HEAD,
        "## ClaudeCodeJob: spec",
        "Immutable except `suspend`, `cancel`, `rerun` and `ttlSecondsAfterFinished`. Fields marked * are required.",
        _fields(schema["spec"]),
        "## ClaudeCodeJob: status",
        _fields(schema["status"]),
        "## ClaudeCodeQueue: spec",
        f"`template` has the fields of the job's spec that jobs can have in common: {shared}.",
        _fields(queue["spec"]),
        "## ClaudeCodeQueue: status",
        _fields(queue["status"]),
        "## ClaudeCodePool: spec",
        "See [warm.md](warm.md). `template` has those fields of the job's spec that shape its pod.",
        _fields(pool["spec"]),
        "## ClaudeCodePool: status",
        _fields(pool["status"]),
        "## ClaudeCodeJobData: what a producer puts into a queue",
        "The `data` of a BullMQ job. Other fields are ignored.",
        _fields(data),
        "## How an attempt can end",
        "An ending that is not retried is the job's end. One that spends no attempt does not count against "
        "`spec.retry.maxAttempts`; such endings have a bound of their own (`MAX_DISRUPTIONS`). The delay before the "
        "next attempt is the longest of `spec.retry.backoff`, the least delay below and what the model API asked for.",
        _categories(),
        "## Settings of the operator",
        "Environment variables. A wrong value ends the start with one message that names it.",
        _settings(Settings),
        "## Settings of the gateway",
        "Environment variables of the [model gateway](gateway.md); with the chart, `gateway.settings`.",
        _settings(GatewaySettings),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _properties(definition: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return properties


def _fields(schema: dict[str, Any]) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for path, node, required in _walk(schema, ""):
        default = "" if node.get("default") in (None, [], {}, "") else f"`{_plain(node['default'])}`"
        meaning = " ".join(node.get("description", "").split()).replace("|", "\\|")
        rows.append(f"| `{path}`{' *' if required else ''} | {_type(node)} | {default} | {meaning} |")
    return "\n".join(rows)


def _walk(schema: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any], bool]]:
    """Every field below a node: path, node, required. The scheduling types of Kubernetes are not opened."""
    found = []
    for name, node in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        found.append((path, node, name in schema.get("required", [])))
        if name in ("affinity", "tolerations", "topologySpreadConstraints"):
            continue
        inner, suffix = node, "."
        while "items" in inner or "additionalProperties" in inner:
            suffix = ("[]" if "items" in inner else "{}") + suffix
            inner = inner.get("items") or inner["additionalProperties"]
        found += _walk(inner, path + suffix)
    return found


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        kinds = (_type(variant) for variant in node["anyOf"] if variant.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if "items" in node and not node["items"]:
        return "list"
    if "items" in node:
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map of {_type(node['additionalProperties'])}"
    kind = str(node.get("format") or node.get("type") or "any")
    bounds = [
        f"{word} {node[key]}" for key, word in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "≤")) if key in node
    ]
    if "exclusiveMinimum" in node:
        bounds[0] = f"> {node['minimum']}"
    unit = " characters" if "maxLength" in node else ""
    return f"{kind}, {', '.join(bounds)}{unit}" if bounds else kind


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _categories() -> str:
    rows = ["| category | meaning | retried | spends an attempt | least delay, s |", "| --- | --- | --- | --- | --- |"]
    for category, policy in POLICIES.items():
        delay = str(policy.backoff_seconds) if policy.retriable else ""
        cells = (f"`{category}`", policy.meaning, _yes(policy.retriable), _yes(policy.spends_attempt), delay)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _settings(settings: type[BaseSettings]) -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    prefix = settings.model_config.get("env_prefix", "")
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True)  # type: ignore[call-overload]
        shown = "" if default in (None, [], {}, PydanticUndefined) else f"`{_plain(_open(default))}`"
        rows.append(f"| `{prefix}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def _open(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def main() -> int:
    """Write the page, or compare it."""
    text = render()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        print("docs/reference.md is not what the models say; run `make docs`", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
