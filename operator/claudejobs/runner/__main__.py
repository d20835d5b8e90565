"""The process in the pod: ``python -m claudejobs.runner``.

Environment:
    CLAUDEJOBS_INPUT: the input document (default: ``INPUT_FILE``).
    CLAUDEJOBS_WORKSPACE: the workspace volume (default: ``WORKSPACE_DIR``); the state folder is inside it.
    CLAUDEJOBS_TERMINATION_LOG: where the result is left for the kubelet (default: /dev/termination-log).

Standard output is the protocol. The exit code is that of the ending's category, 0 for completed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

_signalled = False


def _note_signal(_number: int, _frame: FrameType | None) -> None:
    global _signalled  # noqa: PLW0603 - a signal handler has no other place
    _signalled = True


def main() -> NoReturn:
    """Run, report, exit."""
    # Before the slow imports: a pod deleted in its first second ends as cancelled, too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note_signal)
    # The protocol gets a descriptor of its own; whatever else prints goes to standard error.
    protocol = os.dup(1)
    os.dup2(2, 1)

    from .session import run_job  # noqa: PLC0415 - see above

    code = run_job(protocol, lambda: _signalled)
    sys.stdout.flush()
    sys.stderr.flush()
    # The result is out and the children are dead. A normal exit would wait for the SDK's clean-up, which may
    # take longer than the grace period of the pod.
    os._exit(code)


if __name__ == "__main__":
    main()
