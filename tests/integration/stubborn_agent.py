"""The runner with an agent in the place of the CLI that says a word to everything, and stops for nothing but what its
prompt names: ``python stubborn_agent.py`` is the runner, ``python stubborn_agent.py agent`` the agent.

It speaks as much of the CLI's protocol as the SDK needs: it answers the first control request, tells of its session
and says a text; an interrupt is read and left unanswered.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any


def say(**message: Any) -> None:
    print(json.dumps({"session_id": "s", **message}), flush=True)


def speak(text: str) -> None:
    message = {"role": "assistant", "model": "m", "id": text, "content": [{"type": "text", "text": text}]}
    say(type="assistant", message=message, parent_tool_use_id=None)


def on_sigterm(_number: int, _frame: Any) -> None:
    speak("last words")
    os._exit(143)


def agent() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "control_request" and message["request"]["subtype"] == "initialize":
            answer = {"subtype": "success", "request_id": message["request_id"], "response": {}}
            say(type="control_response", response=answer)
        elif message["type"] == "control_request":
            speak("what interrupt?")
        elif message["type"] == "user":
            deaf = message["message"]["content"] == "ignore SIGTERM"
            signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else on_sigterm)
            say(type="system", subtype="init", model="m")
            speak("at work")
    signal.pause()


def runner() -> None:
    from claudejobs.runner import __main__, run  # noqa: PLC0415 - the agent has no PYTHONPATH

    program = Path(os.environ["TMPDIR"]) / "agent"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} agent\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    run._launch = lambda _workspace: (program, {})  # type: ignore[assignment]
    __main__.main()


if __name__ == "__main__":
    agent() if sys.argv[1:2] == ["agent"] else runner()
