"""What a job's tools print of the model API's key: the real SDK and CLI, a scripted model on loopback."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.events import Text, ToolResult, ToolUse, parse_event, parse_result

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-ant-api03-0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT"
FURTHER = "another-secret-of-the-pod"


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    command = [sys.executable, str(REPOSITORY / "images/scripted-model/scripted_model.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


def run(model: str, folder: Path, prompt: str, variable: str = "ANTHROPIC_API_KEY", **fields: Any) -> tuple[str, str]:
    """Run the runner; its log (both streams) and its termination message."""
    (folder / "workspace").mkdir()
    document = {
        "job": "jobs/test",
        "job_uid": "uid-1",
        "attempt": 1,
        "session_id": str(uuid.uuid4()),
        "prompt": prompt,
        "timeout_seconds": 60,
        "env": {"CLAUDE_CODE_MAX_RETRIES": "0"},
        **fields,
    }
    (folder / "job.json").write_text(json.dumps(document))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(REPOSITORY / "operator"),
        "ANTHROPIC_BASE_URL": model,
        variable: KEY,
        "EXTRA": FURTHER,
        "CLAUDEJOBS_REDACT_VARIABLES": "EXTRA",
        "CLAUDEJOBS_INPUT": str(folder / "job.json"),
        "CLAUDEJOBS_WORKSPACE": str(folder / "workspace"),
        "CLAUDEJOBS_TERMINATION_LOG": str(folder / "termination-log"),
    }
    command = [sys.executable, "-m", "claudejobs.runner"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    message = (folder / "termination-log").read_text()
    assert parse_result(message) is not None, done.stderr
    return done.stdout + done.stderr, message


def results(log: str) -> list[str]:
    events = [parse_event(line) for line in log.splitlines()]
    return [event.summary for event in events if isinstance(event, ToolResult)]


COMMANDS = {
    "plain": "echo key=$ANTHROPIC_API_KEY.",
    "base64": "printf %s $ANTHROPIC_API_KEY | base64",
    "base64 of the environment": "env | sort | base64",
    "base64 in one line": "printf 'x-api-key: %s' $ANTHROPIC_API_KEY | base64 -w0",
    "JSON": """python3 -c 'import os,json; print(json.dumps(json.dumps({"k": os.environ["ANTHROPIC_API_KEY"]})))'""",
    "escaped": "python3 -c 'import os; print(*(hex(ord(c)) for c in os.environ[\"ANTHROPIC_API_KEY\"]))' "
    "| sed 's/ *0x/\\\\u00/g'",
    "at the cut": "head -c 1990 /dev/zero | tr '\\0' x; echo $ANTHROPIC_API_KEY",
    "further": "echo $EXTRA; printf %s $EXTRA | base64",
}


def shows(text: str) -> bool:
    """Whether a good part of a secret is in the text, as it is or after decoding what looks like base64."""
    for secret in (KEY, FURTHER):
        if any(secret[i : i + 8] in text for i in range(len(secret) - 8)):
            return True
        for before in range(3):
            encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()[4:-4]
            if any(encoded[i : i + 10] in text.replace("\\n", "") for i in range(len(encoded) - 10)):
                return True
        if "".join(f"\\u{ord(c):04x}" for c in secret[:8]) in text.replace("\\\\", "\\"):
            return True
    return False


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_a_tool_that_prints_the_key(model: str, tmp_path: Path, command: str) -> None:
    log, message = run(model, tmp_path, f"script: tool {command}")
    (said,) = results(log)
    assert "***" in said
    assert not shows(log)
    assert not shows(message)


def test_a_key_in_a_command_an_answer_and_structured_output(model: str, tmp_path: Path) -> None:
    """The scripted model repeats what the prompt says, as a model may repeat what a tool told it."""
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    prompt = f'script: structured {{"answer": "the key is {KEY}"}}'
    log, message = run(model, tmp_path, prompt, claude={"output_schema": schema})
    assert not shows(log)
    assert not shows(message)
    result = parse_result(message)
    assert result is not None
    assert result.structured_output == {"answer": "the key is ***"}
    events = [parse_event(line) for line in log.splitlines()]
    assert any(isinstance(event, ToolUse | Text) and "***" in event.model_dump_json() for event in events)


def test_a_long_command_with_the_key_at_its_cut(model: str, tmp_path: Path) -> None:
    log, _ = run(model, tmp_path, f"script: tool : {'x' * 285} {KEY}")
    assert not shows(log)


@pytest.mark.parametrize("variable", ["ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_the_other_credentials(model: str, tmp_path: Path, variable: str) -> None:
    # The CLI keeps some of them from its tools; its own environment has them all.
    log, message = run(
        model, tmp_path, f"script: tool tr '\\0' '\\n' < /proc/$PPID/environ | grep ^{variable}", variable
    )
    assert results(log) == [f"{variable}=***"]
    assert not shows(log + message)
