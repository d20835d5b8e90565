"""A job's log in the database: every line once and in order, whatever happens on the way there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from claudejobs.api.process_state import LogLine
from tests.support.kube import Namespace, job, wait_for
from tests.support.operator import OperatorProcess, wait_rows
from tests.support.proxy import ApiServerProxy

pytestmark = pytest.mark.e2e

BURST_LINES = 11_000
"""Long lines, more than the 10 MiB (the kubelet's default) after which a container's log is rotated."""
CUTS = 4
MORE = 50
"""Lines that pass between two faults."""
SWALLOWED = 3
"""Lines that containerd may write into the old file when the kubelet, which follows it, has gone over to the new."""


async def stored(operator: OperatorProcess, process: str, at_least: int = 1, last: str = "") -> list[LogLine]:
    """The stored lines, once there are so many, and ``last`` is the end of them."""
    lines: list[LogLine] = []
    for _ in range(600):
        lines = await operator.lines(process)
        if len(lines) >= at_least and lines[-1].line.endswith(last):
            return lines
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(lines)} lines are stored, not {at_least}; the last is {lines[-1:]}")


async def test_streams_that_are_cut_and_an_operator_that_is_killed_lose_and_double_nothing(
    own_namespace: Namespace, own_operator: Callable[..., OperatorProcess], misbehaving_image: str, tmp_path: Path
) -> None:
    proxy = ApiServerProxy(own_namespace.cluster.kubeconfig, tmp_path)
    try:
        first = own_operator(kubeconfig=proxy.kubeconfig, runner_image=misbehaving_image).start()
        own_namespace.apply(job("counting", "count 1"))
        own_namespace.wait_phase("counting", "Running")
        process = f"{own_namespace.uid_of('counting')}-1"
        seen = len(await stored(first, process, MORE))
        for _ in range(CUTS):
            proxy.break_connections()
            seen = len(await stored(first, process, seen + MORE))
        first.kill()
        printed = ("logs", "counting-1")
        wait_for(
            lambda: len(own_namespace.kubectl(*printed).splitlines()) > seen + MORE, "lines come while nobody reads"
        )
        second = own_operator(kubeconfig=proxy.kubeconfig, runner_image=misbehaving_image).start()
        await stored(second, process, seen + 2 * MORE)
        proxy.break_connections()
        own_namespace.kubectl("exec", "counting-1", "-c", "runner", "--", "touch", "/workspace/stop")
        assert own_namespace.wait_phase("counting", "Completed", "Failed")["phase"] == "Completed"
        await wait_rows(second, "counting", "completed")
        whole = own_namespace.kubectl(*printed).splitlines()
        lines = await stored(second, process, len(whole))
        assert [line.line for line in lines] == whole
        assert [line.seq for line in lines] == list(range(1, len(whole) + 1))
        assert second.stop() == 0
    finally:
        proxy.cut()


async def test_every_line_of_a_rotated_log_that_the_kubelet_hands_out_is_stored_once(
    own_namespace: Namespace, own_operator: Callable[..., OperatorProcess], misbehaving_image: str
) -> None:
    operator = own_operator(runner_image=misbehaving_image).start()
    own_namespace.apply(job("flood", f"count {BURST_LINES}"))
    own_namespace.wait_phase("flood", "Running")
    head = ("logs", "flood-1", "--limit-bytes=100")
    wait_for(
        lambda: (text := own_namespace.run(*head).stdout).startswith("line ") and not text.startswith("line 1 "),
        "the kubelet rotates the log",
        120,
    )
    own_namespace.kubectl("exec", "flood-1", "-c", "runner", "--", "touch", "/workspace/stop")
    assert own_namespace.wait_phase("flood", "Completed", "Failed")["phase"] == "Completed"
    await wait_rows(operator, "flood", "completed")
    current = [int(line.split()[1]) for line in own_namespace.kubectl("logs", "flood-1").splitlines()]
    process = f"{own_namespace.uid_of('flood')}-1"
    lines = await stored(operator, process, last=f"line {current[-1]}")
    numbers = [int(line.line.split()[1]) for line in lines]
    missing = sorted(set(range(1, current[-1] + 1)) - set(numbers))
    assert numbers == sorted(set(numbers))
    assert missing == list(range(current[0] - len(missing), current[0])), "only the kubelet's own loss is forgiven"
    assert len(missing) <= SWALLOWED
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert operator.stop() == 0
