"""What a queue job becomes: every row of the table in docs/queue.md, and data that can never be run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.job import JobSpec
from claudejobs.api.job_data import PayloadError
from claudejobs.api.queue import QueueSpec
from claudejobs.api.queue_job import QueueJob
from claudejobs.api.status import JobStatus
from claudejobs.intake.mapping import (
    MAX_ATTEMPTS,
    MAX_MANIFEST_BYTES,
    MAX_REASON,
    MAX_TIMEOUT_SECONDS,
    Mapped,
    failed_reason,
    history,
    map_job,
    progress_of,
    return_value,
)

IDENTITY = QueueJob("bull:tasks", "42", 1700000000000)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ("taskId", "userId", "command", "arguments", "workingDirectory", "timeout", "metadata", "other")


def mapped(data: object = None, opts: dict[str, Any] | None = None, **queue: Any) -> Mapped:
    given = {"taskId": "t", "userId": "u", "command": "do it"} | (data if isinstance(data, dict) else {})
    spec = QueueSpec.model_validate({"queueName": "tasks"} | queue)
    return map_job(IDENTITY, given if data is None or isinstance(data, dict) else data, opts or {}, spec, "q", "team")


def spec_of(data: object = None, opts: dict[str, Any] | None = None, **queue: Any) -> dict[str, Any]:
    spec: dict[str, Any] = mapped(data, opts, **queue).manifest["spec"]
    JobSpec.model_validate(spec)
    return spec


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"command": "do"}, "prompt", "do"),
        ({"taskId": "t-1"}, "taskId", "t-1"),
        ({"userId": "ada"}, "userId", "ada"),
        ({"arguments": {"a": 1}}, "arguments", {"a": 1}),
        ({"arguments": ["a", 1]}, "arguments", {"args": ["a", 1]}),
        ({"workingDirectory": "a/b/"}, "workingDirectory", "a/b"),
        ({"workingDirectory": "/workspace/a"}, "workingDirectory", "a"),
        ({"workingDirectory": "/workspace"}, "workingDirectory", "."),
        ({"timeout": 1500}, "timeoutSeconds", 2),
        ({"timeout": 0.5}, "timeoutSeconds", 1),
        ({"metadata": {"ticket": 3}}, "metadata", {"ticket": 3}),
    ],
)
def test_data(data: dict[str, Any], field: str, value: object) -> None:
    assert spec_of(data)[field] == value


@pytest.mark.parametrize(
    ("opts", "field", "value"),
    [
        ({"attempts": 3}, "retry", {"maxAttempts": 3}),
        ({"attempts": 99}, "retry", {"maxAttempts": MAX_ATTEMPTS}),
        (
            {"backoff": 1500},
            "retry",
            {"backoff": {"type": "fixed", "delaySeconds": 2, "maxDelaySeconds": 600}},
        ),
        (
            {"backoff": {"type": "exponential", "delay": 700_000}},
            "retry",
            {"backoff": {"type": "exponential", "delaySeconds": 700, "maxDelaySeconds": 700}},
        ),
        ({"priority": 7}, "priority", -7),
        ({"priority": 2_000_000}, "priority", -1000),
    ],
)
def test_options(opts: dict[str, Any], field: str, value: object) -> None:
    assert spec_of(opts=opts)[field] == value


@pytest.mark.parametrize(
    "opts",
    [{}, {"attempts": 0}, {"priority": 0}, {"backoff": 0}, {"attempts": True}, {"priority": -1}, {"delay": 5}],
)
def test_options_that_say_nothing_leave_the_template(opts: dict[str, Any]) -> None:
    template = {"retry": {"maxAttempts": 4}, "priority": 8, "timeoutSeconds": 60}
    spec = spec_of(opts=opts, template=template)
    assert (spec["retry"], spec["priority"], spec["timeoutSeconds"]) == ({"maxAttempts": 4}, 8, 60)


def test_the_queue_says_unit_and_root() -> None:
    assert spec_of({"timeout": 90}, timeoutUnit="seconds")["timeoutSeconds"] == 90
    assert spec_of({"workingDirectory": "/srv/x"}, workingDirectoryRoot="/srv")["workingDirectory"] == "x"


@pytest.mark.parametrize(
    ("data", "opts", "note"),
    [
        ({"timeout": 1e15}, {}, f"taken as {MAX_TIMEOUT_SECONDS} s"),
        ({}, {"attempts": 21}, "attempts 21 is more than allowed and taken as 20"),
        ({}, {"backoff": {"type": "jitter", "delay": 5}}, "backoff type 'jitter' is not known here"),
    ],
)
def test_what_is_not_taken_as_it_was_said_is_noted(data: dict[str, Any], opts: dict[str, Any], note: str) -> None:
    (said,) = mapped(data, opts).notes
    assert note in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("do it", "data: must be an object with taskId, userId and command, not 'do it'"),
        ({"command": None}, "data.command: "),
        ({"command": ""}, "data.command: "),
        ({"taskId": 5}, "data.taskId: Input should be a valid string, not 5"),
        ({"timeout": -5}, "data.timeout: Input should be greater than 0, not -5"),
        ({"timeout": "soon"}, "data.timeout: "),
        ({"arguments": "x"}, "data.arguments: "),
        ({"metadata": [1]}, "data.metadata: "),
        ({"workingDirectory": "../x"}, "data.workingDirectory: '../x' leaves the workspace"),
        ({"workingDirectory": "/etc"}, "data.workingDirectory: '/etc' is not below /workspace"),
        ({"workingDirectory": "/workspace-2"}, "data.workingDirectory: '/workspace-2' is not below /workspace"),
        ({"metadata": {"x": "y" * MAX_MANIFEST_BYTES}}, "data: makes a resource of "),
    ],
)
def test_data_that_can_never_be_run_names_the_field(data: object, message: str) -> None:
    with pytest.raises(PayloadError) as error:
        mapped(data)
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 1000


@given(
    data=st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON,
    opts=st.dictionaries(st.sampled_from(("attempts", "backoff", "priority", "delay")), JSON),
)
def test_whatever_a_producer_says_makes_a_resource_or_names_a_field(data: object, opts: dict[str, Any]) -> None:
    told, made = "", None
    try:
        made = mapped(data, opts)
    except PayloadError as error:
        told = str(error)
    if made is None:
        assert told.startswith("data")
        return
    manifest = json.loads(json.dumps(made.manifest))
    JobSpec.model_validate(manifest["spec"])
    annotation = manifest["metadata"]["annotations"]["claudecode.dev/queue-job"]
    assert QueueJob.parse(annotation) == IDENTITY


def status(**values: Any) -> JobStatus:
    return JobStatus.model_validate({"phase": "Completed"} | values)


def test_the_return_value() -> None:
    usage = {"inputTokens": 3}
    done = status(attempt=2, result={"text": "hi", "numTurns": 4, "usage": usage}, sessionId="s", costUSD=0.5)
    resource = {"spec": {"taskId": "t"}, "metadata": {"namespace": "n", "name": "j", "uid": "1", "labels": {}}}
    value = return_value(resource, done)
    assert (value["taskId"], value["status"], value["text"], value["numTurns"]) == ("t", "completed", "hi", 4)
    assert (value["attempts"], value["sessionId"], value["costUSD"], value["truncated"]) == (2, "s", 0.5, False)
    assert value["job"] == {"namespace": "n", "name": "j", "uid": "1"}
    assert value["usage"]["inputTokens"] == 3


def test_reasons() -> None:
    time = "2026-03-01T12:00:00Z"
    attempts = [
        {"attempt": n, "podName": "p", "startTime": time, "endTime": time, "outcome": "failed", "category": category}
        for n, category in ((1, "network"), (2, "billing"))
    ]
    failed = status(phase="Failed", reason="billing", message="no credit", attempts=attempts)
    assert failed_reason(failed) == "billing: no credit (2 attempts: network, billing)"
    assert [line.partition(": ")[0] for line in history(failed)] == ["attempt 1", "attempt 2"]
    assert failed_reason(status(phase="Cancelled", message="by ada")) == "cancelled: by ada"
    assert failed_reason(status(phase="Cancelled", message="cancelled")) == "cancelled"
    assert len(failed_reason(status(phase="Failed", reason="x", message="y" * 9000))) == MAX_REASON


def test_progress() -> None:
    running = status(phase="Running", attempt=2, message="works")
    assert progress_of(running, 40, "reads", "percent") == 40
    told = {"percent": 40, "message": "reads", "phase": "Running", "attempt": 2}
    assert progress_of(running, 40, "reads", "object") == told
    assert progress_of(running, 40, "", "object") == told | {"message": "works"}
