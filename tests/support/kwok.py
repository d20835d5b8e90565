"""Attempts of jobs on nodes that kwok plays: the prompt says how an attempt ends, and its result is left as the
runner leaves it.

``complete …`` completes, with the prompt as its answer; ``fail CATEGORY …`` fails; ``again …`` fails once and then
completes; ``hang …`` runs until its pod is deleted.
"""

from __future__ import annotations

from typing import Any

from claudejobs.api.categories import POLICIES, Category
from claudejobs.reconcile.pod import INPUT_ANNOTATION
from claudejobs.reconcile.views import CONTAINER

AGAIN = Category.SDK_CRASH
"""Why the first attempt of ``again`` fails: retriable, and soon."""

_INPUT = f"""{{{{ $input := index .metadata.annotations "{INPUT_ANNOTATION}" | fromJson }}}}"""

_RUNNING = f"""
{{{{ $now := Now }}}}
phase: Running
startTime: {{{{ $now | Quote }}}}
containerStatuses:
- name: {CONTAINER}
  image: none
  imageID: none
  ready: true
  started: true
  restartCount: 0
  state:
    running:
      startedAt: {{{{ $now | Quote }}}}
"""


def _terminated(code: str, reason: str, message: str) -> str:
    """The status of a runner's container that ran and has ended; all three may be templates."""
    return f"""containerStatuses:
- name: {CONTAINER}
  image: none
  imageID: none
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: {code}
      reason: {reason}
      startedAt: {{{{ (index .status.containerStatuses 0).state.running.startedAt | Quote }}}}
      finishedAt: {{{{ Now | Quote }}}}
      message: {message}
"""


_CODES = " ".join(f'"{category}" {policy.exit_code}' for category, policy in POLICIES.items() if policy.exit_code)

_ENDED = f"""
{_INPUT}
{{{{ $words := splitList " " $input.prompt }}}}
{{{{ $category := "" }}}}
{{{{ if eq (first $words) "fail" }}}}{{{{ $category = index $words 1 }}}}{{{{ end }}}}
{{{{ if and (eq (first $words) "again") (eq (int $input.attempt) 1) }}}}{{{{ $category = "{AGAIN}" }}}}{{{{ end }}}}
{{{{ $result := dict "outcome" "completed" "text" $input.prompt "num_turns" 1 "cost_usd" 0.25 }}}}
{{{{ if $category }}}}
{{{{ $result = dict "outcome" "failed" "category" $category "message" "as the prompt says" "cost_usd" 0.25 }}}}
{{{{ end }}}}
{{{{ $code := 0 }}}}
{{{{ if $category }}}}{{{{ $code = index (dict {_CODES}) $category }}}}{{{{ end }}}}
phase: {{{{ if $category }}}}Failed{{{{ else }}}}Succeeded{{{{ end }}}}
""" + _terminated(
    "{{ $code }}", "{{ if $category }}Error{{ else }}Completed{{ end }}", "{{ $result | toJson | Quote }}"
)

_STOPPED = "\nphase: Failed\n" + _terminated(
    str(POLICIES[Category.CANCELLED].exit_code),
    "Error",
    f'{{{{ dict "outcome" "cancelled" "category" "{Category.CANCELLED}" | toJson | Quote }}}}',
)


def attempt_stages(seconds: float = 1.0, jitter: float = 1.0) -> list[dict[str, Any]]:
    """Stages for ``localcluster.kwok``.

    Args:
        seconds: how long an attempt takes.
        jitter: up to so much longer, seconds.
    """
    milliseconds = int(seconds * 1000)
    delay = {"durationMilliseconds": milliseconds, "jitterDurationMilliseconds": milliseconds + int(jitter * 1000)}
    hangs = f'.metadata.annotations["{INPUT_ANNOTATION}"] | fromjson | .prompt | startswith("hang") | tostring'
    return [
        _stage("attempt-starts", "Pending", _RUNNING),
        _stage("attempt-ends", "Running", _ENDED, [{"key": hangs, "operator": "In", "values": ["false"]}], delay),
    ]


def stop_stage() -> dict[str, Any]:
    """What becomes of a running attempt whose pod is deleted: it tells that it was stopped, as with a kubelet, and only
    then goes. Without this stage, such a pod is gone at once."""
    stage = _stage("attempt-stops", "Running", _STOPPED)
    stage["spec"]["selector"]["matchExpressions"][0]["operator"] = "Exists"
    return stage | {"spec": stage["spec"] | {"weight": 1}}  # more than that of pod-delete, which also fits


def _stage(
    name: str,
    phase: str,
    status: str,
    more: list[dict[str, Any]] | None = None,
    delay: dict[str, int] | None = None,
) -> dict[str, Any]:
    expressions = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": [phase]},
        *(more or []),
    ]
    spec: dict[str, Any] = {
        "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
        "selector": {"matchExpressions": expressions},
        "next": {"statusTemplate": status},
    }
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": spec | ({"delay": delay} if delay else {}),
    }
