"""The checkout as the pod runs it: a process of its own, real git, a real git server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import Outcome, RunnerResult, parse_result
from tests.support.gitserver import GitServer, SshServer, git, ssh_server

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "s3cret-pass/word+42"

HOSTILE = {
    "README.md": "hello from git\n",
    ".gitattributes": "* filter=evil\n",
    ".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = file:///etc\n',
    ".githooks/post-checkout": "#!/bin/sh\ntouch /tmp/hook-ran\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    root = tmp_path_factory.mktemp("git")
    with GitServer("127.0.0.1", root, "robot", PASSWORD) as server:
        server.first = server.make("repo", HOSTILE)  # type: ignore[attr-defined]
        server.make("strict", {"README.md": "strict\n"}, single_commits=False)
        server.make("greedy", {"README.md": "x\n", ".claude-job/config/settings.json": "{}"})
        git(root, "init", "--quiet", "--bare", "empty.git")
        yield server
        server.shutdown()


@dataclass
class Done:
    """How a checkout ended."""

    code: int
    result: RunnerResult
    output: str
    workspace: Path
    seconds: float

    @property
    def message(self) -> str:
        return self.result.message

    def failed(self, category: Category) -> str:
        """Its message, after checking that it failed as said and left nothing half done."""
        assert (self.result.outcome, self.result.category) == (Outcome.FAILED, category), self.message
        assert self.code == POLICIES[category].exit_code
        assert PASSWORD not in self.output
        assert not list(self.workspace.glob(".claude-job/clone-*"))
        return self.message


class Checkout:
    """Runs checkouts in one workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        (folder / "tmp").mkdir()

    def environment(self, **secret: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "CLAUDEJOBS_INPUT": str(self.folder / "job.json"),
            "CLAUDEJOBS_WORKSPACE": str(self.workspace),
            "CLAUDEJOBS_TERMINATION_LOG": str(self.folder / "termination-log"),
            **{f"CLAUDEJOBS_GIT_{name.upper()}": value for name, value in secret.items()},
        }

    def start(
        self, url: str, ref: str | None = None, directory: str = ".", timeout: int = 20, **secret: str
    ) -> subprocess.Popen[str]:
        document: dict[str, Any] = {
            "job": "jobs/test",
            "job_uid": "uid-1",
            "attempt": 1,
            "session_id": "0",
            "prompt": "-",
            "working_directory": directory,
            "git": {"url": url, "ref": ref, "timeout_seconds": timeout},
        }
        (self.folder / "job.json").write_text(json.dumps(document))
        (self.folder / "termination-log").unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "claudejobs.runner.checkout"],
            env=self.environment(**secret),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, url: str, ref: str | None = None, directory: str = ".", **more: Any) -> Done:
        began = time.monotonic()
        process = self.start(url, ref, directory, **more)
        output, _ = process.communicate(timeout=60)
        result = parse_result((self.folder / "termination-log").read_text())
        assert result is not None, output
        assert list((self.folder / "tmp").iterdir()) == [], "something was left in the private folder"
        return Done(process.returncode, result, output, self.workspace, time.monotonic() - began)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def everything_in(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_default_branch_with_password_leaves_no_trace_of_it(checkout: Checkout, server: GitServer) -> None:
    done = checkout(f"{server.url}/private/repo.git", username="robot", password=PASSWORD + "\n")
    assert (done.code, done.result.outcome) == (0, Outcome.COMPLETED), done.output
    assert "checked out branch main" in done.message
    workspace = done.workspace
    assert (workspace / "README.md").read_text() == "hello from git\n"
    assert git(workspace, "status", "--porcelain", "--branch") == "## main...origin/main"
    assert git(workspace, "log", "--format=%s") == "second", "shallow"
    assert git(workspace, "remote", "get-url", "origin") == f"{server.url}/private/repo.git"
    assert (workspace / ".claude-job/checkout.txt").read_text() == done.message
    assert PASSWORD.encode() not in everything_in(workspace)
    assert PASSWORD not in done.output
    assert not list((workspace / ".git").glob("hooks/*"))
    assert not list((workspace / "x").glob("*"))
    assert set(server.authorizations) == {None, server.expected}


@pytest.mark.parametrize("ref", ["v1", "feature/x", "refs/heads/feature/x", "FIRST", "SHORT"])
@pytest.mark.parametrize("where", ["open/repo.git", "open/strict.git", "dumb/repo.git"])
def test_refs(checkout: Checkout, server: GitServer, where: str, ref: str) -> None:
    first = git(server.root / where.partition("/")[2], "rev-parse", "v1^{commit}")
    ref = {"FIRST": first, "SHORT": first[:9]}.get(ref, ref)
    done = checkout(f"{server.url}/{where}", ref, directory="deep/er")
    assert done.code == 0, done.output
    assert (done.workspace / "deep/er/README.md").read_text() == "first\n"
    assert git(done.workspace / "deep/er", "rev-parse", "HEAD") == first
    assert done.message.endswith(first)


def test_what_is_wrong_is_told_in_gits_words(checkout: Checkout, server: GitServer) -> None:
    url = f"{server.url}/private/repo.git"
    assert "Authentication failed" in checkout(url, password="wrong-password").failed(Category.WORKSPACE)
    assert "terminal prompts disabled" in checkout(url).failed(Category.WORKSPACE)
    assert "not found" in checkout(f"{server.url}/open/none.git").failed(Category.WORKSPACE)
    unknown = checkout(f"{server.url}/open/repo.git", "no/such").failed(Category.WORKSPACE)
    assert "no branch, tag or commit 'no/such'" in unknown
    assert "couldn't find remote ref no/such" in unknown
    assert "no branch, tag or commit" in checkout(f"{server.url}/open/repo.git", "0123abc").failed(Category.WORKSPACE)
    assert "not our ref" in checkout(f"{server.url}/open/repo.git", "0" * 39 + "1").failed(Category.WORKSPACE)
    assert "is empty" in checkout(f"{server.url}/open/empty.git").failed(Category.WORKSPACE)
    assert "single line" in checkout(url, password="two\nlines-of-it").failed(Category.WORKSPACE)
    assert "transport 'file' not allowed" in checkout("file:///etc").failed(Category.WORKSPACE)
    assert [path.name for path in checkout.workspace.iterdir()] == [".claude-job"]


def test_the_networks_faults_may_be_tried_again(checkout: Checkout, server: GitServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        refused = checkout(f"http://127.0.0.1:{port}/repo.git").failed(Category.NETWORK)
        assert "Failed to connect" in refused or "Couldn't connect" in refused
    assert "503" in checkout(f"{server.url}/busy/repo.git").failed(Category.NETWORK)
    hung = checkout(f"{server.url}/hang/repo.git", timeout=2)
    assert "not done within 2 s" in hung.failed(Category.NETWORK)
    assert hung.seconds < 10


def test_a_redirect_does_not_take_the_password_along(
    checkout: Checkout, server: GitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with GitServer("127.0.0.1", tmp_path_factory.mktemp("other"), "x", "y") as other:
        other.make("repo", {})
        server.elsewhere = other.url
        done = checkout(f"{server.url}/away/repo.git", username="robot", password=PASSWORD)
        other.shutdown()
    done.failed(Category.WORKSPACE)
    assert set(other.authorizations) == {None}


def test_an_existing_clone_is_left_as_it_is(checkout: Checkout, server: GitServer) -> None:
    url = f"{server.url}/open/repo.git"
    assert checkout(url).code == 0
    (checkout.workspace / "README.md").write_text("the agent's work\n")
    again = checkout(url.removesuffix(".git") + "/", "v1")
    assert again.code == 0
    assert "already holds a clone of" in again.message
    assert "at main; it is left as it is" in again.message
    assert (checkout.workspace / "README.md").read_text() == "the agent's work\n"
    other = checkout(f"{server.url}/open/strict.git").failed(Category.WORKSPACE)
    assert f"holds a clone of {url}, not of {server.url}/open/strict.git" in other


def test_nothing_of_an_existing_clone_is_run_or_read_through(checkout: Checkout, server: GitServer) -> None:
    url = f"{server.url}/private/repo.git"
    secret = {"username": "robot", "password": PASSWORD}
    assert checkout(url, **secret).code == 0
    hidden = checkout.workspace / ".git"
    for key in ("core.fsmonitor", "core.sshCommand", "credential.helper", "core.pager"):
        git(checkout.workspace, "config", key, f"touch {checkout.folder}/ran; false")
    (hidden / "HEAD").unlink()
    (hidden / "HEAD").symlink_to("/proc/self/environ")
    assert "left as it is" in checkout(url, **secret).message
    (hidden / "config").unlink()
    (hidden / "config").symlink_to("/proc/self/environ")
    said = checkout(url, **secret)
    assert "a repository without a remote origin" in said.failed(Category.WORKSPACE)
    assert not (checkout.folder / "ran").exists()
    assert PASSWORD.encode() not in everything_in(checkout.workspace)


def test_other_files_are_in_the_way(checkout: Checkout, server: GitServer) -> None:
    (checkout.workspace / "lost+found").mkdir()
    (checkout.workspace / "mine.txt").write_text("mine")
    said = checkout(f"{server.url}/open/repo.git").failed(Category.WORKSPACE)
    assert "is not empty (mine.txt)" in said
    (checkout.workspace / "mine.txt").unlink()
    assert checkout(f"{server.url}/open/repo.git").code == 0


def test_a_killed_checkout_is_made_again(checkout: Checkout, server: GitServer) -> None:
    """Killed after some files were written: they are no hindrance, and no half of a clone passes for a whole."""
    stage_hint = checkout.workspace / ".claude-job"
    process = checkout.start(f"{server.url}/hang/repo.git")
    deadline = time.monotonic() + 10
    while not list(stage_hint.glob("clone-*/.git/config")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert list(stage_hint.glob("clone-*"))
    (checkout.workspace / "README.md").write_text("half")
    for left in (checkout.folder / "tmp").iterdir():
        left.rmdir()
    done = checkout(f"{server.url}/open/repo.git")
    assert done.code == 0, done.output
    assert "after a checkout that was interrupted" in done.message
    assert git(checkout.workspace, "status", "--porcelain") == ""


def test_the_runners_folder_is_not_the_repositorys(checkout: Checkout, server: GitServer) -> None:
    url = f"{server.url}/open/greedy.git"
    assert "has a path .claude-job of its own" in checkout(url).failed(Category.WORKSPACE)
    assert "is the runner's" in checkout(url, directory=".claude-job/config").failed(Category.WORKSPACE)
    assert checkout(url, directory="sub").code == 0
    assert not (checkout.workspace / ".claude-job/config").exists()


@pytest.mark.parametrize(
    ("url", "said"), [("ssh://git@127.0.0.1:1/x", "Connection refused"), ("git://127.0.0.1:1/x", "refused")]
)
def test_other_schemes(checkout: Checkout, url: str, said: str) -> None:
    done = checkout(url, ssh_key="not a key", known_hosts="[127.0.0.1]:1 ssh-ed25519 AAAA")
    assert said in done.failed(Category.NETWORK)


@pytest.fixture(scope="module")
def ssh(server: GitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server("127.0.0.1", server.root / "repo.git", tmp_path_factory.mktemp("ssh")) as running:
        yield running


def test_ssh_with_a_key_and_known_hosts(checkout: Checkout, ssh: SshServer) -> None:
    done = checkout(ssh.url, ssh_key=ssh.key.strip(), known_hosts=ssh.known_hosts)
    assert done.code == 0, done.output
    assert (done.workspace / "README.md").read_text() == "hello from git\n"
    assert ssh.key.splitlines()[2].encode() not in everything_in(done.workspace)
    assert "PRIVATE KEY" not in (done.workspace / ".git/config").read_text()


def test_ssh_without_known_hosts_says_so(checkout: Checkout, ssh: SshServer) -> None:
    done = checkout(ssh.url, ssh_key=ssh.key)
    assert done.code == 0, done.output
    assert "the server's key was not checked, as the Secret has no known_hosts" in done.message


def test_ssh_refuses_a_wrong_key_and_a_wrong_server(checkout: Checkout, ssh: SshServer, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    other = (tmp_path / "other").read_text()
    wrong_key = checkout(ssh.url, ssh_key=other, known_hosts=ssh.known_hosts)
    assert "Permission denied" in wrong_key.failed(Category.WORKSPACE)
    address = ssh.known_hosts.split()[0]
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    wrong_host = checkout(ssh.url, ssh_key=ssh.key, known_hosts=f"{address} {public}")
    assert "Host key verification failed" in wrong_host.failed(Category.WORKSPACE)
    broken = checkout(ssh.url, ssh_key="no key at all", known_hosts=ssh.known_hosts)
    said = broken.failed(Category.WORKSPACE)
    assert "error in libcrypto" in said or "invalid format" in said
    assert "no key at all" not in said
