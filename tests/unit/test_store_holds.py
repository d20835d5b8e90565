"""What is not yet written is known to be so, also while it is on its way to the database."""

from __future__ import annotations

from claudejobs.api.process_state import ProcessState, ProcessStatus, process_id
from claudejobs.store.buffer import Buffer
from claudejobs.store.config import StoreSettings


def test_a_row_is_held_until_its_batch_is_settled() -> None:
    buffer = Buffer(StoreSettings())
    row = ProcessState(
        process_id=process_id("uid", 1),
        job_uid="uid",
        job_namespace="ns",
        job_name="job",
        attempt=1,
        status=ProcessStatus.COMPLETED,
    )
    assert not buffer.holds(row.process_id)
    buffer.put(row)
    assert buffer.holds(row.process_id)
    buffer.take()
    assert buffer.holds(row.process_id)
    buffer.give_back()
    assert buffer.holds(row.process_id)
    buffer.take()
    buffer.settle()
    assert not buffer.holds(row.process_id)
