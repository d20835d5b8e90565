"""Follows one job of the demo: its phase from the resource, the agent's steps from the logs of its pods."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from claudejobs.api.events import ApiRetry, Event, Notice, Progress, ToolResult, ToolUse, parse_event
from claudejobs.api.events import Text as AgentText
from localcluster.settings import LocalClusterError

TERMINAL = ("Completed", "Failed", "Cancelled")


class Kubectl(Protocol):
    """What is needed of kubectl here."""

    def command(self, tool: str, *arguments: str) -> list[str]:
        """The command line of a tool of the cluster."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; its output."""


def printable(text: str) -> str:
    """The text without control characters: an agent's words must not steer anybody's terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def follow(kubectl: Kubectl, namespace: str, name: str, patience: float) -> dict[str, Any]:
    """Show how the job gets on, a live line on a terminal and plain lines elsewhere; the status that it ended with.

    Raises LocalClusterError when it has not ended after `patience` seconds.
    """
    console = Console(highlight=False)
    steps = Steps(kubectl, namespace, (lambda _: None) if console.is_terminal else _print)
    deadline = time.monotonic() + patience
    shown = ""
    try:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            while True:
                status = json.loads(kubectl("-n", namespace, "get", "ccj", name, "-o", "json")).get("status", {})
                phase, message = status.get("phase", "Pending"), printable(status.get("message", ""))
                steps.read(status.get("podName"))
                if console.is_terminal:
                    line = f"{phase:<10} {status.get('progress', 0):>3} %  {steps.newest or message}"
                    live.update(Text(line, overflow="ellipsis", no_wrap=True))
                elif phase != shown:
                    _print(f"{phase}: {message}" if message else phase)
                shown = phase
                if phase in TERMINAL:
                    steps.finish()
                    return dict(status)
                if time.monotonic() > deadline:
                    raise LocalClusterError(f"the job is still {phase} after {patience:.0f} s: {message}")
                time.sleep(0.3)
    finally:
        steps.stop()


def _print(text: str) -> None:
    print(f"  {text}", flush=True)


class Steps:
    """The agent's steps, read in the background from the pod that the job has at the time."""

    def __init__(self, kubectl: Kubectl, namespace: str, tell: Callable[[str], None]) -> None:
        self.newest = ""
        self._kubectl = kubectl
        self._namespace = namespace
        self._tell = tell
        self._pod = ""
        self._stopped = threading.Event()
        self._log: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def read(self, pod: str | None) -> None:
        """Follow this pod's log, unless that is what is being done."""
        if not pod or pod == self._pod:
            return
        self.finish()
        self._pod = pod
        self._thread = threading.Thread(target=self._follow, args=(pod,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait a moment for the end of the log of a pod that has ended."""
        if self._thread:
            self._thread.join(3)
            self._end_log()

    def stop(self) -> None:
        """Read no more, and leave no process behind."""
        self._stopped.set()
        self._end_log()

    def _end_log(self) -> None:
        if self._log and self._log.poll() is None:
            self._log.terminate()
            self._log.wait(5)

    def _follow(self, pod: str) -> None:
        seen = 0  # the number of the last event: a log that breaks off is read again from its start
        while not self._stopped.is_set() and pod == self._pod:
            self._log = log = subprocess.Popen(
                self._kubectl.command("kubectl", "-n", self._namespace, "logs", "-f", pod),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
            assert log.stdout is not None
            for line in log.stdout:
                event = parse_event(line)
                if event and event.seq > seen:
                    seen = event.seq
                    self._show(describe(event))
            if log.wait() == 0:
                return
            # kubectl ends with an error for as long as the container does not exist.
            self._stopped.wait(0.3)

    def _show(self, text: str) -> None:
        if text:
            self.newest = text
            self._tell(text)


def describe(event: Event) -> str:
    """One line on what the event tells; empty when it tells nothing that a watcher wants to know."""
    match event:
        case ToolUse():
            text = f"{event.tool}: {event.summary}"
        case ToolResult() if event.is_error:
            text = f"tool failed: {event.summary}"
        case Progress():
            text = f"{event.percent} %: {event.message}"
        case ApiRetry():
            text = f"the model API failed ({event.status or 'no answer'}); asked again in {event.delay_seconds:.0f} s"
        case Notice() if event.level != "info":
            text = event.text
        case AgentText():
            text = event.text
        case _:
            return ""
    return printable((text.strip().splitlines() or [""])[0])[:140]
