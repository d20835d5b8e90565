"""Writes the chart's values.schema.json and its README's table from the commented values.yaml.

``python charts/generate.py``; with ``--check`` it only compares. In values.yaml the comment above a key describes it.
The type is that of the default, and a line ``@schema: {...}`` adds to it; an object with such a line is taken whole,
any other takes no keys but those that it has. ``@settings: operator`` (or ``gateway``) stands for the variables of
that program which the chart does not set itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from claudejobs.gateway.settings import GatewaySettings
from claudejobs.settings import Settings

CHART = Path(__file__).parent / "claudejobs"
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"
BEGIN, END = "<!-- values: made by `make docs` -->", "<!-- end of values -->"

PROGRAMS: dict[str, type[BaseSettings]] = {"operator": Settings, "gateway": GatewaySettings}
SET_BY_THE_CHART = {
    "operator": {
        "RUNNER_IMAGE",
        "RUNNER_IMAGE_PULL_POLICY",
        "WARM_POOLS",
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
    },
    "gateway": {
        "GATEWAY_PORT",
        "GATEWAY_ADMIN_PORT",
        "GATEWAY_HOST",
        "GATEWAY_WATCH_NAMESPACES",
        "GATEWAY_UPSTREAM_URL",
        "GATEWAY_KEY_FILE",
        "GATEWAY_KEY_SCHEME",
    },
}
"""Variables that a template sets: as settings they would be set twice."""

SCALARS = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
PLAIN = ["string", "number", "boolean"]
"""What a setting may be in YAML; all become an environment variable's text."""


@dataclass
class Value:
    """One key of values.yaml."""

    name: str
    default: Any
    description: str = ""
    schema: dict[str, Any] = field(default_factory=dict)
    settings: str = ""
    children: list[Value] = field(default_factory=list)


def read(text: str) -> list[Value]:
    """The values of a commented YAML file, in its order."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return _values(root, yaml.safe_load(text), text.splitlines())


def _values(node: yaml.MappingNode, defaults: dict[str, Any], lines: list[str]) -> list[Value]:
    found = []
    for key, inner in node.value:
        value = Value(key.value, defaults[key.value])
        _describe(value, _comment_above(key.start_mark.line, lines))
        closed = isinstance(inner, yaml.MappingNode) and inner.value and not value.schema
        if closed:
            value.children = _values(inner, defaults[key.value], lines)
        elif not value.description:
            raise SystemExit(f"{VALUES}, line {key.start_mark.line + 1}: {key.value} has no comment above it")
        found.append(value)
    return found


def _comment_above(line: int, lines: list[str]) -> list[str]:
    comment: list[str] = []
    while line > 0 and lines[line - 1].strip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].strip().removeprefix("#").strip())
    return comment


def _describe(value: Value, comment: list[str]) -> None:
    for line in comment:
        if line.startswith("@schema:"):
            value.schema |= yaml.safe_load(line.removeprefix("@schema:"))
        elif line.startswith("@settings:"):
            value.settings = line.removeprefix("@settings:").strip()
        else:
            value.description = f"{value.description} {line}".strip()


def schema_of(values: list[Value]) -> dict[str, Any]:
    """The JSON Schema of an object that takes these keys and no others."""
    properties = {value.name: _node(value) for value in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _node(value: Value) -> dict[str, Any]:
    described = {"description": value.description} if value.description else {}
    if value.children:
        return described | schema_of(value.children)
    if value.settings:
        return described | _settings(value.settings)
    if isinstance(value.default, dict):
        return described | {"type": "object"} | value.schema
    if isinstance(value.default, list):
        return described | {"type": "array", "items": {"type": "object"}} | value.schema
    kind = {"type": SCALARS[type(value.default).__name__], "default": value.default}
    if "enum" in value.schema:
        del kind["type"]
    return described | kind | value.schema


def _settings(program: str) -> dict[str, Any]:
    model = PROGRAMS[program]
    prefix = model.model_config.get("env_prefix", "")
    properties: dict[str, Any] = {}
    for name, setting in model.model_fields.items():
        variable = f"{prefix}{name}".upper()
        # Secrets do not belong into values.
        if variable not in SET_BY_THE_CHART[program] and "SecretStr" not in str(setting.annotation):
            properties[variable] = {"description": setting.description, "type": PLAIN}
    if program == "gateway":
        # The chart computes with it.
        properties["GATEWAY_DRAIN_SECONDS"] |= {"type": "integer", "minimum": 0, "maximum": 3600}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def render_schema(values: list[Value]) -> str:
    """values.schema.json."""
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the claudejobs chart"}
    schema |= schema_of(values)
    schema["properties"]["global"] = {"type": "object", "description": "Helm's own; not used."}  # type: ignore[index]
    return json.dumps(schema, indent=2) + "\n"


def render_table(values: list[Value]) -> str:
    """The README's table, one row per value."""
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    for path, value in _leaves(values, ""):
        default = json.dumps(value.default) if value.default not in ("", [], {}) else ""
        shown = f"`{default}`" if default and len(default) <= 60 else default and "see values.yaml"
        meaning = value.description.replace("|", "\\|")
        rows.append(f"| `{path}` | {shown} | {meaning} |")
    return "\n".join(rows)


def _leaves(values: list[Value], prefix: str) -> Iterator[tuple[str, Value]]:
    for value in values:
        path = f"{prefix}{value.name}"
        if value.children:
            yield from _leaves(value.children, f"{path}.")
        else:
            yield path, value


def render_readme(values: list[Value], current: str) -> str:
    """The README with its table made anew."""
    head, _, rest = current.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{render_table(values)}\n{END}{tail}"


def main() -> int:
    """Write both files, or compare them."""
    values = read(VALUES.read_text())
    wanted = {SCHEMA: render_schema(values), README: render_readme(values, README.read_text())}
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} of the chart is not what values.yaml says; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
