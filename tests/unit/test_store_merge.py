"""The merge rule, without a database. The integration tests hold SQL to the same rule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.process_state import ProcessState, ProcessStatus
from claudejobs.store.merge import IDENTITY_COLUMNS, NULLABLE_COLUMNS, merge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE: dict[str, Any] = {
    "process_id": "a-1",
    "job_uid": "a",
    "job_namespace": "n",
    "job_name": "j",
    "attempt": 1,
    "status": ProcessStatus.RUNNING,
}

states = st.builds(
    ProcessState,
    process_id=st.just("a-1"),
    job_uid=st.just("a"),
    job_namespace=st.just("n"),
    job_name=st.sampled_from(["j", "k"]),
    attempt=st.just(1),
    status=st.sampled_from(ProcessStatus),
    progress=st.integers(0, 100),
    error=st.none() | st.sampled_from(["", "x", "y"]),
    cost_usd=st.none() | st.sampled_from([0.0, 1.5]),
    pod_name=st.none() | st.sampled_from(["p", "q"]),
    metadata=st.sampled_from([{}, {"a": 1}, {"b": 2}]),
)


@given(states, states, states)
def test_coalescing_first_is_the_same_as_writing_one_by_one(
    row: ProcessState, second: ProcessState, third: ProcessState
) -> None:
    assert merge(merge(row, second), third) == merge(row, merge(second, third))


@given(states, states)
def test_nothing_goes_back(old: ProcessState, new: ProcessState) -> None:
    merged = merge(old, new)
    assert merged.status.rank >= old.status.rank
    assert merged.progress >= old.progress
    assert merge(merged, new) == merged
    for column in NULLABLE_COLUMNS:
        assert getattr(old, column) is None or getattr(merged, column) is not None
    if old.status.terminal:
        assert merged == old


@given(st.lists(states, min_size=1, max_size=5).flatmap(st.permutations))
def test_any_order_with_a_terminal_state_ends_terminal(writes: list[ProcessState]) -> None:
    row = writes[0]
    for write in writes[1:]:
        row = merge(row, write)
    assert row.status.terminal == any(write.status.terminal for write in writes)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"error": "old"}, {"error": None}, {"error": "old"}),
        ({"error": "old"}, {"error": ""}, {"error": ""}),
        ({"cost_usd": 1.0}, {"cost_usd": 0.0}, {"cost_usd": 0.0}),
        ({"progress": 50}, {"progress": 40}, {"progress": 50}),
        ({"metadata": {"a": 1}}, {"metadata": {}}, {"metadata": {"a": 1}}),
        ({"metadata": {"a": 1}}, {"metadata": {"b": 2}}, {"metadata": {"b": 2}}),
        ({"job_name": "first"}, {"job_name": "second"}, {"job_name": "first"}),
        ({"status": "running"}, {"status": "starting", "node_name": "n"}, {"node_name": "n"}),
        ({"status": "failed"}, {"status": "completed", "cost_usd": 2.0}, {"cost_usd": None}),
    ],
)
def test_one_rule_at_a_time(old: dict[str, Any], new: dict[str, Any], expected: dict[str, Any]) -> None:
    merged = merge(ProcessState(**(BASE | old)), ProcessState(**(BASE | new)))
    assert merged == ProcessState(**(BASE | old | expected))


def test_rows_of_two_attempts_are_refused() -> None:
    other = ProcessState(**(BASE | {"process_id": "b-1"}))
    with pytest.raises(ValueError, match="b-1 into a-1"):
        merge(ProcessState(**BASE), other)


def test_every_column_of_the_contract_has_a_rule() -> None:
    ruled = {*IDENTITY_COLUMNS, *NULLABLE_COLUMNS, "status", "progress", "metadata"}
    assert ruled == set(ProcessState.model_fields)
