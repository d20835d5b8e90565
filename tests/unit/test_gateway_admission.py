"""Who may use the model, and when one has to wait."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.events import BUDGET_SPENT
from claudejobs.gateway.admission import Caller, Job, admit
from claudejobs.gateway.identity import caller_of
from claudejobs.gateway.ledger import Ledger
from claudejobs.gateway.limits import Closures, Rate
from claudejobs.gateway.prices import PriceTable
from claudejobs.gateway.refusal import RefusedError
from claudejobs.gateway.requests import model_in
from claudejobs.gateway.usage import Usage
from claudejobs.reconcile.pod import build_pod
from claudejobs.reconcile.views import PodView

from .model.objects import Json, job_object, make_settings

CALLER = Caller("team", "job-1", "pod-uid")


def pod(attempt: int = 1, status: Json | None = None, **meta: Any) -> PodView | None:
    """The pod that the operator makes, as the API server sends it."""
    made = build_pod(job_object(), attempt, "session", 0.0, make_settings())
    made["metadata"] |= {"uid": "pod-uid", "resourceVersion": "1", "creationTimestamp": "2026-03-01T12:00:00Z"} | meta
    return PodView.parse(made | {"status": status or {"phase": "Running"}})


def job(status: Json | None = None, spec: Json | None = None, **meta: Any) -> Job:
    """A job whose first attempt runs."""
    made = job_object(spec)
    made["metadata"] |= meta
    return Job.parse(made | {"status": {"phase": "Running", "attempt": 1, "podName": "job-1"} | (status or {})})


def refusal(*arguments: Any) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        admit(*arguments)
    return caught.value.status, caught.value.message


def test_the_running_attempt_is_admitted() -> None:
    assert admit(CALLER, pod(), job()).name == "job"
    assert admit(CALLER, pod(status={"phase": "Pending"}), job({"phase": "Starting"})).name == "job"


ENDED: Json = {"state": {"terminated": {"exitCode": 1, "finishedAt": "2026-03-01T12:00:00Z"}}, "name": "runner"}


@pytest.mark.parametrize(
    ("seen", "of", "why"),
    [
        (None, job(), "is not an attempt of a ClaudeCodeJob"),
        (pod(uid="another"), job(), "is not an attempt of a ClaudeCodeJob"),
        (pod(ownerReferences=[]), job(), "is not an attempt of a ClaudeCodeJob"),
        (pod(status={"phase": "Succeeded"}), job(), "has ended"),
        (pod(status={"phase": "Running", "containerStatuses": [ENDED]}), job(), "has ended"),
        (pod(deletionTimestamp="2026-03-01T12:00:00Z"), job(), "has ended"),
        (pod(), None, "there is no such job"),
        (pod(), job(uid="another"), "there is no such job"),
        (pod(), job(deletionTimestamp="2026-03-01T12:00:00Z"), "has ended"),
        *((pod(), job({"phase": phase}), "has ended") for phase in ("Completed", "Failed", "Cancelled")),
        (pod(name="other-1"), job(), "is not an attempt of ClaudeCodeJob job"),
        (pod(3), job(), "is not an attempt of ClaudeCodeJob job"),
        (pod(1), job({"attempt": 3, "podName": "job-3"}), "is not an attempt of ClaudeCodeJob job"),
        (pod(), job({"podName": None, "phase": "Backoff"}), "is not the present attempt"),
    ],
)
def test_everything_else_is_refused_for_good(seen: PodView | None, of: Job | None, why: str) -> None:
    status, message = refusal(CALLER, seen, of)
    assert status == 403
    assert why in message


def test_an_attempt_that_is_not_recorded_yet_has_to_wait() -> None:
    assert refusal(CALLER, pod(), job({"attempt": 0, "podName": None, "phase": "Pending"}))[0] == 503
    assert refusal(CALLER, pod(2), job({"phase": "Backoff", "podName": None}))[0] == 503


def test_a_pod_that_was_started_ahead_is_admitted_by_the_name_in_the_status() -> None:
    caller = Caller("team", "ready-warm-x", "pod-uid")
    assert admit(caller, pod(name="ready-warm-x"), job({"podName": "ready-warm-x"})).name == "job"
    assert refusal(caller, pod(name="ready-warm-x"), job())[0] == 403
    assert refusal(caller, pod(2, name="ready-warm-x"), job({"podName": "ready-warm-x"}))[0] == 403


def review(**changes: Any) -> Json:
    extra = {"authentication.kubernetes.io/pod-name": ["job-1"], "authentication.kubernetes.io/pod-uid": ["pod-uid"]}
    user = {"username": "system:serviceaccount:team:default", "extra": extra}
    return {"authenticated": True, "audiences": ["claudejobs-gateway"], "user": user} | changes


def test_a_review_names_the_pod() -> None:
    assert caller_of(review()) == CALLER


@pytest.mark.parametrize(
    "changes",
    [
        {"authenticated": False},
        {"audiences": None},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"user": {"username": "system:serviceaccount:team:default"}},
        {"user": review()["user"] | {"username": "system:node:team:default"}},
    ],
)
def test_a_review_that_names_no_pod_is_no_identity(changes: Json) -> None:
    with pytest.raises(RefusedError) as caught:
        caller_of(review(**changes))
    assert caught.value.status == 401


def test_a_budget_counts_former_attempts_and_what_was_seen() -> None:
    ledger = Ledger(PriceTable())
    spec = {"claude": {"maxBudgetUSD": 1}}
    first, second = job(spec=spec), job({"attempt": 2, "podName": "job-2", "costUSD": 0.0}, spec)
    ledger.check_budget(first)
    ledger.charge(first, "claude-sonnet-4-5", Usage(input_tokens=200_000))  # 0.60
    ledger.check_budget(first)
    # The runner of the first attempt claims that it cost nothing; what was seen counts.
    assert ledger.spent(second) == pytest.approx(0.6)
    assert ledger.spent(job({"attempt": 2, "podName": "job-2", "costUSD": 0.9}, spec)) == pytest.approx(0.9)
    ledger.charge(second, "claude-sonnet-4-5", Usage(input_tokens=200_000))
    with pytest.raises(RefusedError) as caught:
        ledger.check_budget(second)
    assert (caught.value.status, BUDGET_SPENT in caught.value.message) == (400, True)


def test_a_model_without_a_price_is_no_way_around_a_budget() -> None:
    ledger, it = Ledger(PriceTable()), job(spec={"claude": {"maxBudgetUSD": 1}})
    assert ledger.charge(it, "unheard-of", Usage(output_tokens=100_000)) is None
    with pytest.raises(RefusedError):
        ledger.check_budget(it)
    (account,) = ledger.report(namespace="team")
    assert (account["costUSD"], account["unpricedRequests"], account["outputTokens"]) == (0, 1, 100_000)
    assert ledger.report(namespace="other") == ledger.report(user="nobody") == []


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def closures(clock: Clock) -> Closures:
    return Closures(longest=60, clock=clock, chance=lambda: 0.5)


def waits(it: Closures, model: str = "m") -> float:
    with pytest.raises(RefusedError) as caught:
        it.enter(model)
    assert caught.value.status == 429
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_a_pause_ends_with_one_probe() -> None:
    clock = Clock()
    it = closures(clock)
    assert it.enter("m") is False
    it.answered("m", 429, "20")
    assert waits(it) == pytest.approx(22)  # the time that is left, and a tenth of it for the spread
    assert it.enter("other") is False
    it.answered("m", 200, None)  # of a request from before
    clock.now += 10
    assert waits(it) == pytest.approx(11)
    clock.now += 10
    assert it.enter("m") is True
    assert waits(it) > 1
    it.answered("m", 200, None)
    it.leave("m")
    assert it.enter("m") is False
    assert it.models == []


def test_a_probe_that_is_refused_closes_again_and_one_that_is_lost_lets_the_next_try() -> None:
    clock = Clock()
    it = closures(clock)
    it.answered("m", 529, None)
    clock.now += 1
    assert it.enter("m") is True
    it.answered("m", 529, None)  # without Retry-After the pause doubles
    it.leave("m")
    clock.now += 1.5
    waits(it)
    clock.now += 0.5
    assert it.enter("m") is True
    it.leave("m")
    assert it.enter("m") is True
    clock.now += 29
    waits(it)
    clock.now += 1  # a probe that has no answer for long does not stop all the rest
    assert it.enter("m") is True


def test_a_pause_is_bounded_and_refusals_at_the_same_time_are_one() -> None:
    clock = Clock()
    it = closures(clock)
    for _ in range(100):
        it.answered("m", 529, None)
    assert waits(it) == pytest.approx(1.1)
    it.answered("m", 429, "86400")
    assert waits(it) == pytest.approx(66)
    for nonsense in ("nan", "-5", "Wed, 21 Oct 2026 07:28:00 GMT", ""):
        it.answered(nonsense or "empty", 429, nonsense)
        assert waits(it, nonsense or "empty") == pytest.approx(1.1)


def test_a_rate_refills_evenly() -> None:
    clock = Clock()
    rate = Rate(60, "job", clock)
    for _ in range(60):
        rate.check("a")
    with pytest.raises(RefusedError) as caught:
        rate.check("a")
    assert caught.value.retry_after == pytest.approx(1)
    rate.check("b")
    clock.now += 1
    rate.check("a")
    with pytest.raises(RefusedError):
        rate.check("a")
    Rate(None, "job", clock).check("a")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ('{"model":"claude-x","messages":[', "claude-x"),
        ('{"max_tokens": 1, "messages": [{"content": "\\"model\\": \\"no\\""}], "model" : "claude-x"', "claude-x"),
        ('{"tools":[{"model":"no"}],"metadata":{"model":"no"},"model":"claude-x"}', "claude-x"),
        ('{"messages":[{"model":"no"}]}', None),
        ('{"model":7,"x":"claude-x"}', None),
        ('{"model":"claude-x\\"y"}', None),
        ('["model","claude-x"]', None),
        ('{"model":"' + "x" * 500 + '"}', None),
        ("", None),
    ],
)
def test_the_model_is_that_of_the_outermost_object(text: str, model: str | None) -> None:
    assert model_in(text.encode()) == model


@given(st.binary(max_size=300))
def test_no_bytes_break_the_search_for_the_model(head: bytes) -> None:
    model_in(head)
