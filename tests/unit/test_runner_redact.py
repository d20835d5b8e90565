"""Secrets are found in the forms in which programs write them, and nothing else is."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.events import Outcome, RunnerResult
from claudejobs.runner.redact import FURTHER_VARIABLE, MASK, Redactor

KEY = 'sk-ant-api03-R2D2/c3po+"bb8"\\Ünit_wxyz'


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


FORMS = {
    "plain": KEY,
    "in JSON": json.dumps({"key": KEY}),
    "in JSON as UTF-8": json.dumps({"key": KEY}, ensure_ascii=False),
    "in JSON in JSON": json.dumps(json.dumps({"key": KEY})),
    "with escaped slashes": json.dumps(KEY).replace("/", "\\/"),
    "all escaped": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "all escaped, upper case": "".join(f"\\u{ord(c):04X}" for c in KEY),
    "base64": b64(KEY.encode()),
    "base64 with line feed": b64(f"{KEY}\n".encode()),
    "base64 for URLs": base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
    "base64 of a header": b64(f"x:{KEY}".encode()),
    "base64 of an environment": b64(f"A=1\nAB={KEY}\nB=2\n".encode()),
    "base64 in lines": base64.encodebytes(f"PADDING PADDING PADDING PADDING PADDING {KEY} and more".encode()).decode(),
    "base64 in lines in JSON": json.dumps(base64.encodebytes(b"x" * 41 + KEY.encode()).decode()),
    "base64 in JSON with escaped slashes": json.dumps(b64(KEY.encode())).replace("/", "\\/"),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=list(FORMS))
def test_forms(text: str) -> None:
    redacted = Redactor([KEY])(f"before {text} after")
    assert MASK in redacted
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")
    # What is left of any encoding decodes to no six characters of the key in a row.
    left = redacted.encode().decode("unicode_escape", "replace")
    assert not any(KEY[i : i + 6] in left for i in range(len(KEY) - 6))


def test_the_form_that_the_base64_program_gives() -> None:
    made = subprocess.run(
        ["base64"], input=f"{'k' * 60}{KEY}".encode(), capture_output=True, check=True
    ).stdout.decode()
    assert made.count("\n") > 1
    assert MASK in Redactor([KEY])(made)


@given(st.text(min_size=8, max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_no_secret_survives(secret: str, before: str, after: str) -> None:
    if "*" in secret or secret != secret.strip():
        return
    redact = Redactor([secret])
    assert secret not in redact(before + secret + after)
    assert json.dumps(secret)[1:-1] not in redact(json.dumps([before + secret + after]))


@given(st.binary(max_size=7), st.binary(max_size=7))
def test_no_alignment_of_base64_survives(before: bytes, after: bytes) -> None:
    secret = "tok-0123456789-abcdef"
    redacted = Redactor([secret])(b64(before + secret.encode() + after))
    assert MASK in redacted


@given(st.text(max_size=300))
def test_other_text_is_left_alone(text: str) -> None:
    assert Redactor(["tok-0123456789-abcdef"])(text) == text


def test_short_values_are_left_alone() -> None:
    """They are part of ordinary words: an answer with holes is worse than a secret of seven characters told."""
    assert Redactor(["example"])("an example") == "an example"
    assert Redactor(["examples"])("two examples") == "two ***"


def test_which_variables_are_secret() -> None:
    environ = {
        "ANTHROPIC_API_KEY": "api-key-0001\n",
        "ANTHROPIC_AUTH_TOKEN": "auth-token-1",
        "CLAUDE_CODE_OAUTH_TOKEN": "oauth-token-1",
        "MINE": "my-own-secret",
        "OTHER": "not-a-secret-1",
        FURTHER_VARIABLE: "MINE, MISSING",
    }
    redact = Redactor.of_environment(environ)
    assert [redact(value).strip() for value in environ.values()] == [
        MASK,
        MASK,
        MASK,
        MASK,
        "not-a-secret-1",
        "MINE, MISSING",
    ]


@pytest.mark.parametrize("output", [{KEY: [KEY, 1, None, {"a": f"x{KEY}"}]}, KEY, [KEY]])
def test_results_are_searched_through(output: Any) -> None:
    result = RunnerResult(outcome=Outcome.COMPLETED, text=f"it is {KEY}", message=KEY, structured_output=output)
    redacted = Redactor([KEY]).result(result)
    assert (redacted.text, redacted.message) == ("it is ***", "***")
    assert KEY not in str(redacted.structured_output)
    assert "R2D2" not in redacted.model_dump_json()


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Redactor(["abcdefgh", "abcdefgh-ijk"])("abcdefgh-ijk abcdefgh") == "*** ***"


def test_the_gateways_token_is_a_secret_and_its_file_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert Redactor.of_environment({"CLAUDEJOBS_TOKEN_FILE": str(path)})("text") == "text"
    path.write_text("eyJhbGciOi.J9.signature\n")
    redact = Redactor.of_environment({"CLAUDEJOBS_TOKEN_FILE": str(path)})
    assert redact("Bearer eyJhbGciOi.J9.signature") == f"Bearer {MASK}"
