"""A scripted stand-in for the Anthropic Messages API: demos and tests need neither a key nor the internet.

The job's prompt chooses what happens: a line ``script: NAME [ARG]`` anywhere in it (the newest such line of
the conversation counts, so a resumed session goes on where it was). Without one, ``hello`` runs.

    hello                  write hello.txt, read it back, answer (four requests)
    tool COMMAND           one Bash call of COMMAND, then the answer
    steps N                N Bash calls, one per turn, then the answer
    tasks                  makes a task list and works it off: drives a progress display
    slow SECONDS           one Bash call that takes that long
    stream SECONDS         an answer that trickles, one word per second
    wait SECONDS           answers after that long
    text SIZE              an answer of SIZE characters, some of them multi-byte
    echo                   answers with a digest of the conversation: proves what a resumed session remembers
    structured [JSON]      calls StructuredOutput with JSON when the client offers that tool
    background             delegates to an agent, answers when it has ended
    loop                   a tool call in every answer, without end
    budget [TOKENS]        the same, each answer with that many tokens of input on the bill
    maxtokens, refusal     an answer that stops for that reason
    hang                   no response headers
    silent                 the stream says message_start, then nothing
    pings                  the stream says nothing but pings
    drop [N]               the connection breaks inside the stream (N times per conversation, or always)
    truncated, malformed, sse-error    a stream that ends early, is not JSON, carries an error event
    401, 403, 400, 404, 413, 500, 529  that status        429 [RETRY-AFTER]  that, with the header
    credit, toolong        the 400s of an empty account and of too long a prompt
    flakySTATUS N          STATUS for the first N requests of the conversation (flaky529 2), then hello

Run: ``python scripted_model.py --host 127.0.0.1 --port 0`` prints the address it listens on. It needs
aiohttp only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from aiohttp import web

Json = dict[str, Any]

SCRIPT_LINE = re.compile(r"^[ \t]*script:[ \t]*(\S+)(?:[ \t]+(.*\S))?[ \t]*$", re.MULTILINE)
NEVER = 24 * 3600.0
CONVERSATIONS_KEPT = 10_000

ERRORS: dict[str, tuple[int, str, str]] = {
    "400": (400, "invalid_request_error", "messages: scripted bad request"),
    "401": (401, "authentication_error", "invalid x-api-key"),
    "403": (403, "permission_error", "scripted: this key may not use this resource"),
    "404": (404, "not_found_error", "model: scripted-unknown"),
    "413": (413, "request_too_large", "Request exceeds the maximum size"),
    "429": (429, "rate_limit_error", "scripted rate limit"),
    "500": (500, "api_error", "Internal server error"),
    "529": (529, "overloaded_error", "Overloaded"),
    "credit": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
    ),
    "toolong": (400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"),
}


def text(content: str) -> Json:
    """A text block."""
    return {"type": "text", "text": content}


def tool(name: str, **tool_input: Any) -> Json:
    """A tool_use block."""
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:20]}", "name": name, "input": tool_input}


def bash(command: str, description: str, timeout_seconds: float = 120) -> Json:
    """A Bash call; the timeout is the tool's own, in seconds (it allows ten minutes at most)."""
    milliseconds = int(min(600, timeout_seconds) * 1000)
    return tool("Bash", command=command, description=description, timeout=milliseconds)


class Conversation:
    """What one request tells of its conversation: the scenario and how far it is.

    Attributes:
        name: the scenario.
        arg: the rest of its line, or "".
        step: how many turns with tool calls were taken since that line was said.
        key: the same for all requests of one session; failures are counted by it.
    """

    def __init__(self, body: Json) -> None:
        self.body = body
        self.model = str(body.get("model", "scripted"))
        self.messages: list[Json] = body.get("messages", [])
        self.tools = {item.get("name") for item in body.get("tools", [])}
        self.name, self.arg, start = "hello", "", 0
        for index, message in enumerate(self.messages):
            for said in _texts(message) if message.get("role") == "user" else ():
                for found in SCRIPT_LINE.finditer(said):
                    self.name, self.arg, start = found[1], found[2] or "", index
        self.step = 0
        in_assistant = False
        for message in self.messages[start:]:
            was, in_assistant = in_assistant, message.get("role") == "assistant"
            if in_assistant and not was and "tool_use" in _block_types(message):
                self.step += 1
        user = json.dumps(body.get("metadata", {}), sort_keys=True)
        self.key = hashlib.sha256(f"{user}\0{self.name}\0{self.arg}".encode()).hexdigest()

    def number(self, default: float) -> float:
        """The argument as a number; ``default`` when there is none."""
        try:
            return float(self.arg.split()[0])
        except (IndexError, ValueError):
            return default


def _blocks(message: Json) -> list[Json]:
    content = message.get("content")
    return [text(content)] if isinstance(content, str) else [b for b in content or [] if isinstance(b, dict)]


def _block_types(message: Json) -> set[str]:
    return {str(block.get("type")) for block in _blocks(message)}


def _texts(message: Json) -> list[str]:
    return [str(block["text"]) for block in _blocks(message) if block.get("type") == "text"]


def answer(talk: Conversation) -> tuple[list[Json], str, Json]:
    """What the model says next: content blocks, stop reason, usage."""
    tokens = 100 + sum(len(said) for message in talk.messages for said in _texts(message)) // 4
    usage = {"input_tokens": tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    if talk.name == "budget":
        usage["input_tokens"] = int(talk.number(100_000))
    blocks = TALKS.get(talk.name, hello)(talk)
    spoken = json.dumps(blocks, ensure_ascii=False)
    usage["output_tokens"] = 10_000 if talk.name == "budget" else max(1, len(spoken) // 4)
    stop = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
    return blocks, {"maxtokens": "max_tokens", "refusal": "refusal"}.get(talk.name, stop), usage


def hello(talk: Conversation) -> list[Json]:
    """The demo: a small piece of work with a task list, when the client has one."""
    listed = "TaskCreate" in talk.tools
    if talk.step == 0 and listed:
        return [
            text("I'll write a small file and check it."),
            tool(
                "TaskCreate",
                subject="Write hello.txt",
                description="Write it",
                activeForm="Writing hello.txt",
            ),
            tool(
                "TaskCreate",
                subject="Check hello.txt",
                description="Read it",
                activeForm="Checking hello.txt",
            ),
        ]
    step = talk.step if listed else talk.step + 1
    if step == 1:
        write = bash("printf 'Hello from Claude Code on Kubernetes\\n' > hello.txt", "Write hello.txt")
        return [tool("TaskUpdate", taskId="1", status="in_progress"), write] if listed else [write]
    if step == 2:
        done = [
            tool("TaskUpdate", taskId="1", status="completed"),
            tool("TaskUpdate", taskId="2", status="in_progress"),
        ]
        return [*(done if listed else []), bash("cat hello.txt && wc -c hello.txt", "Read hello.txt back")]
    return [text("Done: hello.txt holds one line, and reading it back gave what was written.")]


def one_tool(talk: Conversation) -> list[Json]:
    """One Bash call of the given command."""
    if talk.step == 0:
        return [text("Running the command."), bash(talk.arg or "echo hello > out.txt", "Run it", 600)]
    return [text("Done: the command was run.")]


def steps(talk: Conversation) -> list[Json]:
    """N Bash calls, one per turn; each leaves a line in steps.txt."""
    total = int(talk.number(3))
    if talk.step < total:
        return [bash(f"echo step {talk.step + 1} | tee -a steps.txt", f"Step {talk.step + 1} of {total}")]
    return [text(f"Done: {total} steps.")]


def tasks(talk: Conversation) -> list[Json]:
    """Four tasks, made in one turn, then started and completed one by one."""
    names = ("read the code", "write the change", "run the tests", "sum up")
    if talk.step == 0:
        return [tool("TaskCreate", subject=n, description=n, activeForm=f"about to {n}") for n in names]
    number, ending = divmod(talk.step - 1, 2)
    if number < len(names):
        return [tool("TaskUpdate", taskId=str(number + 1), status="completed" if ending else "in_progress")]
    return [text("Done: all four tasks are completed.")]


def slow(talk: Conversation) -> list[Json]:
    """One Bash call that takes as long as it is told to."""
    seconds = talk.number(60)
    if talk.step == 0:
        # A command that is nothing but `sleep` is turned down by the agent.
        command = f"date > begun.txt; sleep {seconds:g}; date > ended.txt"
        return [text("This takes a while."), bash(command, "Take a while", seconds + 60)]
    return [text(f"Done after {seconds:g} s.")]


def long_text(talk: Conversation) -> list[Json]:
    """An answer of exactly SIZE characters."""
    size = int(talk.number(1000))
    line = "The quick brown fox — größer als ein Hase, 速い — jumps over the lazy dog.\n"
    return [text((line * (size // len(line) + 1))[:size])]


def echo(talk: Conversation) -> list[Json]:
    """A JSON digest of the conversation: how many messages, and how each user's text begins."""
    said = [
        entry.strip()[:80]
        for message in talk.messages
        for entry in (_texts(message) if message.get("role") == "user" else ())
        if not entry.lstrip().startswith("<system-reminder>")
    ]
    digest = hashlib.sha256(json.dumps(talk.messages, sort_keys=True).encode()).hexdigest()
    return [text(json.dumps({"messages": len(talk.messages), "sha256": digest, "user": said}))]


def structured(talk: Conversation) -> list[Json]:
    """The structured answer, once, through the tool that the client gives for it."""
    if "StructuredOutput" in talk.tools and talk.step == 0:
        return [tool("StructuredOutput", **json.loads(talk.arg or '{"answer": 42}'))]
    return [text(talk.arg or '{"answer": 42}')]


def background(talk: Conversation) -> list[Json]:
    """Delegates once to an agent, whose own conversation runs one command."""
    name = next((n for n in ("Agent", "Task") if n in talk.tools), None)
    if name and talk.step == 0:
        prompt = "Do your part.\nscript: tool echo delegated > delegated.txt"
        return [tool(name, description="Do a part", prompt=prompt, subagent_type="general-purpose")]
    return [text("Done: the part was delegated.")]


def loop(talk: Conversation) -> list[Json]:
    """A tool call in every answer."""
    return [bash(f"echo turn {talk.step + 1}", f"Turn {talk.step + 1}")]


TALKS: dict[str, Callable[[Conversation], list[Json]]] = {
    "hello": hello,
    "tool": one_tool,
    "steps": steps,
    "tasks": tasks,
    "slow": slow,
    "text": long_text,
    "echo": echo,
    "structured": structured,
    "background": background,
    "loop": loop,
    "budget": loop,
    "stream": lambda talk: [text("word " * max(1, int(talk.number(10))))],
    "wait": lambda talk: [text(f"Answered after {talk.number(1):g} s.")],
    "maxtokens": lambda _: [text("This answer is cut off in the mid")],
    "refusal": lambda _: [text("I can't help with that.")],
}

ODD_STREAMS = frozenset({"silent", "pings", "drop", "truncated", "malformed", "sse-error"})


def error_response(status: int, kind: str, message: str, retry_after: str = "") -> web.Response:
    """An error as the API words it."""
    headers = {"request-id": "req_scripted"} | ({"retry-after": retry_after} if retry_after else {})
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}
    return web.json_response(body, status=status, headers=headers)


def scripted_error(talk: Conversation, count: int) -> web.Response | None:
    """The error that the scenario asks for on this, the conversation's count-th request."""
    name = talk.name
    if name.startswith("flaky"):
        name = name.removeprefix("flaky") if count <= int(talk.number(2)) else ""
    if name not in ERRORS:
        return None
    return error_response(*ERRORS[name], retry_after=talk.arg if talk.name == "429" else "")


def frame(event: Json) -> bytes:
    """One server-sent event."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def block_frames(index: int, block: Json, pieces: int) -> Iterator[bytes]:
    """A content block as the stream delivers it: start, deltas, stop."""
    if block["type"] == "text":
        start, whole, kind, field = {"type": "text", "text": ""}, block["text"], "text_delta", "text"
    else:
        start, whole = block | {"input": {}}, json.dumps(block["input"])
        kind, field = "input_json_delta", "partial_json"
    yield frame({"type": "content_block_start", "index": index, "content_block": start})
    size = max(1, -(-len(whole) // pieces))
    for at in range(0, len(whole), size):
        delta = {"type": kind, field: whole[at : at + size]}
        yield frame({"type": "content_block_delta", "index": index, "delta": delta})
    yield frame({"type": "content_block_stop", "index": index})


async def odd_stream(talk: Conversation, request: web.Request) -> AsyncIterator[bytes]:
    """What a broken stream says after message_start."""
    while talk.name == "pings":
        yield frame({"type": "ping"})
        await asyncio.sleep(1)
    if talk.name == "silent":
        await asyncio.sleep(NEVER)
    elif talk.name == "malformed":
        yield b'event: content_block_start\ndata: {"type":"content_block_start", "index":0, BROKEN\n\n'
    elif talk.name == "sse-error":
        yield frame({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    else:
        for part in list(block_frames(0, text("This answer never ends prop"), 3))[:3]:
            yield part
        if talk.name == "drop" and request.transport is not None:
            await asyncio.sleep(0.05)  # lets the head of the answer reach the client first
            request.transport.abort()


async def respond(request: web.Request, talk: Conversation, odd: bool) -> web.StreamResponse:
    """The model's answer, streamed or whole as the request asks."""
    blocks, stop, usage = answer(talk)
    message = {
        "id": f"msg_{uuid.uuid4().hex[:20]}",
        "type": "message",
        "role": "assistant",
        "model": talk.model,
        "content": blocks,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    if not talk.body.get("stream"):
        return web.json_response(message, headers={"request-id": "req_scripted"})
    headers = {"content-type": "text/event-stream", "cache-control": "no-cache", "request-id": "req_scripted"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    opening = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    await response.write(frame({"type": "message_start", "message": opening}))
    if odd:
        async for part in odd_stream(talk, request):
            await response.write(part)
        return response
    pieces = int(max(1, talk.number(10))) if talk.name == "stream" else 4
    for index, block in enumerate(blocks):
        for part in block_frames(index, block, pieces):
            await response.write(part)
            if talk.name == "stream" and b"content_block_delta" in part:
                await asyncio.sleep(1)
    ending = {"stop_reason": stop, "stop_sequence": None}
    await response.write(frame({"type": "message_delta", "delta": ending, "usage": usage}))
    await response.write(frame({"type": "message_stop"}))
    return response


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages."""
    if not (request.headers.get("x-api-key") or request.headers.get("authorization")):
        return error_response(401, "authentication_error", "x-api-key header is required")
    try:
        body = await request.json()
    except ValueError as error:
        return error_response(400, "invalid_request_error", f"the body is not JSON: {error}")
    talk = Conversation(body)
    counts = request.app[COUNTS]
    count = counts[talk.key] = counts.pop(talk.key, 0) + 1
    if len(counts) > CONVERSATIONS_KEPT:
        counts.popitem(last=False)
    if (failure := scripted_error(talk, count)) is not None:
        return failure
    if talk.name == "hang" or (talk.name == "silent" and not body.get("stream")):
        await asyncio.sleep(NEVER)
    if talk.name == "wait":
        await asyncio.sleep(talk.number(1))
    odd = talk.name in ODD_STREAMS and (talk.name != "drop" or count <= talk.number(float("inf")))
    return await respond(request, talk, odd)


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages/count_tokens: a rough count."""
    return web.json_response({"input_tokens": len(await request.read()) // 4})


async def healthz(_: web.Request) -> web.StreamResponse:
    """GET /healthz, and the HEAD /api/hello with which the agent tries the line."""
    return web.Response(text="ok\n")


async def unknown(request: web.Request) -> web.StreamResponse:
    """Anything else."""
    return error_response(404, "not_found_error", f"scripted model: no route {request.method} {request.path}")


COUNTS: web.AppKey[OrderedDict[str, int]] = web.AppKey("counts", OrderedDict)


def make_app() -> web.Application:
    """The application; serve it with handler_cancellation so that hung answers end with their client."""
    app = web.Application(client_max_size=64 * 2**20)
    app[COUNTS] = OrderedDict()
    app.router.add_post("/v1/messages", messages)
    app.router.add_post("/v1/messages/count_tokens", count_tokens)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/api/hello", healthz)
    app.router.add_route("*", "/{tail:.*}", unknown)
    return app


async def serve(host: str, port: int) -> None:
    """Serve until cancelled; prints the address once it is bound."""
    runner = web.AppRunner(make_app(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(f"listening on http://{host}:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Scripted Anthropic Messages API, for demos and tests.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to bind; 0 takes a free one and prints it")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
