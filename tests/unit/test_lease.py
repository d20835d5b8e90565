"""The election: its decisions as tables, the fence at a socket, the settings."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from claudejobs.kube.client import ApiError, Fence, KubeClient
from claudejobs.kube.lease import Action, Candidate, Record, Step, Timing, clock, new_identity
from claudejobs.settings import Settings, SettingsError

TIMING = Timing(duration=15, deadline=10, retry=2)
ME, OTHER = "me_1", "other_1"


def record(holder: str, renewed: str = "t0", duration: float = 15, transitions: int = 1, version: str = "1") -> Record:
    return Record(holder, duration, renewed, transitions, version)


NEW = Candidate(ME, TIMING)
STANDBY = NEW.saw(record(OTHER), 100.0)
LEADER = NEW.saw(None, 100.0).wrote(record(ME), 100.0)


@pytest.mark.parametrize(
    ("candidate", "now", "expected"),
    [
        pytest.param(NEW.saw(None, 100.0), 100.0, Step(Action.CREATE), id="there is none"),
        pytest.param(NEW.saw(record(""), 100.0), 100.0, Step(Action.TAKE), id="it was given up"),
        pytest.param(NEW.saw(record(ME), 100.0), 100.0, Step(Action.TAKE), id="the answer to our taking it was lost"),
        pytest.param(STANDBY, 100.0, Step(Action.WAIT, wait=2), id="another's is left alone"),
        pytest.param(STANDBY, 114.0, Step(Action.WAIT, wait=1.0), id="the end is not slept past"),
        pytest.param(STANDBY, 114.99, Step(Action.WAIT, wait=0.05), id="nor is it looked at in a frenzy"),
        pytest.param(STANDBY, 115.0, Step(Action.TAKE), id="another's has run out"),
        pytest.param(
            STANDBY.saw(record(OTHER, "t1"), 114.0), 115.0, Step(Action.WAIT, wait=2), id="a renewal starts it anew"
        ),
        pytest.param(
            STANDBY.saw(record(OTHER, version="2"), 114.0), 115.0, Step(Action.TAKE), id="a label renews nothing"
        ),
        pytest.param(
            STANDBY.saw(record("third_1"), 114.0), 115.0, Step(Action.WAIT, wait=2), id="a third takes it over"
        ),
        pytest.param(STANDBY.saw(None, 101.0), 114.0, Step(Action.WAIT, wait=1.0), id="deleted, its holder may act"),
        pytest.param(STANDBY.saw(None, 101.0), 115.0, Step(Action.CREATE), id="deleted, its holder has stopped"),
        pytest.param(
            NEW.saw(record(OTHER, duration=60), 100.0), 159.0, Step(Action.WAIT, wait=1.0), id="the holder's duration"
        ),
        pytest.param(
            NEW.saw(record(OTHER, duration=0), 100.0), 114.0, Step(Action.WAIT, wait=1.0), id="it says no duration"
        ),
        pytest.param(LEADER, 109.9, Step(Action.RENEW), id="the leader renews"),
        pytest.param(
            LEADER.wrote(record(ME, "t1"), 105.0), 114.9, Step(Action.RENEW), id="from when the renewal was sent"
        ),
        pytest.param(LEADER.saw(record(ME, version="9"), 105.0), 105.0, Step(Action.RENEW), id="somebody set a label"),
        pytest.param(
            LEADER, 110.0, Step(Action.LOSE, reason="it was not renewed for 10.0 s"), id="the deadline has passed"
        ),
        pytest.param(
            LEADER.saw(record(ME, "t1"), 130.0),
            130.0,
            Step(Action.LOSE, reason="it was not renewed for 30.0 s"),
            id="frozen, and still the holder: it is too late all the same",
        ),
        pytest.param(
            LEADER.saw(record(OTHER), 101.0), 101.0, Step(Action.LOSE, reason="other_1 holds it"), id="taken over"
        ),
        pytest.param(LEADER.saw(record(""), 101.0), 101.0, Step(Action.LOSE, reason="nobody holds it"), id="emptied"),
        pytest.param(LEADER.saw(None, 101.0), 101.0, Step(Action.LOSE, reason="somebody deleted it"), id="deleted"),
    ],
)
def test_step(candidate: Candidate, now: float, expected: Step) -> None:
    step = candidate.step(now)
    assert (step.action, step.reason) == (expected.action, expected.reason)
    assert step.wait == pytest.approx(expected.wait)


def test_only_a_leader_has_time_left_and_it_counts_from_the_sending() -> None:
    assert STANDBY.left(100.0) < 0
    assert LEADER.left(103.0) == pytest.approx(7)
    assert LEADER.wrote(record(ME, "t1"), 102.0).left(103.0) == pytest.approx(9)
    assert replace(LEADER, acted=None).left(100.0) < 0


@pytest.mark.parametrize("renewals", [1, 3])
def test_a_takeover_never_comes_before_the_leaders_deadline(renewals: int) -> None:
    """Whatever the candidates' clocks say: the one sees a renewal only after the other has sent it."""
    leader, standby, skew = LEADER, NEW, 86_400.0
    now = 100.0
    for n in range(renewals):
        now = 100.0 + 2 * n
        leader = leader.wrote(record(ME, f"t{n}"), now)
        standby = Candidate("standby", TIMING, standby.record, standby.free_at).saw(record(ME, f"t{n}"), now + skew)
    times = [now + tenth / 10 for tenth in range(200)]
    acting = [t for t in times if leader.step(t).action is not Action.LOSE]
    taking = [t for t in times if standby.step(t + skew).action is Action.TAKE]
    assert taking[0] - acting[-1] >= 5


def test_a_record_is_read_from_any_lease() -> None:
    metadata = {"name": "l", "resourceVersion": "7"}
    assert Record.of({"metadata": metadata}) == Record("", 0.0, "", 0, "7")
    spec = {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "t", "leaseTransitions": 3}
    assert Record.of({"metadata": metadata, "spec": spec}) == Record("a", 15.0, "t", 3, "7")


def test_no_two_processes_have_the_same_identity() -> None:
    assert new_identity() != new_identity()
    assert clock() <= clock()


class Server:
    """Counts what reaches a server, as requests that are complete."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((request.method, dict(request.query), json.loads(body) if body else None))
        return web.json_response({})


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    server, app = Server(), web.Application()
    app.router.add_route("*", "/{path:.*}", server.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def request(url: str, lefts: list[float], method: str, body: Any) -> None:
    """One request of a client whose fence gives these answers in turn."""
    answers = iter(lefts)
    fence = Fence(lambda: next(answers), 5.0)
    configuration = Configuration(host=url)
    connector = aiohttp.TCPConnector(socket_factory=fence.socket)
    async with aiohttp.ClientSession(connector=connector) as session:
        await KubeClient(configuration, session, fence).request(method, "/x", body)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [None, {"a": 1}], ids=["no body", "body"])
async def test_the_fence_lets_a_write_pass_and_bounds_it(server: tuple[Server, str], method: str, body: Any) -> None:
    await request(server[1], [7.5, 7.4], method, body)
    assert server[0].requests == [(method, {"timeout": "7.500s"}, body)]


@pytest.mark.parametrize("body", [None, {"a": 1}], ids=["no body", "body"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "lefts", [[-1.0], [0.0], [8.0, -12.0, -12.0]], ids=["shut", "just shut", "frozen while connecting"]
)
async def test_no_write_passes_a_fence_that_is_shut(
    server: tuple[Server, str], method: str, lefts: list[float], body: Any
) -> None:
    with pytest.raises(ApiError, match=r"NotLeading|ClientConnectionError"):
        await request(server[1], lefts, method, body)
    await asyncio.sleep(0.05)
    assert server[0].requests == []


def test_the_kernel_drops_what_it_cannot_deliver_in_the_time_between_deadline_and_takeover() -> None:
    address: Any = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))
    with Fence(lambda: 1.0, 5.0).socket(address) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


async def test_reads_need_no_leadership(server: tuple[Server, str]) -> None:
    await request(server[1], [], "GET", None)
    assert server[0].requests == [("GET", {}, None)]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LEASE_DURATION": "10"}, "LEASE_RENEW_DEADLINE: 10 is not less than LEASE_DURATION, 10"),
        ({"LEASE_RETRY": "6"}, "LEASE_RETRY: 6 is more than half of LEASE_RENEW_DEADLINE, 10"),
        ({"LEASE_RETRY": "0"}, "LEASE_RETRY: '0' is not valid"),
        ({"LEASE_NAME": "Not A Name"}, "LEASE_NAME: 'Not A Name' is not valid"),
        ({"LEADER_ELECTION": "perhaps"}, "LEADER_ELECTION: 'perhaps' is not valid"),
        ({"LEADER_ELECTION": "true"}, "LEASE_NAMESPACE: must be set, because LEADER_ELECTION is true"),
    ],
)
def test_settings_that_could_not_work_are_named(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert str(raised.value).startswith(said)


def test_the_election_is_off_outside_a_cluster_and_its_namespace_is_the_pods_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert Settings.load().leader_election is False
    (tmp_path / "namespace").write_text("of-the-pod\n")
    monkeypatch.setattr("claudejobs.settings.OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("LEADER_ELECTION", "true")
    assert Settings.load().lease_namespace == "of-the-pod"
    monkeypatch.setenv("LEASE_NAMESPACE", "given")
    assert Settings.load().lease_namespace == "given"
