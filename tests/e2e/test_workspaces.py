"""Repositories and lasting workspaces in real pods."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from claudejobs.reconcile.pod import USER
from localcluster import Cluster
from localcluster.settings import from_environment
from tests.support.gitserver import GitServer, ssh_server
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
    namespace.wait_phase(name, "Cancelled", "Failed", timeout=120)
    wait_for(lambda: not namespace.pods(name), "the pod is gone")
    await wait_rows(operator, name, "cancelled")


async def test_a_repository_over_ssh(
    namespace: Namespace,
    operator: OperatorProcess,
    git_server: GitServer,
    tmp_path: Path,
) -> None:
    name, secret = unique("ssh"), unique("git-key")
    assert namespace.cluster.gateway
    with ssh_server(namespace.cluster.gateway, git_server.root / "repo.git", tmp_path) as server:
        data = {"ssh-privatekey": server.key, "known_hosts": server.known_hosts}
        namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": data})
        prompt = (
            "script: tool cat README.md; echo FOUND; grep -rlsa '[O]PENSSH PRIVATE' /workspace /tmp /home; echo END"
        )
        namespace.apply(job(name, prompt, workspace=git(server.url, secretRef={"name": secret})))
        status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert "hello from git\\nFOUND\\nEND" in namespace.kubectl("logs", f"{name}-1")
    await wait_rows(operator, name, "completed")


@pytest.fixture
def claim(namespace: Namespace) -> Iterator[tuple[str, Path]]:
    """A claim on a folder of this machine that the runner's user may write: its name and the folder."""
    if namespace.cluster.kind != "local":
        pytest.skip("the volume is a folder of this machine, which only the local cluster's pods reach")
    name = unique("claim")
    folder = from_environment().state / "volumes" / name
    folder.mkdir(parents=True)
    os.chown(folder, USER, USER)
    size = {"storage": "1Gi"}
    modes = ["ReadWriteOnce"]
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": size,
                "accessModes": modes,
                "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace.name, "name": name},
                "hostPath": {"path": str(folder)},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {
                "accessModes": modes,
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": size},
            },
        },
    )
    yield name, folder
    namespace.kubectl("delete", "pvc", name, "--wait=false")
    namespace.kubectl("delete", "pv", name, "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


def said_to_the_model(transcript: Path) -> list[str]:
    """What the user said in a session, in order, and each tool call."""
    said = []
    for line in transcript.read_text().splitlines():
        entry = json.loads(line)
        content = entry.get("message", {}).get("content", [])
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            if block["type"] == "text" and entry["type"] == "user":
                said.append(block["text"])
            elif block["type"] == "tool_use":
                said.append(f"tool: {block['input'].get('command')}")
    return said


async def test_a_lasting_workspace_lets_the_next_attempt_go_on(
    namespace: Namespace, operator: OperatorProcess, git_server: GitServer, claim: tuple[str, Path]
) -> None:
    """Killed in the middle of a tool: the next pod has the same session, its history, and the files."""
    name, (claim_name, folder) = unique("resume"), claim
    url = f"{git_server.url}/open/repo.git"
    workspace = {"persistentVolumeClaim": {"claimName": claim_name}} | git(url)
    namespace.apply(job(name, "Remember the heron.\nscript: slow 100", workspace=workspace, workingDirectory="work"))
    begun = folder / "work/begun.txt"
    # The shell makes the file before it is written.
    first = wait_for(lambda: begun.exists() and begun.read_text(), "the tool runs", 60)
    (folder / "work/README.md").write_text("changed by the agent\n")
    namespace.kubectl("delete", "pod", f"{name}-1", "--force", "--grace-period=0")
    status = namespace.wait_phase(name, "Completed", "Failed", timeout=80)
    assert status["phase"] == "Completed", status

    assert [a["outcome"] for a in status["attempts"]] == ["failed", "completed"]
    assert status["attempts"][0]["category"] == "pod_lost"
    assert status["attempts"][1]["resumed"] is True
    assert "attempt 2 resumed the session of the attempt before it" in status["message"]
    assert {a["sessionId"] for a in status["attempts"]} == {status["sessionId"]}
    # The model answers so only to a conversation that has the tool call, which was not made a second time.
    assert status["result"]["text"] == "Done after 100 s."
    assert begun.read_text() == first
    assert not (folder / "work/ended.txt").exists()
    (transcript,) = (folder / ".claude-job/config/projects").glob(f"*/{status['sessionId']}.jsonl")
    said = said_to_the_model(transcript)
    tools = [text for text in said if text.startswith("tool: ")]
    assert tools == ["tool: date > begun.txt; sleep 100; date > ended.txt"]
    assert said[0].startswith("Remember the heron.")
    assert said.index(tools[0]) < next(i for i, text in enumerate(said) if text.startswith("The previous run"))

    log = namespace.kubectl("logs", f"{name}-2")
    assert f"the working directory already holds a clone of {url}, at main; it is left as it is" in log
    assert (folder / "work/README.md").read_text() == "changed by the agent\n"
    rows = await wait_rows(operator, name, "failed", "completed")
    assert rows[0]["session_id"] == rows[1]["session_id"]


async def test_an_empty_dir_lets_the_next_attempt_begin_anew(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("anew")
    namespace.apply(job(name, "script: slow 6"))
    namespace.wait_phase(name, "Running")
    namespace.kubectl("delete", "pod", f"{name}-1", "--force", "--grace-period=0")
    wait_for(lambda: "began anew" in namespace.condition(name, "Started").get("message", ""), "it is told", 60)
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert status["attempts"][1]["resumed"] is False
    assert "attempt 2 began anew, as its workspace had no session to resume" in status["message"]
    await wait_rows(operator, name, "failed", "completed")
