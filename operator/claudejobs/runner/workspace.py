"""The volume that the job works on, and what the runner remembers there between attempts."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from claudejobs.api.events import CHECKOUT_NOTE

MEMORY_FILE = "runner.json"


class WorkspaceError(Exception):
    """The workspace cannot be used; the text names the path and what to do."""


def prepare_directory(workspace: Path, relative: str) -> Path:
    """The working directory, made when missing.

    Raises:
        WorkspaceError: when it would lie outside the workspace, symbolic links followed, or cannot be made.
    """
    try:
        root = workspace.resolve(strict=True)
        directory = (root / relative).resolve()
        if not directory.is_relative_to(root):
            raise WorkspaceError(
                f"spec.workingDirectory {relative!r} leads to {directory}, outside of the workspace {root}; "
                "give a path inside it, without .. or links that leave it"
            )
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkspaceError(f"cannot make the working directory {relative!r} in {workspace}: {error}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise WorkspaceError(
            f"the working directory {directory} is not writable for uid {os.getuid()}; "
            "give the volume an fsGroup of which that user is a member"
        )
    return directory


class JobMemory(BaseModel):
    """What earlier runs of one job did.

    Attributes:
        delivered: the model has the job's prompt, so a resumed session is only told to go on.
        spent_usd: cost of the attempts before this one.
    """

    delivered: bool = False
    spent_usd: float = 0.0


class SessionMemory(BaseModel):
    """Running totals of a session as the CLI last reported them; it counts on over resumes."""

    cost_usd: float = 0.0
    tokens: dict[str, int] = Field(default_factory=dict)


class Memory(BaseModel):
    """What the runner keeps on the workspace volume, by job UID and by session."""

    jobs: dict[str, JobMemory] = Field(default_factory=dict)
    sessions: dict[str, SessionMemory] = Field(default_factory=dict)

    def job(self, uid: str) -> JobMemory:
        """The job's part, made when missing."""
        return self.jobs.setdefault(uid, JobMemory())

    def session(self, session_id: str) -> SessionMemory:
        """The session's part, made when missing."""
        return self.sessions.setdefault(session_id, SessionMemory())


class StateDir:
    """The runner's folder on the workspace volume.

    Raises:
        WorkspaceError: on construction, when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_dir = path / "config"
        try:
            self.config_dir.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(f"cannot write to the state directory {path}: {error}") from error

    def has_transcript(self, session_id: str) -> bool:
        """Whether the session can be resumed. (It cannot be started then: its id is in use.)"""
        return any((self.config_dir / "projects").glob(f"*/{session_id}.jsonl"))

    def take_note(self) -> str:
        """What the checkout said, once; empty when there was none."""
        path = self.path / CHECKOUT_NOTE
        try:
            note = path.read_text("utf-8", "replace")
            path.unlink()
        except OSError:
            return ""
        return note

    def load(self) -> Memory:
        """What earlier runs left; empty when there is none or it cannot be read."""
        try:
            return Memory.model_validate_json((self.path / MEMORY_FILE).read_bytes())
        except (OSError, ValidationError):
            return Memory()

    def save(self, memory: Memory) -> None:
        """Replace what is kept, all of it or nothing."""
        temporary = self.path / f"{MEMORY_FILE}.new"
        temporary.write_text(memory.model_dump_json())
        temporary.replace(self.path / MEMORY_FILE)
