"""A git server on HTTP: git's own http-backend behind basic authentication, and ways to misbehave.

/open/NAME     anybody            /private/NAME   basic authentication
/dumb/NAME     plain files, no git protocol
/busy/...      503                /hang/...       never answers
/away/NAME     redirects to ``elsewhere``, another server
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.debian import provide

IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "init.defaultBranch=main")


def git(directory: Path, *arguments: str) -> str:
    """Run git in a directory; its output."""
    command = ["git", *IDENTITY, "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


class GitServer(ThreadingHTTPServer):
    """Serves the bare repositories in a folder."""

    daemon_threads = True

    def __init__(self, host: str, root: Path, user: str, password: str) -> None:
        super().__init__((host, 0), _Handler)
        self.root = root
        self.password = password
        self.expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.url = f"http://{host}:{self.server_address[1]}"
        self.elsewhere = ""
        self.authorizations: list[str | None] = []
        threading.Thread(target=self.serve_forever, name="git server", daemon=True).start()

    def make(self, name: str, files: dict[str, str], single_commits: bool = True) -> str:
        """Make a repository with two commits on main, a branch, a tag; the first commit."""
        work = self.root / f"{name}.work"
        work.mkdir(parents=True)
        git(work, "init", "--quiet")
        (work / "README.md").write_text("first\n")
        git(work, "add", ".")
        git(work, "commit", "--quiet", "-m", "first")
        first = git(work, "rev-parse", "HEAD")
        git(work, "tag", "-a", "v1", "-m", "version 1")
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        git(work, "add", "--force", ".")
        git(work, "commit", "--quiet", "--allow-empty", "-m", "second")
        git(work, "branch", "feature/x", first)
        bare = self.root / f"{name}.git"
        git(self.root, "clone", "--quiet", "--bare", str(work), str(bare))
        git(bare, "config", "uploadpack.allowReachableSHA1InWant", str(single_commits).lower())
        git(bare, "update-server-info")
        return first


class _Handler(BaseHTTPRequestHandler):
    server: GitServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        mode, _, path = self.path.lstrip("/").partition("/")
        given = self.headers.get("Authorization")
        self.server.authorizations.append(given)
        if mode == "hang":
            time.sleep(60)
        elif mode == "busy":
            self._say(503, b"busy")
        elif mode == "away":
            self._say(302, b"", {"Location": f"{self.server.elsewhere}/private/{path}"})
        elif mode == "private" and given != self.server.expected:
            self._say(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="git"'})
        elif mode == "dumb":
            file = self.server.root / path.partition("?")[0]
            self._say(200, file.read_bytes()) if file.is_file() else self._say(404, b"no such file")
        else:
            self._backend(path)

    def _backend(self, path: str) -> None:
        name, _, query = path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            "PATH": "/usr/bin:/bin",
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{name}",
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        status = int(headers.pop("Status", "200 OK").split()[0])
        self._say(status, content, headers)

    def _say(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@dataclass(frozen=True)
class SshServer:
    """A real sshd that serves one repository to one key, and nothing else."""

    url: str
    key: str
    known_hosts: str


@contextlib.contextmanager
def ssh_server(host: str, repository: Path, folder: Path) -> Iterator[SshServer]:
    """Serve a repository over ssh, as root: sshd confines itself before a login."""
    program = provide("openssh-server", lambda: shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"))
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    public = (folder / "client.pub").read_text()
    (folder / "authorized").write_text(f'restrict,command="git-upload-pack {repository}" {public}')
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    config = f"""
        Port {port}
        ListenAddress {host}
        HostKey {folder}/host
        AuthorizedKeysFile {folder}/authorized
        PermitRootLogin forced-commands-only
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        StrictModes no
        UsePAM no
        PidFile none
    """
    (folder / "config").write_text(config)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd confines itself before a login
    with subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        known = f"[{host}]:{port} " + " ".join((folder / "host.pub").read_text().split()[:2])
        try:
            yield SshServer(f"ssh://root@{host}:{port}/repo.git", (folder / "client").read_text(), known)
        finally:
            process.terminate()
