"""The init container of a job with a repository: ``python -m claudejobs.runner.checkout``.

It clones ``RunnerInput.git`` into the working directory and ends; it alone has the credential. Its exit code and
termination message are those of the runner's contract, so that the operator judges both alike.

A clone is made beside its place and moved there as the last step: a ``.git`` in the working directory is whole,
whatever killed the pod. What is found on a lasting workspace was written by an agent and is not trusted: git is
run in none of it.

Environment: as the runner's, and the credential's variables (``claudejobs.api.events``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import (
    CHECKOUT_NOTE,
    GIT_KNOWN_HOSTS_VARIABLE,
    INPUT_FILE,
    STATE_DIR,
    WORKSPACE_DIR,
    GitSource,
    Outcome,
    RunnerResult,
)

from .emit import one_line, write_termination_message
from .git import Git, GitError
from .inputs import INPUT_VARIABLE, TERMINATION_LOG_VARIABLE, WORKSPACE_VARIABLE, InputError, read_input
from .workspace import WorkspaceError, prepare_directory

STATE_NAME = Path(STATE_DIR).name
NOT_THE_AUTHORS = frozenset({STATE_NAME, "lost+found"})
"""What a workspace holds before anything was put there."""

COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
SHORT_COMMIT = re.compile(r"[0-9a-f]{7,63}")
HEAD_FILE = re.compile(r"ref: refs/heads/(\S+)|[0-9a-f]{40,64}")
UNWILLING = ("shallow", "unadvertised object", "not our ref", "does not support")
"""Signs of a server that gives no shallow clones, or no single commits."""


def check_out(source: GitSource, workspace: Path, relative: str, git: Git) -> str:
    """Clone the repository into the working directory, unless it is there; says what was done.

    Raises:
        GitError: git could not do it.
        WorkspaceError: the working directory has something else in it, or cannot be written.
    """
    state = workspace.resolve() / STATE_NAME
    if (workspace.resolve() / relative).resolve().is_relative_to(state):
        raise WorkspaceError(
            f"spec.workingDirectory {relative!r} is inside {state}, which is the runner's; choose another"
        )
    directory = prepare_directory(workspace, relative)
    state.mkdir(exist_ok=True)
    stage = state / f"clone-{hashlib.sha256(str(directory).encode()).hexdigest()[:12]}"
    if os.path.lexists(directory / ".git"):
        return _existing(source, directory, git)
    interrupted = stage.is_dir() and not stage.is_symlink()
    others = sorted({entry.name for entry in directory.iterdir()} - NOT_THE_AUTHORS)
    if others and not interrupted:
        raise WorkspaceError(
            f"the working directory {directory} is not empty ({', '.join(others[:5])}) and is no clone of "
            f"{source.url}; give an empty spec.workingDirectory"
        )
    _remove(stage)
    stage.mkdir()
    git.local("init", "--quiet", "--template=", ".", directory=stage)
    git.local("remote", "add", "origin", source.url, directory=stage)
    try:
        what = _fetch(source, stage, git)
    except GitError:
        _remove(stage)
        raise
    commit = _place(source, directory, stage, state, git)
    _remove(stage)
    return f"checked out {what} of {source.url} at commit {commit}" + (
        ", after a checkout that was interrupted" if interrupted else ""
    )


def _existing(source: GitSource, directory: Path, git: Git) -> str:
    """A clone on a lasting workspace: left as it is when it is of the same repository."""
    mode = (directory / ".git").lstat().st_mode
    url = ""
    if stat.S_ISDIR(mode):
        try:
            # A file of an agent's: read as text, not as a repository's configuration.
            url = git.local(
                "config", "--no-includes", "--file", ".git/config", "--get", "remote.origin.url", directory=directory
            ).strip()
        except GitError:
            url = ""
    if _same(url) != _same(source.url):
        found = one_line(git.redact(f"a clone of {url}" if url else "a repository without a remote origin"), 300)
        raise WorkspaceError(
            f"the working directory {directory} holds {found}, not of {source.url}; "
            "choose another spec.workingDirectory, or another claim"
        )
    at = _head(directory / ".git")
    return f"the working directory already holds a clone of {source.url}{at}; it is left as it is"


def _same(url: str) -> str:
    """The URL in a form in which two spellings of the same repository are equal."""
    match = re.fullmatch(r"([a-z]+)://(?:[^/@]*@)?([^/]*)(.*)", url)
    if match is None:
        return url
    return f"{match[1]}://{match[2].lower()}{match[3].rstrip('/').removesuffix('.git')}"


def _head(repository: Path) -> str:
    """What a clone has checked out. The file is an agent's: a link in its place could lead to our environment."""
    try:
        descriptor = os.open(repository / "HEAD", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(300).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    found = HEAD_FILE.fullmatch(text)
    return f", at {found[1] or text}" if found else ""


def _fetch(source: GitSource, stage: Path, git: Git) -> str:
    """Fetch what ``ref`` names and point HEAD to it; says what it is."""
    ref = source.ref
    wanted = ("HEAD",) if ref is None else (f"refs/heads/{ref}", f"refs/tags/{ref}", ref)
    listed = git.remote("ls-remote", "--symref", "origin", *wanted, directory=stage).splitlines()
    names = {line.split("\t")[1] for line in listed if "\t" in line and not line.startswith("ref: ")}
    if ref is None:
        ref = next((line.split()[1] for line in listed if line.startswith("ref: refs/heads/")), "HEAD")
        if ref == "HEAD" and not names:
            raise GitError(Category.WORKSPACE, f"the repository {source.url} is empty: it has no commit to check out")
        ref = ref.removeprefix("refs/heads/")
        names |= {f"refs/heads/{ref}"} - {"refs/heads/HEAD"}
    if f"refs/heads/{ref}" in names:
        _fetch_ref(f"+refs/heads/{ref}:refs/remotes/origin/{ref}", stage, git)
        git.local("update-ref", f"refs/heads/{ref}", f"refs/remotes/origin/{ref}", directory=stage)
        git.local("symbolic-ref", "HEAD", f"refs/heads/{ref}", directory=stage)
        git.local("config", f"branch.{ref}.remote", "origin", directory=stage)
        git.local("config", f"branch.{ref}.merge", f"refs/heads/{ref}", directory=stage)
        return f"branch {ref}"
    if f"refs/tags/{ref}" in names:
        _fetch_ref(f"+refs/tags/{ref}:refs/tags/{ref}", stage, git)
        return _detach(f"refs/tags/{ref}", f"tag {ref}", stage, git)
    if ref in names:
        _fetch_ref(ref, stage, git)
        return _detach("FETCH_HEAD", ref, stage, git)
    return _fetch_commit(ref, source.url, stage, git)


def _fetch_ref(refspec: str, stage: Path, git: Git, *options: str) -> None:
    arguments = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", *options, "origin", refspec)
    try:
        git.remote(*arguments[:1], "--depth=1", *arguments[1:], directory=stage)
    except GitError as error:
        if not any(sign in error.said for sign in UNWILLING) or COMMIT.fullmatch(refspec):
            raise
        git.remote(*arguments, directory=stage)


def _fetch_commit(ref: str, url: str, stage: Path, git: Git) -> str:
    """A commit: alone when the server gives it, else with the history of all branches and tags."""
    unknown = f"{url} has no branch, tag or commit {ref!r} (spec.workspace.git.ref)"
    if not SHORT_COMMIT.fullmatch(ref) and not COMMIT.fullmatch(ref):
        try:
            _fetch_ref(ref, stage, git)
        except GitError as error:
            raise GitError(error.category, f"{unknown}: {error.said or error}", error.said) from None
        return _detach("FETCH_HEAD", ref, stage, git)
    said = ""
    if COMMIT.fullmatch(ref):
        try:
            _fetch_ref(ref, stage, git)
            return _detach("FETCH_HEAD", f"commit {ref[:12]}", stage, git)
        except GitError as error:
            if not any(sign in error.said for sign in UNWILLING):
                raise
            said = f": {error.said}"
    git.remote("fetch", "--quiet", "--tags", "--no-recurse-submodules", "origin", directory=stage)
    try:
        return _detach(ref, f"commit {ref[:12]}", stage, git)
    except GitError:
        raise GitError(Category.WORKSPACE, unknown + said) from None


def _detach(name: str, what: str, stage: Path, git: Git) -> str:
    commit = git.local("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", directory=stage)
    git.local("update-ref", "--no-deref", "HEAD", commit.strip(), directory=stage)
    return what


def _place(source: GitSource, directory: Path, stage: Path, state: Path, git: Git) -> str:
    """Write the files, then move the repository to its place; the commit."""
    repository = stage / ".git"
    if directory == state.parent:
        if git.local("ls-tree", "HEAD", "--", STATE_NAME, directory=stage).strip():
            _remove(stage)
            raise WorkspaceError(
                f"{source.url} has a path {STATE_NAME} of its own, which is the runner's; set spec.workingDirectory"
            )
        # Or `git add --all` would commit the agent's transcripts.
        (repository / "info").mkdir(exist_ok=True)
        (repository / "info/exclude").write_text(f"/{STATE_NAME}/\n/lost+found/\n")
    # The stage may be one that was interrupted here: its files are overwritten.
    git.local(f"--git-dir={repository}", f"--work-tree={directory}", "reset", "--hard", "--quiet", directory=directory)
    commit = git.local("rev-parse", "HEAD", directory=stage).strip()
    repository.rename(directory / ".git")
    return commit


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def run() -> RunnerResult:
    """Read the input, check out, and leave a note for the runner; never raises for what the job brings."""
    workspace = Path(os.environ.get(WORKSPACE_VARIABLE) or WORKSPACE_DIR)
    try:
        job = read_input(Path(os.environ.get(INPUT_VARIABLE) or INPUT_FILE))
        if job.git is None:
            return _failed(Category.INTERNAL, "the checkout was started for a job without spec.workspace.git")
        with tempfile.TemporaryDirectory() as private:
            git = Git(job.git.url, os.environ, Path(private), job.git.timeout_seconds)
            note = git.redact(check_out(job.git, workspace, job.working_directory, git))
        if job.git.url.startswith("ssh://") and not os.environ.get(GIT_KNOWN_HOSTS_VARIABLE):
            note += "; the server's key was not checked, as the Secret has no known_hosts"
        _remove(workspace / STATE_NAME / CHECKOUT_NOTE)
        (workspace / STATE_NAME / CHECKOUT_NOTE).write_text(note)
    except (InputError, GitError) as error:
        return _failed(error.category, str(error))
    except (WorkspaceError, OSError) as error:
        return _failed(Category.WORKSPACE, str(error))
    return RunnerResult(outcome=Outcome.COMPLETED, message=one_line(note))


def _failed(category: Category, message: str) -> RunnerResult:
    return RunnerResult(outcome=Outcome.FAILED, category=category, message=one_line(message, 2000))


def main() -> NoReturn:
    """Check out, report, exit."""
    os.umask(0o002)  # The volume's group shares it.
    try:
        result = run()
    except Exception as error:
        # The text may quote what was being handled, so that only the kind of error is told.
        result = _failed(Category.INTERNAL, f"unexpected {type(error).__name__} in the checkout")
        traceback.print_tb(error.__traceback__)
    print(result.message, flush=True)
    write_termination_message(Path(os.environ.get(TERMINATION_LOG_VARIABLE) or "/dev/termination-log"), result)
    sys.exit(0 if result.category is None else POLICIES[result.category].exit_code or 1)


if __name__ == "__main__":
    main()
