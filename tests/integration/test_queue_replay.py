"""`claudejobs replay`: dead letters go back, whatever has become of their jobs; no operator runs here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner

from claudejobs.cli.main import main
from claudejobs.intake.bull import BullQueue
from claudejobs.intake.connection import connect
from claudejobs.intake.dead_letter import bury, dead_letter_name
from tests.support.kube import unique
from tests.support.node import REPOSITORY, NodeProcess, node_command
from tests.support.operator import command_environment
from tests.support.redis import RedisServer

Json = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    # What is told as written outlives a kill of the process without waiting for the disk each time.
    with RedisServer(tmp_path_factory.mktemp("redis"), config={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture(scope="module")
def producer(server: RedisServer) -> Iterator[NodeProcess]:
    with NodeProcess("producer.js", server) as producer:
        yield producer


@dataclass
class Queue:
    """A queue with its dead letters."""

    server: RedisServer
    producer: NodeProcess
    prefix: str = "bull"
    name: str = field(default_factory=lambda: unique("tasks"))

    def __post_init__(self) -> None:
        self.at = {"queue": self.name, "prefix": self.prefix}
        self.dead = {"queue": dead_letter_name(self.name), "prefix": self.prefix}

    def add(self, job_id: str, text: str = "hello", **opts: Any) -> None:
        """Add a job."""
        given = {"name": "run", "data": {"command": text}, "opts": {"jobId": job_id, **opts}}
        self.producer.command("add", **self.at, **given)

    def die(self, job_id: str) -> str:
        """Fail the job that is next, which is this one, as the operator does; the id of its dead letter."""

        async def fail() -> str:
            client = connect(self.server.url())
            try:
                bull = BullQueue(client, self.prefix, self.name, "uid")
                dead = await bull.fetch(60_000)
                assert dead is not None
                assert dead.identity.id == job_id
                await bury(bull, dead, "billing: no credit", ["the end"])
                await bull.fail(dead, "billing: no credit", ())
                return dead.identity.resource_name
            finally:
                await client.aclose()

        return asyncio.run(fail())

    def add_and_die(self, job_id: str, text: str = "hello", **opts: Any) -> str:
        """Add a job and fail it."""
        self.add(job_id, text, **opts)
        return self.die(job_id)

    def arguments(self, *more: str) -> list[str]:
        """What the command is given."""
        return ["replay", self.name, "--prefix", self.prefix, *more]

    def replay(self, *more: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of the command."""
        done = CliRunner().invoke(main, self.arguments(*more), env={"REDIS_URL": self.server.url()})
        assert isinstance(done.exception, SystemExit | None), done.exception
        return done.exit_code, done.stdout, done.stderr

    def job(self, job_id: str) -> Json:
        """A job as BullMQ shows it."""
        job: Json = self.producer.command("getJob", **self.at, jobId=job_id)
        return job

    def waiting(self, queue: Json | None = None) -> int:
        """How many jobs, or dead letters, wait."""
        return int(self.producer.command("getJobCounts", **(queue or self.at))["waiting"])

    def letters(self) -> int:
        """How many dead letters there are."""
        return self.waiting(self.dead)


@pytest.fixture
def queue(server: RedisServer, producer: NodeProcess) -> Queue:
    return Queue(server, producer)


def test_no_dead_letters(queue: Queue) -> None:
    assert queue.replay() == (0, f"queue {queue.name} has no dead letters\n", "")


def test_a_letter_that_is_not_there(queue: Queue) -> None:
    letter = queue.add_and_die("a")
    code, told, why = queue.replay("--id", "nobody", "--id", letter)
    assert (code, why) == (1, "Error: 1 of 2 dead letters stay\n")
    assert told == f"nobody  there is no such dead letter\n{letter}  retried as a\n"
    assert queue.job("a")["state"] == "waiting"


def test_the_oldest_goes_first_and_a_second_time_nothing_does(queue: Queue) -> None:
    letters = [queue.add_and_die(f"job-{number}", removeOnFail=number == 1) for number in range(3)]
    _, told, _ = queue.replay("--limit", "2")
    assert told == f"{letters[0]}  retried as job-0\n{letters[1]}  added again as job-1\n"
    assert queue.replay("--id", letters[0])[1] == f"{letters[0]}  there is no such dead letter\n"
    assert queue.replay()[1] == f"{letters[2]}  retried as job-2\n"
    assert (queue.waiting(), queue.letters()) == (3, 0)
    assert queue.replay()[0] == 0


def test_two_replays_at_once_send_each_letter_back_once(queue: Queue) -> None:
    for number in range(20):
        queue.add_and_die(f"job-{number}", removeOnFail=number % 2 == 0)
    command = [sys.executable, "-m", "claudejobs.cli.main", *queue.arguments()]
    environment = command_environment(REDIS_URL=queue.server.url())
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in "12"]
    for one in both:
        _, errors = one.communicate(timeout=120)
        assert b"Traceback" not in errors, errors
    assert (queue.waiting(), queue.letters()) == (20, 0)


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "completed", "failed"])
def test_another_job_has_the_id_by_now(queue: Queue, state: str) -> None:
    letter = queue.add_and_die("a", "the first", removeOnFail=True)
    queue.add("a", "the second", delay=600_000 if state == "delayed" else 0)
    ended = {"active": {"hold": True}, "completed": {}}
    if state in ended:
        queue.producer.command("remove", **queue.at, jobId="a")
        given = {"name": "run", "data": ended[state], "opts": {"jobId": "a"}}
        with NodeProcess("worker.js", queue.server, **queue.at) as worker:
            queue.producer.command("add", **queue.at, **given)
            worker.wait_for_event("started", jobId="a")
            if state == "completed":
                queue.producer.command("waitUntilFinished", **queue.at, jobId="a", ttl=60_000)
            _check_that_it_stays(queue, letter, state)
            return
    if state == "failed":
        queue.die("a")
    _check_that_it_stays(queue, letter, state)
    queue.producer.command("remove", **queue.at, jobId="a")
    assert queue.replay("--id", letter)[1] == f"{letter}  added again as a\n"
    assert queue.job("a")["data"] == {"command": "the first"}


def _check_that_it_stays(queue: Queue, letter: str, state: str) -> None:
    before = queue.job("a")["data"]
    code, told, _ = queue.replay("--id", letter)
    assert code == 1
    problem = f"has other data than the letter and is {state}; replay again once it is removed"
    assert told == f"{letter}  job a of queue {queue.name} {problem}\n"
    job = queue.job("a")
    assert (job["data"], job["state"]) == (before, state)
    assert queue.producer.command("getState", **queue.dead, jobId=letter) == "waiting"


def test_a_job_that_was_retried_by_hand_is_not_run_twice(queue: Queue) -> None:
    letter = queue.add_and_die("a")
    queue.producer.command("retry", **queue.at, jobId="a", state="failed")
    assert queue.replay("--dry-run")[1] == f"{letter}  waits already as a\n"
    with NodeProcess("worker.js", queue.server, **queue.at) as worker:
        worker.wait_for_event("started", jobId="a")
        queue.producer.command("waitUntilFinished", **queue.at, jobId="a", ttl=60_000)
    code, told, _ = queue.replay()
    assert code == 1
    assert f"job a of queue {queue.name} has the letter's data and is completed; remove the letter unless" in told
    assert (queue.waiting(), queue.letters()) == (0, 1)


def test_a_letter_that_a_worker_holds_goes_back_and_is_told_of(queue: Queue) -> None:
    letter = queue.add_and_die("a")
    with queue.server.client() as client:
        client.set(f"bull:{queue.dead['queue']}:{letter}:lock", "a-worker", px=600_000)
    code, told, _ = queue.replay()
    assert code == 1
    assert told == f"{letter}  retried as a, but a worker of {queue.dead['queue']} holds the letter\n"
    assert queue.job("a")["state"] == "waiting"


def test_letters_that_cannot_be_read_keep_no_other_back(queue: Queue) -> None:
    first, second = queue.add_and_die("a"), queue.add_and_die("b")
    with queue.server.client() as client:
        client.hset(f"bull:{queue.dead['queue']}:{first}", "data", "{")
    code, told, why = queue.replay()
    assert (code, why) == (1, "Error: 1 of 2 dead letters stay\n")
    assert f"{first}  it cannot be sent back: " in told
    assert f"{second}  retried as b\n" in told


def test_a_queue_of_another_prefix(server: RedisServer, producer: NodeProcess, queue: Queue) -> None:
    other = Queue(server, producer, "tm", queue.name)
    mine, theirs = queue.add_and_die("a"), other.add_and_die("a", removeOnFail=True)
    assert other.replay()[1] == f"{theirs}  added again as a\n"
    assert (other.letters(), queue.letters(), queue.job("a")["state"]) == (0, 1, "failed")
    assert queue.replay()[1] == f"{mine}  retried as a\n"


def test_letters_that_were_put_there_by_other_tools(queue: Queue) -> None:
    queue.producer.command("add", **queue.dead, name="run", data={"command": "hello"}, opts={"jobId": "own"})
    queue.producer.command("pause", **queue.dead)
    assert queue.replay()[1] == "own  added again as own\n"
    assert queue.job("own")["data"] == {"command": "hello"}


def test_letters_of_a_queue_that_bullmq_5_has_paused(queue: Queue) -> None:
    with NodeProcess("producer.js", queue.server, 5) as old:
        old.command("add", **queue.at, name="run", data={}, opts={"jobId": "a"})
        letter = queue.die("a")
        old.command("getJobCounts", **queue.dead)  # so that its version is noted
        old.command("pause", **queue.dead)
        old.command("pause", **queue.at)
        code, _, why = queue.replay()
        assert code == 1
        assert f"queue {queue.name} is paused by a BullMQ before 6" in why
        old.command("resume", **queue.at)
        assert queue.replay()[1] == f"{letter}  retried as a\n"


def test_redis_goes_away_in_between(queue: Queue) -> None:
    jobs = [{"name": "run", "data": {}, "opts": {"jobId": f"job-{number}"}} for number in range(2000)]
    queue.producer.command("addBulk", **queue.dead, jobs=jobs)
    command = [sys.executable, "-m", "claudejobs.cli.main", *queue.arguments("--limit", "2000")]
    environment = command_environment(REDIS_URL=queue.server.url())
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(10)]
        queue.server.kill()
        rest, errors = process.communicate(timeout=60)
    queue.server.start()
    told += rest.splitlines()
    assert process.returncode == 1
    assert len(told) < len(jobs)
    assert errors.startswith("Error: Redis: ")
    assert errors.endswith("; what stands above is done, and the same command goes on with the rest\n")
    assert len(told) <= queue.waiting() <= len(told) + 1  # the answer about one may be lost
    code, _, errors = queue.replay("--limit", "2000")
    assert (code, errors) == (0, "")
    assert (queue.waiting(), queue.letters()) == (len(jobs), 0)


def test_the_example_sends_back_with_bullmq_alone(queue: Queue) -> None:
    kept = {"attempts": 4, "backoff": {"type": "fixed", "delay": 2000}}
    letters = [queue.add_and_die(f"job-{number}", f"command {number}", priority=3, **kept) for number in range(3)]
    for _ in "12":  # the second time there is nothing to do
        done = subprocess.run(
            node_command(REPOSITORY / "examples" / "queue" / "send-back.js"),
            env=os.environ | {"REDIS_URL": queue.server.url(), "QUEUE": queue.name},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert (queue.waiting(), queue.letters()) == (3, 0)
    for number, letter in enumerate(letters):
        job = queue.job(letter)
        assert (job["name"], job["data"]) == ("run", {"command": f"command {number}"})
        assert {name: job["opts"][name] for name in kept} == kept
