"""The pod of a job with a repository, and what its status tells while and after the checkout runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from claudejobs.api.categories import Category
from claudejobs.api.events import RunnerInput
from claudejobs.api.job import JobSpec
from claudejobs.reconcile.endings import ending_of
from claudejobs.reconcile.pod import INPUT_ANNOTATION, build_pod, ignored_fields
from claudejobs.reconcile.starting import hindrance_of
from claudejobs.reconcile.views import PodView

from .model.objects import job_object, make_settings, pod_object

SETTINGS = make_settings(start_timeout=600)
HTTPS = {"url": "https://git.example/a/b.git", "ref": "main", "secretRef": {"name": "git-login"}}
SSH = {"url": "ssh://git@git.example:22/a/b.git", "secretRef": {"name": "git-key"}}


def pod(git: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return build_pod(job_object({"workspace": {"git": git}, **spec}), 1, "session", 0.0, SETTINGS)


def test_only_the_checkout_has_the_credential() -> None:
    built = pod(HTTPS)["spec"]
    (checkout,), (runner,) = built["initContainers"], built["containers"]
    assert [(v["name"], v["valueFrom"]["secretKeyRef"]) for v in checkout["env"]] == [
        ("CLAUDEJOBS_GIT_USERNAME", {"name": "git-login", "key": "username", "optional": True}),
        ("CLAUDEJOBS_GIT_PASSWORD", {"name": "git-login", "key": "password"}),
    ]
    assert "git-login" not in json.dumps(runner)
    assert "git-login" not in json.dumps(built["volumes"])
    private = {m["name"] for m in checkout["volumeMounts"]} - {m["name"] for m in runner["volumeMounts"]}
    shared = {m["name"] for m in checkout["volumeMounts"]} & {m["name"] for m in runner["volumeMounts"]}
    assert (private, shared) == ({"checkout"}, {"workspace", "input"})
    assert checkout["securityContext"] == runner["securityContext"]
    assert checkout["image"] == runner["image"]


def test_ssh_takes_a_key_and_maybe_known_hosts() -> None:
    (checkout,) = pod(SSH)["spec"]["initContainers"]
    refs = [v["valueFrom"]["secretKeyRef"] for v in checkout["env"]]
    assert refs == [
        {"name": "git-key", "key": "ssh-privatekey"},
        {"name": "git-key", "key": "known_hosts", "optional": True},
    ]


def test_the_checkout_reserves_nothing_beyond_the_runner() -> None:
    limits = {"cpu": "1", "memory": "40Mi", "example.com/gpu": "1"}
    built = pod(HTTPS, podTemplate={"resources": {"limits": limits}})["spec"]
    (checkout,), (runner,) = built["initContainers"], built["containers"]
    assert checkout["resources"]["limits"] == {"cpu": "1", "memory": "40Mi"}
    assert checkout["resources"]["requests"].items() <= runner["resources"]["requests"].items()


def test_the_input_tells_the_checkout_what_to_clone() -> None:
    built = pod(HTTPS)
    document = RunnerInput.model_validate_json(built["metadata"]["annotations"][INPUT_ANNOTATION])
    assert document.git is not None
    assert (document.git.url, document.git.ref, document.git.timeout_seconds) == (HTTPS["url"], "main", 590)
    spec = JobSpec.model_validate({"prompt": "-", "workspace": {"git": HTTPS}})
    assert ignored_fields(spec, SETTINGS) == []


def test_a_job_without_a_repository_has_no_init_container() -> None:
    built = build_pod(job_object(), 1, "session", 0.0, SETTINGS)["spec"]
    assert "initContainers" not in built
    assert "checkout" not in {v["name"] for v in built["volumes"]}


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@git.example/a",
        "https://token@git.example/a",
        "ssh://git:secret@git.example/a",
        "ssh://-oProxyCommand=x/a",
        "file:///etc",
        "ext::sh -c x",
        "/etc",
    ],
)
def test_urls_with_credentials_or_tricks_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({"prompt": "-", "workspace": {"git": {"url": url}}})


@pytest.mark.parametrize("url", ["https://[::1]:8443/a/b@c", "ssh://git@h/a", "git://h:9418/~x/y.git", "http://h"])
def test_ordinary_urls_are_taken(url: str) -> None:
    JobSpec.model_validate({"prompt": "-", "workspace": {"git": {"url": url}}})


def view(checkout: dict[str, Any], phase: str = "Pending", **runner: Any) -> PodView:
    waiting = {"waiting": {"reason": "PodInitializing"}}
    status = {
        "phase": phase,
        "initContainerStatuses": [{"name": "checkout", "state": checkout}],
        "containerStatuses": [{"name": "runner", "state": runner or waiting}],
    }
    parsed = PodView.parse(pod_object(1, status))
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("reason", "message", "told", "category"),
    [
        ("CreateContainerConfigError", 'secret "git-login" not found', "CredentialsMissing", Category.CREDENTIALS),
        (
            "CreateContainerConfigError",
            "couldn't find key password in Secret team/git-login",
            "CredentialsMissing",
            Category.CREDENTIALS,
        ),
        ("ErrImagePull", "no such image", "ImagePull", Category.IMAGE),
    ],
)
def test_what_the_checkout_lacks_is_named(reason: str, message: str, told: str, category: Category) -> None:
    hindrance = hindrance_of(view({"waiting": {"reason": reason, "message": message}}))
    assert hindrance is not None
    assert (hindrance.reason, hindrance.category) == (told, category)
    assert told != "CredentialsMissing" or "git-login" in hindrance.message


def test_a_running_checkout_is_told_and_is_no_start_of_the_runner() -> None:
    pod = view({"running": {"startedAt": "2026-03-01T12:00:00Z"}})
    assert (pod.running, pod.started, pod.terminated) == (False, None, False)
    hindrance = hindrance_of(pod)
    assert hindrance is not None
    assert hindrance.reason == "CheckingOut"


@pytest.mark.parametrize(("category", "code"), [("workspace", 34), ("network", 22)])
def test_a_failed_checkout_is_the_attempts_end(category: str, code: int) -> None:
    message = json.dumps({"outcome": "failed", "category": category, "message": "git fetch failed: fatal: no"})
    ended = {"exitCode": code, "message": message, "finishedAt": "2026-03-01T12:00:00Z", "startedAt": None}
    pod = view({"terminated": ended}, "Failed")
    ending = ending_of(pod, None)
    assert (ending.category, ending.message, ending.exit_code) == (
        Category(category),
        "git fetch failed: fatal: no",
        code,
    )
    assert (pod.started, pod.terminated) == (None, True)


def test_a_checkout_that_is_done_does_not_speak_for_the_runner() -> None:
    done = {"terminated": {"exitCode": 0, "message": json.dumps({"outcome": "completed", "message": "checked out"})}}
    waits = view(done)
    assert (waits.terminated, waits.result, waits.preparing) == (False, None, False)
    runs = view(done, "Running", running={"startedAt": "2026-03-01T12:00:05Z"})
    assert (runs.running, runs.started is not None, runs.exit_code) == (True, True, None)
    crashed = view(done, "Failed", terminated={"exitCode": 9, "startedAt": "2026-03-01T12:00:05Z"})
    assert (crashed.exit_code, crashed.result) == (9, None)
