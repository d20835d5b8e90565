"""Reads from a Dockerfile which files of its context decide what image it makes."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

_IGNORED_DIRECTORIES = {
    ".git",
    "__pycache__",
    ".venv",
    "node_modules",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}


def instructions(text: str) -> list[str]:
    """Split a Dockerfile into instructions: comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    return [line.strip() for line in joined.splitlines() if line.strip()]


def sources(text: str) -> list[str]:
    """List what is copied or mounted from the build context, as the Dockerfile writes it, sorted."""
    found: set[str] = set()
    for instruction in instructions(text):
        name, _, rest = instruction.partition(" ")
        if name.upper() in ("COPY", "ADD"):
            found.update(_copied(rest.strip()))
        elif name.upper() == "RUN":
            found.update(_mounted(rest))
    return sorted(found)


def _copied(arguments: str) -> list[str]:
    flags = re.match(r"(--\S+\s+)*", arguments)
    options, rest = (flags[0], arguments[flags.end() :]) if flags else ("", arguments)
    if "--from=" in options:
        return []
    words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    return [word for word in words[:-1] if "://" not in word]


def _mounted(arguments: str) -> list[str]:
    found = []
    for mount in re.findall(r"--mount=(\S+)", arguments):
        options = dict(part.partition("=")[::2] for part in mount.split(","))
        if options.get("type", "bind") == "bind" and "from" not in options:
            found.append(options.get("source") or options.get("src") or ".")
    return found


def files(context: Path, patterns: Iterable[str]) -> list[Path]:
    """List the files that the sources name below `context`, sorted; caches and version control left out."""
    found: set[Path] = set()
    for pattern in patterns:
        relative = pattern.strip("/")
        matches = [context] if relative in ("", ".") else list(context.glob(relative))
        for match in matches:
            candidates = match.rglob("*") if match.is_dir() else [match]
            found.update(path for path in candidates if path.is_file() and not _ignored(path, context))
    return sorted(found)


def _ignored(path: Path, context: Path) -> bool:
    return path.suffix == ".pyc" or not _IGNORED_DIRECTORIES.isdisjoint(path.relative_to(context).parts)


def content_hash(dockerfile: Path, context: Path, *salt: str) -> str:
    """Hash a Dockerfile with all it takes from its context (12 hexadecimal digits).

    `salt` is whatever else decides the outcome, such as the base image's key.
    """
    text = dockerfile.read_text()
    digest = hashlib.sha256("\0".join([*salt, text]).encode())
    for path in files(context, sources(text)):
        executable = path.stat().st_mode & 0o111
        digest.update(f"\0{path.relative_to(context)}\0{bool(executable)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
