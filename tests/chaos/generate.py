"""Generates specs from the CRD's own schema: valid ones, ones at the bounds, and ones with one thing wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from claudejobs.api.crd import custom_resource_definition

Schema = dict[str, Any]

_LONGEST = 3000
"""Characters of a generated text, unless it is to be one too long."""


def spec_schema() -> Schema:
    """The schema of spec, from the CRD."""
    version = custom_resource_definition()["spec"]["versions"][0]
    schema: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


class Generator:
    """Draws from one source of randomness, so that a seed names a spec."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def valid(self, schema: Schema, fill: float = 0.35) -> Any:
        """A value that the schema's keywords allow; each optional field is there with probability ``fill``. CEL rules
        are not looked at: they may still refuse it."""
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return self._anything()
        return getattr(self, f"_{schema['type']}")(schema, fill)

    def broken(self, schema: Schema) -> tuple[Any, str]:
        """A spec with one thing wrong, and what that is."""
        spec = self.valid(schema)
        spec.setdefault("prompt", "hello")
        spots = list(_spots(spec, schema, "spec"))
        self._random.shuffle(spots)
        for path, node, put in spots:
            for what, wrong in self._wrong_values(node):
                put(wrong)
                return spec, f"{path}: {what}"
        raise AssertionError("nothing can be wrong with a spec")

    def _wrong_values(self, schema: Schema) -> list[tuple[str, Any]]:
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return []
        kind = schema["type"]
        wrong: list[tuple[str, Any]] = [("wrong type", 17 if kind in ("object", "array", "string") else "text")]
        if "enum" in schema:
            wrong.append(("not in the enumeration", "no-such-word"))
        if "minimum" in schema:
            wrong.append(("below the minimum", schema["minimum"] - 1))
        if "maximum" in schema:
            wrong.append(("above the maximum", schema["maximum"] + 1))
        if schema.get("maxLength", _LONGEST) < _LONGEST:
            wrong.append(("too long", "a" * (schema["maxLength"] + 1)))
        if schema.get("minLength"):
            wrong.append(("too short", ""))
        if "pattern" in schema:
            wrong.append(("does not match", "\u0001 \n"))
        if kind == "object" and "properties" in schema:
            wrong.append(("unknown field", {"noSuchField": 1}))
        self._random.shuffle(wrong)
        return wrong

    def _object(self, schema: Schema, fill: float) -> dict[str, Any]:
        if "properties" in schema:
            required = schema.get("required", [])
            return {
                name: self.valid(node, fill)
                for name, node in schema["properties"].items()
                if name in required or self._random.random() < fill
            }
        node = schema["additionalProperties"]
        count = self._random.choice([0, 1, 2])
        return {self._word(): self.valid(node, fill) for _ in range(count)}

    def _array(self, schema: Schema, fill: float) -> list[Any]:
        count = max(schema.get("minItems", 0), self._random.choice([0, 1, 1, 2]))
        items = [self.valid(schema["items"], fill) for _ in range(min(count, schema.get("maxItems", 2)))]
        keys = schema.get("x-kubernetes-list-map-keys")
        return list({item[keys[0]]: item for item in items}.values()) if keys else items

    def _string(self, schema: Schema, _: float) -> str:
        least, most = schema.get("minLength", 0), min(schema.get("maxLength", _LONGEST), _LONGEST)
        if "pattern" in schema:
            fit = [text for text in _SAMPLES if re.search(schema["pattern"], text) and least <= len(text) <= most]
            return self._random.choice(fit)
        length = self._random.choice([least, most, min(most, least + 7)])
        alphabet = self._random.choice(["abc", "a b\n", "\u20acäß", "'\"{}$\\", "0-._/:"])
        return "".join(self._random.choice(alphabet) for _ in range(length))

    def _integer(self, schema: Schema, _: float) -> int:
        least, most = int(schema.get("minimum", -5)), int(schema.get("maximum", 10**6))
        return self._random.choice([least, most, self._random.randint(least, most), min(most, least + 1)])

    def _number(self, schema: Schema, _: float) -> float:
        least, most = float(schema.get("minimum", 0)), float(schema.get("maximum", 1000))
        return self._random.choice([least + 0.01, most, round(self._random.uniform(least + 0.01, most), 3)])

    def _boolean(self, _: Schema, __: float) -> bool:
        return self._random.random() < 0.5

    def _anything(self) -> dict[str, Any]:
        values = [1, -0.5, True, "text", "\u20ac", ["a", {"b": []}], {"c": {"d": "e"}}, ""]
        return {self._word(): self._random.choice(values) for _ in range(self._random.choice([0, 1, 3]))}

    def _word(self) -> str:
        return "".join(self._random.choice("abcdxyz") for _ in range(4))


_SAMPLES = [
    "",
    "a",
    "name",
    "a.b-c.d",
    "x" * 63,
    "A_1",
    "LANG",
    "X" * 200,
    "claude-sonnet-4-5",
    "0",
    "1",
    "100m",
    "0.5",
    "64Mi",
    "1e3",
    "9999E",
    "https://example.com/a.git",
    "http://localhost:1",
    "ssh://git@example.com/a",
    "main",
    "refs/heads/x",
    "example.com/key",
]

Put = Callable[[Any], None]


def _spots(value: Any, schema: Schema, path: str) -> Any:
    """Every place in a value: its path, its schema, and how to put something else there."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, dict):
        nodes: dict[str, Any] = schema.get("properties") or dict.fromkeys(value, schema.get("additionalProperties"))
        for name in value:
            yield f"{path}.{name}", nodes[name], _putter(value, name)
            yield from _spots(value[name], nodes[name], f"{path}.{name}")
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield f"{path}[{n}]", schema["items"], _putter(value, n)
            yield from _spots(item, schema["items"], f"{path}[{n}]")


def _putter(container: Any, key: Any) -> Put:
    def put(value: Any) -> None:
        container[key] = value

    return put
