"""What the model gateway adds to a call: direct calls and calls through it take turns, in one run.

The gateway is a process of its own that reviews a real pod's token at a real API server; the model is the scripted
one. A request is as large as the agent's first (60 KB), its answer is streamed. Times are those of the client, to the
first byte of the answer and to its last.

    python -m localcluster run -- python benchmarks/gateway_overhead.py [CALLS] [AT_A_TIME ...]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

import localcluster
from tests.support.gateway import Attempt, GatewayProcess
from tests.support.kube import Namespace, unique
from tests.support.operator import REPOSITORY

WARM_UP = 20
"""Calls of each client, both ways, before those that count."""

PATH = "/v1/messages?beta=true"
BODY = {
    "model": "claude-sonnet-4-5",
    "messages": [{"role": "user", "content": "script: text 2000"}],
    "system": "x" * 60_000,
    "max_tokens": 1000,
    "stream": True,
}


def main(calls: int, widths: list[int]) -> None:
    """Measure each number of calls at a time."""
    namespace = Namespace(localcluster.ensure(), unique("bench-gateway"))
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name}})
    program = str(REPOSITORY / "images/scripted-model/scripted_model.py")
    model = subprocess.Popen([sys.executable, program, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert model.stdout is not None
    direct = model.stdout.readline().split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        gateway = GatewayProcess(namespace, Path(folder), direct, drain_seconds=0).start()
        try:
            token = Attempt(namespace, unique("bench")).token()
            for width in widths:
                before = cpu_seconds(gateway)
                asyncio.run(compare(direct, gateway.url, token, calls, width))
                made = calls // width * width + WARM_UP * width
                print(f"  CPU of the gateway for each call {(cpu_seconds(gateway) - before) / made * 1000:18.2f}")
        finally:
            gateway.stop()
            model.terminate()
            namespace.run("delete", "namespace", namespace.name, "--wait=false")


def cpu_seconds(gateway: GatewayProcess) -> float:
    """Processor time that the gateway has taken: what a busy machine does not change."""
    assert gateway.process is not None
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def compare(direct: str, through: str, token: str, calls: int, width: int) -> None:
    """Some clients at a time, each of which calls the model both ways in turn."""
    times: dict[str, list[tuple[float, float]]] = {direct: [], through: []}

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for turn in range(calls // width + WARM_UP):
            order = (direct, through) if (turn + number) % 2 else (through, direct)
            for address in order:
                took = await call(session, address + PATH, token)
                if turn >= WARM_UP:  # connections are open, and the token is known
                    times[address].append(took)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(width)))
    print(f"{width} at a time, {len(times[direct])} calls each way, ms       p50     p99")
    for which, name in ((0, "first byte"), (1, "last byte")):
        alone = percentiles([took[which] for took in times[direct]])
        passed = percentiles([took[which] for took in times[through]])
        print(f"  {name:<11} direct                     {alone[0]:9.2f} {alone[1]:7.2f}")
        print(f"  {name:<11} through the gateway        {passed[0]:9.2f} {passed[1]:7.2f}")
        print(f"  {name:<11} added                      {passed[0] - alone[0]:9.2f} {passed[1] - alone[1]:7.2f}")


async def call(session: aiohttp.ClientSession, url: str, token: str) -> tuple[float, float]:
    """Seconds to the first and to the last byte of an answer."""
    begin = time.perf_counter()
    async with session.post(url, json=BODY, headers={"x-api-key": token}) as response:
        first: Any = await response.content.readany()
        to_first = time.perf_counter() - begin
        await response.read()
        assert response.status == 200, first
    return to_first, time.perf_counter() - begin


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, milliseconds."""
    return statistics.median(seconds) * 1000, statistics.quantiles(seconds, n=100)[98] * 1000


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(numbers[0] if numbers else 1000, numbers[1:] or [1, 8])
