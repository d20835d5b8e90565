"""Repositories and lasting workspaces in real pods."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from localcluster import Cluster
from tests.support.gitserver import GitServer
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e

PASSWORD = "t0ken-that-only-the-checkout-knows"


@pytest.fixture(scope="module")
def git_server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    assert cluster.gateway
    with GitServer(cluster.gateway, tmp_path_factory.mktemp("git"), "robot", PASSWORD) as server:
        server.make("repo", {"README.md": "hello from git\n"})
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def login(namespace: Namespace) -> str:
    """A Secret with the server's credential."""
    name = unique("git-login")
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": {"username": "robot", "password": PASSWORD},
        }
    )
    return name


def git(url: str, **more: object) -> dict[str, object]:
    return {"git": {"url": url, **more}}


async def test_the_agent_has_the_repository_and_not_the_credential(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer, login: str
) -> None:
    name = unique("git")
    # The pattern is taken apart, or the search would find itself in the transcript and in /proc.
    pattern, encoded = PASSWORD[1:], base64.b64encode(PASSWORD.encode()).decode()[4:30]
    places = "/workspace /home /tmp /etc /run /proc/[0-9]*/environ /proc/[0-9]*/cmdline"
    search = (
        "cat README.md; git status --short --branch; git remote -v; "
        f"echo FOUND; grep -rlsa -e '[t]{pattern}' -e '[{encoded[0]}]{encoded[1:]}' {places}; echo END; "
        "ls -R /run/secrets /etc/claudejobs; env"
    )
    url = f"{git_server.url}/private/repo.git"
    namespace.apply(job(name, f"script: tool {search}", workspace=git(url, secretRef={"name": login})))
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    log = namespace.kubectl("logs", f"{name}-1", "-c", "runner")
    events = [json.loads(line) for line in log.splitlines()]
    (result,) = [event["summary"] for event in events if event["type"] == "tool_result"]
    assert result.startswith("hello from git\n## main...origin/main\norigin")
    assert f"\t{url} (fetch)" in result
    assert "\nFOUND\nEND\n" in result, "the credential is within the agent's reach"
    assert "CLAUDEJOBS_GIT" not in result
    (note,) = [event["text"] for event in events if event["type"] == "notice"]
    assert note.startswith(f"checked out branch main of {url} at commit ")
    assert PASSWORD not in log
    assert PASSWORD not in namespace.kubectl("logs", f"{name}-1", "-c", "checkout")
    pod = json.dumps(namespace.pods(name)) + json.dumps(namespace.get("ccj", name))
    assert PASSWORD not in pod
    assert base64.b64encode(PASSWORD.encode()).decode() not in pod
    assert namespace.condition(name, "FieldsIgnored") == {}
    await wait_rows(operator, name, "completed")


def test_the_search_for_the_credential_would_find_it(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer
) -> None:
    """The other half of the proof: what is in the agent's reach is found by the same search."""
    name = unique("found")
    namespace.apply(
        job(
            name,
            f"script: tool grep -rlsa '[t]{PASSWORD[1:]}' /workspace /proc/[0-9]*/environ; echo searched",
            env=[{"name": "LEAK", "value": PASSWORD}],
            workspace=git(f"{git_server.url}/open/repo.git"),
        )
    )
    assert namespace.wait_phase(name, "Completed", "Failed")["phase"] == "Completed"
    assert "/environ" in namespace.kubectl("logs", f"{name}-1")


@pytest.mark.parametrize(
    ("path", "ref", "said"),
    [
        ("open/none.git", None, "not found"),
        ("open/repo.git", "no/such", "couldn't find remote ref no/such"),
        ("private/repo.git", None, "could not read Username"),
    ],
)
async def test_a_wrong_repository_ends_the_job_in_gits_words(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer, path: str, ref: str | None, said: str
) -> None:
    name = unique("wrong")
    namespace.apply(job(name, workspace=git(f"{git_server.url}/{path}", **({"ref": ref} if ref else {}))))
    status = namespace.wait_phase(name, "Failed", "Completed")
    assert (status["phase"], status["reason"], status["attempt"]) == ("Failed", "workspace", 1)
    assert said in status["message"]
    assert status["attempts"][0]["exitCode"] == 34
    (row,) = await wait_rows(operator, name, "failed")
    assert said in row["error"]


async def test_a_wrong_password_ends_the_job_and_is_not_told(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer
) -> None:
    name, secret = unique("wrong"), unique("login")
    namespace.kubectl("create", "secret", "generic", secret, "--from-literal=password=not-the-password")
    workspace = git(f"{git_server.url}/private/repo.git", secretRef={"name": secret})
    namespace.apply(job(name, workspace=workspace))
    status = namespace.wait_phase(name, "Failed", "Completed")
    assert (status["phase"], status["reason"]) == ("Failed", "workspace")
    assert "Authentication failed" in status["message"]
    assert "not-the-password" not in json.dumps(status) + json.dumps(namespace.pods(name))
    await wait_rows(operator, name, "failed")


async def test_a_server_that_is_away_is_tried_again(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer
) -> None:
    name = unique("away")
    retry = {"maxAttempts": 2, "backoff": {"delaySeconds": 1}}
    namespace.apply(job(name, workspace=git(f"{git_server.url}/busy/repo.git"), retry=retry))
    status = namespace.wait_phase(name, "Failed", "Completed", timeout=90)
    assert [a["category"] for a in status["attempts"]] == ["network", "network"]
    assert "503" in status["message"]
    await wait_rows(operator, name, "failed", "failed")


async def test_a_missing_git_secret_is_named_and_waited_for(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer
) -> None:
    name, secret = unique("late"), unique("late-login")
    url = f"{git_server.url}/private/repo.git"
    namespace.apply(job(name, workspace=git(url, secretRef={"name": secret})))
    condition = wait_for(lambda: namespace.condition(name, "Started"), "the Started condition", 20)
    assert (condition["status"], condition["reason"]) == ("False", "CredentialsMissing")
    assert f"Secret {secret} does not exist in namespace {namespace.name}" in condition["message"]
    namespace.kubectl("create", "secret", "generic", secret, "--from-literal=username=robot")
    namespace.kubectl("patch", "secret", secret, "-p", json.dumps({"stringData": {"password": PASSWORD}}))
    assert namespace.wait_phase(name, "Completed", "Failed")["phase"] == "Completed"
    await wait_rows(operator, name, "completed")


async def test_cancel_stops_a_checkout(namespace: Namespace, operator: OperatorProcess, git_server: GitServer) -> None:
    name = unique("stop")
    namespace.apply(job(name, workspace=git(f"{git_server.url}/hang/repo.git")))
    condition = wait_for(lambda: namespace.condition(name, "Started"), "the Started condition", 20)
    assert condition["reason"] == "CheckingOut"
    namespace.patch(name, cancel=True)
    namespace.wait_phase(name, "Cancelled", "Failed", timeout=30)
    wait_for(lambda: not namespace.pods(name), "the pod is gone")
    await wait_rows(operator, name, "cancelled")
