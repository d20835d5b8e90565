"""Tells the person who waits what is going on: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Standard output belongs to what a caller may capture (the kubeconfig's path), so progress goes to stderr.
console = Console(stderr=True, highlight=False, soft_wrap=True)
_live: list[Progress] = []
_live_lock = threading.Lock()


def say(text: str) -> None:
    """Print one line for the person who waits."""
    console.print(text, markup=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show that `title` is being done, and in the end how many seconds it took or that it failed."""
    started = time.monotonic()
    with _spinner(title):
        try:
            yield
        except BaseException:
            say(f"  failed: {title} ({time.monotonic() - started:.1f} s)")
            raise
    say(f"  done: {title} ({time.monotonic() - started:.1f} s)")


@contextmanager
def _spinner(title: str) -> Iterator[None]:
    if not (console.is_terminal and sys.stderr.isatty()):
        say(f"  {title} ...")
        yield
        return
    # Steps run in parallel share one display: rich allows only one at a time on a console.
    with _live_lock:
        if not _live:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            _live.append(Progress(*columns, console=console, transient=True))
            _live[0].start()
        display = _live[0]
        task = display.add_task(title)
    try:
        yield
    finally:
        with _live_lock:
            display.remove_task(task)
            if not display.task_ids:
                _live.clear()
                display.stop()


def in_parallel(*actions: Callable[[], object]) -> None:
    """Run the actions side by side and wait for all of them; the first failure is raised then."""
    with ThreadPoolExecutor(max_workers=max(1, len(actions))) as pool:
        futures = [pool.submit(action) for action in actions]
    for future in futures:
        future.result()
