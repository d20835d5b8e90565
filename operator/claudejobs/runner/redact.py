"""Keeps the secrets that the runner knows out of what it writes.

It is for accidents: a tool that prints its environment, an error that quotes a header. An agent that wants to
tell a secret to the world can write it in a form that nobody expects, or send it away itself.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from claudejobs.api.events import TOKEN_FILE_VARIABLE, RunnerResult

MASK = "***"

SECRET_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")

FURTHER_VARIABLE = "CLAUDEJOBS_REDACT_VARIABLES"
"""Names further variables whose values are secret, comma-separated."""

MIN_LENGTH = 8
"""Characters. Shorter values are left alone: they are no secrets worth the name, and are part of ordinary words
and numbers, so that replacing them would garble the log and, worse, the answer."""

_BREAK = r"(?:\s|\\{1,8}[nrt]){0,4}"
"""Between characters of base64: programs break it into lines, and JSON escapes the breaks. The bounds here and below
keep the time linear in the length of any text."""

_SHORT_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}


class Redactor:
    """Replaces secrets by ``***``: as they are, with JSON escapes in them, and in base64 at any alignment."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: a secret may be the beginning of another.
        values = sorted({s for s in secrets if len(s) >= MIN_LENGTH}, key=lambda s: (-len(s), s))
        self._values = values
        self._escaped = [re.compile("".join(map(_escaped, value))) for value in values]
        self._encoded = [re.compile(pattern) for value in values for pattern in _base64_patterns(value.encode())]

    @classmethod
    def of_environment(cls, environ: Mapping[str, str], names: Iterable[str] = SECRET_VARIABLES) -> Redactor:
        """Redacts the values of these variables, of those that ``FURTHER_VARIABLE`` names, and the gateway's token as
        it is now. One that the kubelet renews later is not known; it ends with the pod."""
        further = [name.strip() for name in environ.get(FURTHER_VARIABLE, "").split(",")]
        values = [environ.get(name, "") for name in (*names, *further)]
        if path := environ.get(TOKEN_FILE_VARIABLE):
            with contextlib.suppress(OSError):  # the agent will say what is wrong with it
                values.append(Path(path).read_text(errors="replace"))
        # A Secret made from a file often ends with a line feed, which the secret in use does not have.
        return cls(value.strip() for value in values)

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for value in self._values:
            text = text.replace(value, MASK)
        if "\\" in text:
            for pattern in self._escaped:
                text = pattern.sub(MASK, text)
        for pattern in self._encoded:
            text = pattern.sub(MASK, text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value without secrets, in keys and in texts."""
        if not self._values:
            return value
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def result(self, result: RunnerResult) -> RunnerResult:
        """The result without secrets."""
        if not self._values:
            return result
        update = {
            "message": self(result.message),
            "text": None if result.text is None else self(result.text),
            "structured_output": self._output(result.structured_output),
        }
        return result.model_copy(update=update)

    def _output(self, output: Any) -> Any:
        try:
            return self.value(output)
        except RecursionError:
            return None  # Too deep to be looked through, and so for JSON.


def _escaped(character: str) -> str:
    """The character, or an escape of it: of JSON inside of JSON the backslashes are doubled."""
    units = character.encode("utf-16-be", "surrogatepass")
    escapes = [r"\\{1,8}u" + units[at : at + 2].hex() for at in range(0, len(units), 2)]
    short = _SHORT_ESCAPES.get(character)
    letter = rf"|\\{{1,8}}{short}" if short else ""
    return rf"(?:\\{{0,8}}{re.escape(character)}{letter}|(?i:{''.join(escapes)}))"


def _base64_patterns(value: bytes) -> Iterable[str]:
    """The part of the base64 text that the value alone determines, for each place it can have in a group of three
    bytes, in the usual and in the URL alphabet."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + value).decode()
        first, last = -(-8 * before // 6), 8 * (before + len(value)) // 6
        yield _BREAK.join(map(_either_alphabet, whole[first:last])) + r"(?:[A-Za-z0-9+/_-]?={1,2})?"


def _either_alphabet(character: str) -> str:
    return {"+": r"[+-]", "/": r"(?:\\{0,8}/|_)"}.get(character, character)
