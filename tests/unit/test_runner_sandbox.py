"""What is said about a kernel that cannot shut the agent in, and the table of what a hostile job tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claudejobs.runner import sandbox
from tests.support import isolation


@pytest.mark.parametrize(
    ("version", "said"), [(0, "termination message"), (2, "termination message"), (3, "signals"), (5, "signals")]
)
def test_a_kernel_that_cannot_hold_all_of_it_is_told(version: int, said: str) -> None:
    assert said in (sandbox.weakness(version) or "")


@pytest.mark.parametrize("version", [6, 7, 20])
def test_a_kernel_that_can_is_not(version: int) -> None:
    assert sandbox.weakness(version) is None


def test_the_program_is_told_what_to_become_and_where_it_may_write() -> None:
    program, environment = sandbox.launch(Path("/cli"), [Path("/workspace"), Path("/tmp")])
    assert program.stat().st_mode & 0o111 == 0o111
    assert json.loads(environment[sandbox.VARIABLE]) == ["/cli", "/workspace", "/tmp"]


def test_the_page_has_the_table_of_what_was_tried() -> None:
    text = isolation.PAGE.read_text()
    assert isolation.page(text) == text
    keys = [
        one.key
        for group in (isolation.NETWORK, isolation.ALLOWED, isolation.INSIDE, isolation.CONTAINED)
        for one in group
    ]
    assert len(keys) == len(set(keys))
