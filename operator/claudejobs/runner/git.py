"""Running git on a repository that nobody vouches for, with a credential that must not stay anywhere.

Nothing that a repository or the workspace brings is run: no hooks, filters, submodules, and no configuration
but ours. The credential is in the environment of git's own processes; a credential helper bound to the server's
address gives it, so that a redirect to another server does not take it along.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from claudejobs.api.categories import Category
from claudejobs.api.events import (
    GIT_KNOWN_HOSTS_VARIABLE,
    GIT_PASSWORD_VARIABLE,
    GIT_SSH_KEY_VARIABLE,
    GIT_USERNAME_VARIABLE,
)

from .redact import Redactor

SECRET_VARIABLES = (GIT_PASSWORD_VARIABLE, GIT_SSH_KEY_VARIABLE)

SLOW_BYTES_PER_SECOND = 1000
SLOW_SECONDS = 30
"""A transfer slower than that for this long is given up, so that a dead server is noticed."""

PASSED_ON = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "http_proxy", "https_proxy", "no_proxy")

FINAL_SIGNS = (
    "authentication failed",
    "could not read username",
    "could not read password",
    "permission denied",
    "host key verification failed",
    "repository not found",
    "does not exist",
    "not our ref",
    "couldn't find remote ref",
    "certificate",
    "no matching host key",
)
NETWORK_SIGNS = (
    "could not resolve host",
    "temporary failure in name resolution",
    "name or service not known",
    "connection refused",
    "connection reset",
    "connection timed out",
    "connection closed",
    "failed to connect",
    "couldn't connect to server",
    "operation timed out",
    "operation too slow",
    "timed out",
    "network is unreachable",
    "no route to host",
    "empty reply from server",
    "early eof",
    "unexpected disconnect",
    "hung up unexpectedly",
    "broken pipe",
)
RETRIED_STATUS = re.compile(r"returned error: (429|5\d\d)")


class GitError(Exception):
    """git could not do it; the text has git's own words, without secrets.

    Attributes:
        category: ``network`` when another try may succeed, else ``workspace``.
        said: git's standard error, without secrets.
    """

    def __init__(self, category: Category, message: str, said: str = "") -> None:
        super().__init__(message)
        self.category = category
        self.said = said


def category_of(said: str) -> Category:
    """Whether what git said is the network's fault, which may pass, or will be said again.

    git exits with 128 for nearly everything, so its words are all there is. A name that does not resolve counts as
    the network's: it cannot be told from a resolver that is away, and the attempts are bounded.
    """
    low = said.lower()
    if RETRIED_STATUS.search(low):
        return Category.NETWORK
    if any(sign in low for sign in FINAL_SIGNS):
        return Category.WORKSPACE
    return Category.NETWORK if any(sign in low for sign in NETWORK_SIGNS) else Category.WORKSPACE


class Git:
    """Runs git for one repository.

    Args:
        private: a folder that the agent's container does not see, for the ssh key; also git's HOME.
        seconds: how long all calls together may take.

    Raises:
        GitError: on construction, when the credential cannot be used.
    """

    def __init__(self, url: str, environ: Mapping[str, str], private: Path, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self.redact = Redactor.of_environment(environ, SECRET_VARIABLES)
        self._plain = {name: value for name in PASSED_ON if (value := environ.get(name))}
        self._plain |= {
            "HOME": str(private),
            "LC_ALL": "C",  # The words are read.
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
        }
        config, secret = _config(url), {}
        password = environ.get(GIT_PASSWORD_VARIABLE, "").strip("\r\n")
        if password:
            config, secret = config | _password_helper(url), _login(environ, password)
        if urlsplit(url).scheme == "ssh":
            self._plain["GIT_SSH_COMMAND"] = _ssh_command(environ, private)
        self._plain |= _config_variables(config)
        self._trusted = self._plain | secret

    def remote(self, *arguments: str, directory: Path) -> str:
        """Run a command that talks to the server, and has the credential; its output.

        Raises:
            GitError: it failed, or took too long.
        """
        return self._run(arguments, directory, self._trusted)

    def local(self, *arguments: str, directory: Path) -> str:
        """Run a command that has no credential; its output.

        Raises:
            GitError: it failed, or took too long.
        """
        return self._run(arguments, directory, self._plain)

    def _run(self, arguments: tuple[str, ...], directory: Path, environment: dict[str, str]) -> str:
        process = subprocess.Popen(
            ["git", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # git's helpers (remote-https, ssh, index-pack) are in its group and would go on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            message = f"git {arguments[0]} of {self._url} was not done within {self._seconds:.0f} s in all"
            raise GitError(Category.NETWORK, message) from None
        if process.returncode == 0:
            return out.decode("utf-8", "replace")
        said = self.redact(_telling(error.decode("utf-8", "replace")))
        what = said or f"exit code {process.returncode} without a word"
        raise GitError(category_of(said), f"git {arguments[0]} of {self._url} failed: {what}", said)


def _config(url: str) -> dict[str, str]:
    """Configuration that stands above that of any repository."""
    schemes = {"http", "https"} if url.startswith("http") else {urlsplit(url).scheme}
    return {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.askPass": "",
        "protocol.allow": "never",
        **{f"protocol.{scheme}.allow": "always" for scheme in schemes},
        "protocol.file.allow": "never",
        "protocol.ext.allow": "never",
        "submodule.recurse": "false",
        "fetch.recurseSubmodules": "false",
        "credential.helper": "",
        # A volume's root belongs to root, and git refuses repositories of other users.
        "safe.directory": "*",
        "http.lowSpeedLimit": str(SLOW_BYTES_PER_SECOND),
        "http.lowSpeedTime": str(SLOW_SECONDS),
        "gc.auto": "0",
        "maintenance.auto": "false",
        "advice.detachedHead": "false",
    }


def _config_variables(config: Mapping[str, str]) -> dict[str, str]:
    variables = {"GIT_CONFIG_COUNT": str(len(config))}
    for index, (key, value) in enumerate(config.items()):
        variables |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    return variables


def _password_helper(url: str) -> dict[str, str]:
    """A helper that git asks for this server only. It has the secret from its environment, so no file holds it."""
    parts = urlsplit(url)
    give = f'printf "username=%s\\npassword=%s\\n" "${GIT_USERNAME_VARIABLE}" "${GIT_PASSWORD_VARIABLE}"'
    return {f"credential.{parts.scheme}://{parts.netloc}.helper": f'!f() {{ test "$1" != get || {give}; }}; f'}


def _login(environ: Mapping[str, str], password: str) -> dict[str, str]:
    # Servers that take tokens want some user name, and do not care which.
    username = environ.get(GIT_USERNAME_VARIABLE, "").strip() or "git"
    for key, value in (("username", username), ("password", password)):
        if "\n" in value or "\r" in value or "\0" in value:
            text = f"key {key} of the Secret of spec.workspace.git has more than one line; it must be a single line"
            raise GitError(Category.WORKSPACE, text)
    return {GIT_USERNAME_VARIABLE: username, GIT_PASSWORD_VARIABLE: password}


def _ssh_command(environ: Mapping[str, str], private: Path) -> str:
    """ssh with the key and the known hosts from files that only the checkout sees, and no others."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": str(private / "known_hosts"),
        "GlobalKnownHostsFile": os.devnull,
        # Without known hosts nobody can say which server is the right one.
        "StrictHostKeyChecking": "yes" if environ.get(GIT_KNOWN_HOSTS_VARIABLE) else "accept-new",
    }
    command = ["ssh", "-F", os.devnull]
    if known := environ.get(GIT_KNOWN_HOSTS_VARIABLE):
        (private / "known_hosts").write_text(known.rstrip() + "\n")
    if key := environ.get(GIT_SSH_KEY_VARIABLE):
        path = private / "key"
        path.touch(mode=0o600)
        path.write_text(key.replace("\r\n", "\n").rstrip() + "\n")
        command += ["-i", str(path)]
    return " ".join([*command, *(f"-o {name}={value}" for name, value in options.items())])


def _telling(said: str) -> str:
    """The lines that tell why, without progress and remarks, on one line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    remarks = ("Cloning into", "hint:", "Warning: Permanently added", "warning: redirecting")
    kept = [line for line in lines if not line.startswith(remarks)]
    return " | ".join(kept[-6:])[:1500]
