"""What is read from objects and events, and what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.events import Outcome, parse_event, parse_result
from claudejobs.reconcile.views import JobView, LiveReport, PodView, is_newer

from .model.objects import (
    JOB_UID,
    NOW,
    ago,
    disruption,
    ended_status,
    job_object,
    job_view,
    parsed,
    pod_object,
    result_json,
    running_status,
    stamp,
    status_with,
    waiting,
)


def test_a_view_of_a_job_leaves_out_what_only_the_pod_needs() -> None:
    spec = {"prompt": "x" * 1000, "arguments": {"a": 1}, "claude": {"systemPrompt": "y", "maxTurns": 3}}
    view = job_view(spec)
    assert (view.spec.prompt, view.spec.arguments, view.spec.claude.system_prompt) == ("", {}, None)
    assert view.spec.claude.max_turns == 3
    assert (view.key, view.uid, view.invalid, view.deleting) == (("team", "job"), JOB_UID, None, False)


def test_a_finished_jobs_answer_is_not_kept() -> None:
    result = {"text": "a long answer", "numTurns": 4, "structuredOutput": {"a": 1}}
    view = job_view(None, status_with(phase="Completed", result=result))
    assert view.status.result is not None
    assert (view.status.result.text, view.status.result.structured_output) == (None, None)
    assert view.status.result.num_turns == 4


def test_a_spec_that_cannot_be_read_is_said_to_be_so() -> None:
    view = job_view({"claude": {"maxTurns": 0}})
    assert view.invalid is not None
    assert view.invalid.startswith("spec.claude.maxTurns: ")


def test_a_pod_as_it_is_made_is_pending() -> None:
    view = parsed(pod_object(2, node=None))
    assert (view.attempt, view.phase, view.job, view.job_uid) == (2, "Pending", ("team", "job"), JOB_UID)
    assert not view.running
    assert not view.terminated
    assert view.node is None


def test_a_running_pod_is_read() -> None:
    view = parsed(pod_object(1, running_status(50), deletionTimestamp=stamp(NOW)))
    assert (view.running, view.terminated, view.node) == (True, False, "node-a")
    assert (view.started, view.deleting_since) == (ago(50), NOW)


@pytest.mark.parametrize(
    ("code", "message", "phase", "terminated"),
    [
        (0, result_json(), "Running", True),
        (0, result_json("failed", category="network"), "Running", False),
        (0, "", "Running", False),
        (1, result_json(), "Running", False),
        (22, result_json("failed", category="network"), "Running", False),
        (22, result_json("failed", category="network"), "Failed", True),
        (0, "", "Succeeded", True),
    ],
)
def test_only_a_completed_container_ends_its_pod_early(code: int, message: str, phase: str, terminated: bool) -> None:
    view = parsed(pod_object(1, ended_status(code, message, phase=phase)))
    assert (view.terminated, view.running) == (terminated, False)
    assert (view.exit_code, view.finished) == (code, ago(1))


def test_the_runners_result_is_not_taken_for_a_message() -> None:
    view = parsed(pod_object(1, ended_status(0, result_json(text="done"))))
    assert view.message == ""
    assert view.result is not None
    assert parsed(pod_object(1, ended_status(1, "Traceback"))).message == "Traceback"
    assert parsed(pod_object(1, waiting("ErrImagePull", "why"))).message == "why"


def test_a_disruption_that_was_called_off_is_none() -> None:
    assert parsed(pod_object(1, disruption("PreemptionByScheduler"))).disruption == "PreemptionByScheduler"
    assert parsed(pod_object(1, disruption("PreemptionByScheduler", "False"))).disruption == ""


def test_the_state_of_other_containers_is_not_the_runners() -> None:
    status = running_status()
    status["containerStatuses"].insert(0, {"name": "sidecar", "state": {"terminated": {"exitCode": 1}}})
    status["initContainerStatuses"] = [{"name": "setup", "state": {"terminated": {"exitCode": 0}}}]
    assert parsed(pod_object(1, status)).running
    status["containerStatuses"] = status["containerStatuses"][:1]
    assert parsed(pod_object(1, status)).exit_code is None


@pytest.mark.parametrize(
    "meta",
    [
        {"ownerReferences": []},
        {"ownerReferences": [{"apiVersion": API_VERSION, "kind": KIND, "name": "job", "uid": "u"}]},
        {
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": "Other", "name": "j", "uid": "u", "controller": True}
            ]
        },
        {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "u", "controller": True}]},
        {
            "ownerReferences": [
                {"apiVersion": "claudecode.dev.example/v1", "kind": KIND, "name": "job", "uid": "u", "controller": True}
            ]
        },
        {"labels": {}},
        {"labels": {"claudecode.dev/attempt": "x"}},
    ],
)
def test_a_pod_of_something_else_is_none_of_ours(meta: dict[str, Any]) -> None:
    assert PodView.parse(pod_object(1, **meta)) is None


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("10", "9", True), ("9", "10", False), ("9", "9", True), ("a", "9", True), ("18446744073709551617", "2", True)],
)
def test_versions_are_numbers(version: str, than: str, newer: bool) -> None:
    assert is_newer(version, than) is newer


def event(seq: int, **fields: Any) -> Any:
    found = parse_event(json.dumps({"v": 1, "seq": seq, "time": stamp(NOW)} | fields))
    assert found is not None
    return found


def test_a_report_grows_with_the_events() -> None:
    report = LiveReport()
    for fields in (
        {"type": "session", "session_id": "s", "model": "m"},
        {"type": "progress", "percent": 40, "message": "half way"},
        {"type": "progress", "percent": 20},
    ):
        report = report.with_event(event(1, **fields))
    assert (report.session_id, report.model, report.progress, report.step) == ("s", "m", 40, "half way")
    report = report.with_event(event(2, type="tool_use", tool="Bash", summary="make"))
    assert report.step == "Bash: make"
    report = report.with_event(event(3, type="text", text="  "))
    assert report.step == "Bash: make"
    report = report.with_event(event(4, type="result", result={"outcome": "completed"}))
    assert report.result is not None
    assert report.result.outcome is Outcome.COMPLETED


def test_a_report_keeps_only_the_newest_lines() -> None:
    report = LiveReport()
    for n in range(30):
        report = report.with_text(f"line {n} " + "x" * 1000)
    assert len(report.tail) == 10
    assert report.tail[-1].startswith("line 29 ")
    assert max(map(len, report.tail)) <= 500


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "-1", "1e999"])
@pytest.mark.parametrize("name", ["cost_usd", "retry_after_seconds"])
def test_a_result_with_impossible_numbers_is_none(name: str, number: str) -> None:
    """They could be neither counted nor written, and the job would stay where it is for ever."""
    assert parse_result(f'{{"outcome": "failed", "category": "network", "{name}": {number}}}') is None


def test_an_object_of_the_api_server_is_read_without_a_status() -> None:
    assert JobView.parse(job_object()).status.phase == "Pending"
