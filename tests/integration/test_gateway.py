"""The gateway as a process, before a real API server and the scripted model, over real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from claudejobs.api.events import BUDGET_SPENT
from tests.support.gateway import KEY, Attempt, GatewayProcess, pod_token
from tests.support.kube import Namespace, unique, wait_for
from tests.support.operator import REPOSITORY
from tests.support.proxy import ApiServerProxy

pytestmark = pytest.mark.e2e

PATIENCE = 60.0
PATH = "/v1/messages?beta=true"


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of a scripted model."""
    program = REPOSITORY / "images/scripted-model/scripted_model.py"
    with subprocess.Popen([sys.executable, str(program), "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


@pytest.fixture(scope="module")
def make_gateway(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Makes running gateways. At the end, none may have met a defect."""
    made: list[GatewayProcess] = []

    def make(upstream: str, **settings: object) -> GatewayProcess:
        folder = tmp_path_factory.mktemp("gateway")
        made.append(GatewayProcess(namespace, folder, upstream, drain_seconds=0, **settings))
        return made[-1].start()

    yield make
    for gateway in made:
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log.read_text(), gateway.log.read_text()[-5000:]
        assert KEY not in gateway.log.read_text()


@pytest.fixture(scope="module")
def gateway(make_gateway: Callable[..., GatewayProcess], model: str) -> GatewayProcess:
    """One gateway before the scripted model."""
    return make_gateway(model)


@pytest.fixture(scope="module")
def attempt(namespace: Namespace) -> Attempt:
    """A running attempt of a job."""
    return Attempt(namespace, unique("attempt"))


class Upstream:
    """A model API that shows what it is asked: in place of the script where the test is about the gateway's own side of
    the connection. ``seen`` has the requests; ``gone`` is set when the gateway went away in the midst of an answer."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], int]] = []
        self.gone = threading.Event()
        self.release = threading.Event()
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.seen.append((request.path_qs, {k.lower(): v for k, v in request.headers.items()}, size))
        if self.answers:
            status, headers = self.answers.pop(0)
            return web.json_response({"type": "error", "error": {}}, status=status, headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "set-cookie": "a=b"})
        await response.prepare(request)
        usage = {"input_tokens": 1000, "output_tokens": 1}
        start = {"type": "message_start", "message": {"model": "claude-sonnet-4-5", "usage": usage}}
        await response.write(f"event: message_start\ndata: {json.dumps(start)}\n\n".encode())
        try:
            while not self.release.is_set():  # noqa: ASYNC110 - set from another thread
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        ending = {"type": "message_delta", "usage": {"output_tokens": 200}}
        await response.write(f"event: message_delta\ndata: {json.dumps(ending)}\n\n".encode())
        return response


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """One, listening."""
    it = Upstream()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", it.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield it
    it.release.set()
    await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


def question(script: str = "text 10", stream: bool = False, model: str = "claude-sonnet-4-5") -> dict[str, Any]:
    """A request's body."""
    message = {"role": "user", "content": f"script: {script}"}
    return {"model": model, "messages": [message], "max_tokens": 100, "stream": stream}


async def ask(
    http: aiohttp.ClientSession, gateway: GatewayProcess, token: str, body: Any = None, path: str = PATH
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with http.post(gateway.url + path, json=body or question(), headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text) if text.startswith("{") else {"text": text}, dict(response.headers)


async def message_of(http: aiohttp.ClientSession, gateway: GatewayProcess, token: str) -> tuple[int, str]:
    """Status and error message of an answer."""
    status, answer, _ = await ask(http, gateway, token)
    return status, answer.get("error", {}).get("message", "")


async def until(probe: Callable[[], Any], what: str) -> Any:
    """Wait for a condition without stopping the loop."""
    return await asyncio.to_thread(wait_for, probe, what, PATIENCE)


async def test_an_attempts_call_reaches_the_model_and_is_counted(
    http: aiohttp.ClientSession, gateway: GatewayProcess, attempt: Attempt
) -> None:
    for stream in (False, True):
        status, answer, _ = await ask(http, gateway, attempt.token(), question("text 400", stream))
        assert status == 200, answer
    metrics = gateway.admin("/metrics")
    labels = f'model="claude-sonnet-4-5",namespace="{attempt.namespace.name}"'
    line = next(line for line in metrics.splitlines() if line.startswith("claudejobs_gateway_cost_usd_total{"))
    assert labels in line
    (account,) = [a for a in json.loads(gateway.admin("/jobs?userId=user-9"))["jobs"] if a["job"] == attempt.name]
    assert account["requests"] >= 2
    # The scripted model tells 102 tokens in and a quarter of the answer's characters out, streamed or not.
    first, second = [call for call in gateway.calls() if call["job"] == attempt.name][:2]
    assert first["input_tokens"] == second["input_tokens"] == 104
    assert first["output_tokens"] == second["output_tokens"] > 100
    expected = (104 * 3 + first["output_tokens"] * 15) / 1e6
    assert first["cost_usd"] == pytest.approx(expected, abs=1e-6)
    assert account["costUSD"] >= 2 * expected - 1e-6


async def test_the_key_takes_the_place_of_the_token_and_is_read_again_when_it_changes(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], attempt: Attempt, upstream: Upstream
) -> None:
    gateway = make_gateway(upstream.url)
    upstream.release.set()
    token = attempt.token()
    status, _, headers = await ask(http, gateway, token)
    assert (status, "set-cookie" in {name.lower() for name in headers}) == (200, False)
    path, sent, _ = upstream.seen[0]
    assert path == PATH
    assert sent["x-api-key"] == KEY
    assert not [value for value in sent.values() if token in value]
    gateway.key_file.with_suffix(".new").write_text("sk-ant-the-next-key")
    gateway.key_file.with_suffix(".new").rename(gateway.key_file)
    await ask(http, gateway, token)
    assert upstream.seen[-1][1]["x-api-key"] == "sk-ant-the-next-key"
    gateway.key_file.write_text("")
    assert await asyncio.to_thread(gateway.state) == "no key"
    assert (await message_of(http, gateway, token))[0] == 503


async def test_an_answer_is_handed_over_before_it_ends(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], attempt: Attempt, upstream: Upstream
) -> None:
    gateway = make_gateway(upstream.url)
    headers = {"x-api-key": attempt.token()}
    async with http.post(gateway.url + PATH, json=question(stream=True), headers=headers) as response:
        first = await asyncio.wait_for(response.content.readuntil(b"\n\n"), PATIENCE)
        assert b"message_start" in first
        assert not upstream.release.is_set()
        upstream.release.set()
        assert b"message_delta" in await response.content.read()


async def test_a_client_that_goes_away_ends_the_call_at_the_model_and_is_charged(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], attempt: Attempt, upstream: Upstream
) -> None:
    gateway = make_gateway(upstream.url)
    headers = {"x-api-key": attempt.token()}
    async with http.post(gateway.url + PATH, json=question(stream=True), headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await until(upstream.gone.is_set, "the model sees that the gateway went away")
    (call,) = await until(gateway.calls, "the call is logged")
    assert (call["input_tokens"], call["output_tokens"]) == (1000, 1)


async def test_a_pod_that_is_deleted_has_its_calls_cut_and_its_token_refused(
    http: aiohttp.ClientSession,
    namespace: Namespace,
    make_gateway: Callable[..., GatewayProcess],
    upstream: Upstream,
) -> None:
    gateway, own = make_gateway(upstream.url), Attempt(namespace, unique("deleted"))
    token = own.token()
    async with http.post(gateway.url + PATH, json=question(stream=True), headers={"x-api-key": token}) as response:
        await response.content.readuntil(b"\n\n")
        await asyncio.to_thread(namespace.kubectl, "delete", "pod", own.pod_name, "--wait=false")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    await until(upstream.gone.is_set, "the model sees that the call was cut")
    assert (await message_of(http, gateway, token))[0] in (401, 403)


async def test_who_is_no_running_attempt_is_refused(
    http: aiohttp.ClientSession, gateway: GatewayProcess, namespace: Namespace
) -> None:
    own = Attempt(namespace, unique("refused"))
    assert (await message_of(http, gateway, own.token()))[0] == 200
    assert (await message_of(http, gateway, ""))[0] == 401
    assert (await message_of(http, gateway, KEY))[0] == 401
    assert await message_of(http, gateway, own.token("https://kubernetes.default.svc")) == (
        401,
        "claudejobs gateway: this is not a service-account token for the audience claudejobs-gateway",
    )
    unbound = namespace.kubectl("create", "token", "default", "--audience=claudejobs-gateway").strip()
    status, message = await message_of(http, gateway, unbound)
    assert (status, message.endswith("not bound to a pod")) == (401, True)
    head, payload, signature = own.token().split(".")
    forged = f"{head}.{payload}.{signature[:-8]}AAAAAAAA"
    assert (await message_of(http, gateway, forged))[0] == 401


async def test_a_pod_that_only_says_so_is_refused(
    http: aiohttp.ClientSession, gateway: GatewayProcess, namespace: Namespace
) -> None:
    own = Attempt(namespace, unique("forged"))

    async def refused(name: str, **changes: Any) -> str:
        pod = json.loads(json.dumps(own.pod))
        pod["metadata"] |= {"name": name} | changes
        namespace.apply(pod)
        status, message = await message_of(http, gateway, pod_token(namespace, name))
        assert status == 403, (name, status, message)
        return message

    labels = own.pod["metadata"]["labels"]
    assert "is not an attempt" in await refused(unique("labels"), ownerReferences=[])
    assert "is not an attempt" in await refused(unique("other-name"))
    far = labels | {"claudecode.dev/attempt": "7"}
    assert "is not an attempt" in await refused(f"{own.name}-7", labels=far)


async def test_an_attempt_that_is_not_recorded_yet_is_asked_to_wait(
    http: aiohttp.ClientSession, gateway: GatewayProcess, namespace: Namespace
) -> None:
    own = Attempt(namespace, unique("second"))
    own.record(phase="Backoff", podName=None)
    own.make_pod(2)
    token = own.token(pod=f"{own.name}-2")
    status, answer, headers = await ask(http, gateway, token)
    assert (status, headers.get("Retry-After")) == (503, "1"), answer
    own.record(attempt=2, podName=f"{own.name}-2")
    await until(lambda: asyncio.run(_status(gateway, token)) == 200, "the attempt is served once it is recorded")
    # The pod before it is not the present attempt any more.
    assert (await message_of(http, gateway, own.token()))[0] == 403


async def _status(gateway: GatewayProcess, token: str) -> int:
    async with aiohttp.ClientSession() as session:
        return (await ask(session, gateway, token))[0]


async def test_a_job_at_its_end_is_refused(
    http: aiohttp.ClientSession, gateway: GatewayProcess, namespace: Namespace
) -> None:
    own = Attempt(namespace, unique("ended"))
    token = own.token()
    assert (await message_of(http, gateway, token))[0] == 200
    own.record(phase="Completed")
    await until(lambda: asyncio.run(_status(gateway, token)) == 403, "the token ends with the job")


async def test_a_spent_budget_ends_the_calls(
    http: aiohttp.ClientSession, gateway: GatewayProcess, namespace: Namespace
) -> None:
    own = Attempt(namespace, unique("budget"), maxBudgetUSD=0.5)
    own.record(costUSD=0.2)
    token = own.token()
    status, _, _ = await ask(http, gateway, token, question("budget 60000"))  # 0.18 + 0.15 US dollars
    assert status == 200
    status, answer, _ = await ask(http, gateway, token)
    assert status == 400
    assert BUDGET_SPENT in answer["error"]["message"]


async def test_one_answer_429_keeps_others_from_asking(
    http: aiohttp.ClientSession,
    namespace: Namespace,
    make_gateway: Callable[..., GatewayProcess],
    attempt: Attempt,
    upstream: Upstream,
) -> None:
    gateway, other = make_gateway(upstream.url), Attempt(namespace, unique("other"))
    upstream.release.set()
    upstream.answers = [(429, {"Retry-After": "3"})]
    status, _, headers = await ask(http, gateway, attempt.token())
    assert (status, headers["Retry-After"]) == (429, "3")
    token = other.token()
    status, answer, headers = await ask(http, gateway, token)
    assert (status, 1 <= int(headers["Retry-After"]) <= 4) == (429, True)
    assert "asked for a pause" in answer["error"]["message"]
    assert len(upstream.seen) == 1
    assert (await ask(http, gateway, token, question(model="claude-haiku-4-5")))[0] == 200
    await until(lambda: asyncio.run(_status(gateway, token)) == 200, "the model opens again")
    assert (await ask(http, gateway, attempt.token()))[0] == 200


async def test_rates_are_bounded(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], attempt: Attempt, model: str
) -> None:
    gateway, token = make_gateway(model, requests_per_minute_per_job=2), attempt.token()
    answers = [await ask(http, gateway, token) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert 1 <= int(answers[2][2]["Retry-After"]) <= 30


async def test_large_requests_pass_and_too_large_ones_do_not(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], attempt: Attempt, upstream: Upstream
) -> None:
    upstream.release.set()
    gateway, token = make_gateway(upstream.url, max_body_bytes=8 * 2**20), attempt.token()
    headers = {"x-api-key": token}

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 2**16):
            yield b" " * 2**16

    async def send(data: Any) -> int:
        async with http.post(gateway.url + PATH, data=data, headers=headers) as response:
            await response.read()
            return response.status

    assert await send(io.BytesIO(b" " * (5 * 2**20))) == 200
    assert await send(pieces(5 * 2**20)) == 200
    assert [size for _, _, size in upstream.seen] == [5 * 2**20] * 2
    assert await send(io.BytesIO(b" " * (8 * 2**20 + 1))) == 413
    assert await send(pieces(9 * 2**20)) == 413
    assert [size for _, _, size in upstream.seen if size > 8 * 2**20] == []


async def test_only_the_messages_api_is_there(
    http: aiohttp.ClientSession, gateway: GatewayProcess, attempt: Attempt
) -> None:
    token = attempt.token()
    for path in ("/v1/files", "/v1/messages/batches", "/v1/messages/../files", "/v1/organizations", "/"):
        assert (await ask(http, gateway, token, path=path))[0] == 404, path
    assert (await ask(http, gateway, token, path="/v1/messages/count_tokens"))[0] == 200


async def test_a_model_that_is_away_or_breaks_off_is_told(
    http: aiohttp.ClientSession, make_gateway: Callable[..., GatewayProcess], gateway: GatewayProcess, attempt: Attempt
) -> None:
    away = make_gateway("http://127.0.0.1:1")
    assert (await message_of(http, away, attempt.token()))[0] == 502
    headers = {"x-api-key": attempt.token()}
    async with http.post(gateway.url + PATH, json=question("drop", stream=True), headers=headers) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_running_attempts_go_on_while_the_api_server_is_away(
    http: aiohttp.ClientSession,
    namespace: Namespace,
    make_gateway: Callable[..., GatewayProcess],
    attempt: Attempt,
    model: str,
    tmp_path: Path,
) -> None:
    proxy = await asyncio.to_thread(ApiServerProxy, namespace.cluster.kubeconfig, tmp_path)
    gateway = await asyncio.to_thread(make_gateway, model, kubeconfig=proxy.kubeconfig)
    token, other = attempt.token(), Attempt(namespace, unique("unseen")).token()
    assert (await ask(http, gateway, token))[0] == 200
    proxy.cut()
    assert (await ask(http, gateway, token))[0] == 200
    status, answer, headers = await ask(http, gateway, other)
    assert (status, "Retry-After" in headers) == (503, True), answer
    assert json.loads(gateway.admin("/healthz")) == {"ok": True}


def test_wrong_settings_end_the_start_with_a_line_that_names_them(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY / "operator"), "GATEWAY_PORT": "x", "GATEWAY_UPSTREAM_URL": "ftp://a"}
    command = [sys.executable, "-m", "claudejobs.cli.main", "gateway"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "GATEWAY_PORT: 'x' is not valid" in done.stderr
    assert "GATEWAY_UPSTREAM_URL" in done.stderr
