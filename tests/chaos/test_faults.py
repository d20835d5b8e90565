"""Every write of the operator and every event that it is told of, one fault at a time: the end is always the same."""

from __future__ import annotations

import pytest

from .faults import CRASHES, ON_EVENT, ON_WRITE, Kind
from .field import FULL, Field, event_faults, stale_faults, write_faults
from .scenarios import SCENARIOS

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

IN_FULL = list(SCENARIOS) if FULL else ["hello", "retry", "cancel"]


def _check(troubles: list[str]) -> None:
    assert not troubles, f"{len(troubles)} points:\n" + "\n".join(troubles)


@pytest.mark.parametrize(
    ("scenario", "kind"),
    [(scenario, kind) for kind in ON_WRITE for scenario in (SCENARIOS if kind in CRASHES else IN_FULL)],
    ids=lambda value: str(getattr(value, "name", value)).lower(),
)
async def test_a_fault_at_any_write_changes_nothing(scenario: str, kind: Kind, field: Field) -> None:
    _check(await field.try_all(scenario, write_faults(await field.reference(scenario), [kind])))


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_successor_with_an_old_view_changes_nothing(scenario: str, field: Field) -> None:
    _check(await field.try_all(scenario, stale_faults(await field.reference(scenario))))


@pytest.mark.parametrize("kind", [Kind.LIST_410, Kind.LIST_500], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("scenario", IN_FULL)
async def test_a_successor_whose_first_lists_fail_changes_nothing(scenario: str, kind: Kind, field: Field) -> None:
    _check(await field.try_all(scenario, write_faults(await field.reference(scenario), [kind])))


@pytest.mark.parametrize("kind", ON_EVENT, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("scenario", IN_FULL)
async def test_a_fault_at_any_event_changes_nothing(scenario: str, kind: Kind, field: Field) -> None:
    _check(await field.try_all(scenario, event_faults(await field.reference(scenario), [kind])))
