"""The pod of a job that calls the model through the gateway."""

from __future__ import annotations

import json
from typing import Any

from claudejobs.api.job import JobSpec
from claudejobs.reconcile.pod import build_pod, ignored_fields

from .model.objects import Json, job_object, make_settings

SETTINGS = make_settings(model_gateway_url="http://gateway.system.svc", start_timeout=600, job_timeout=3600)


def pod_of(spec: Json | None = None, settings: Any = SETTINGS) -> Json:
    return build_pod(job_object(spec), 1, "session-1", 0.0, settings)


def test_the_pod_has_a_token_and_no_key() -> None:
    pod = pod_of({"credentialsSecretRef": {"name": "mine"}})
    assert "secretKeyRef" not in json.dumps(pod)
    (container,) = pod["spec"]["containers"]
    assert container["env"] == [
        {"name": "ANTHROPIC_BASE_URL", "value": "http://gateway.system.svc"},
        {"name": "CLAUDEJOBS_TOKEN_FILE", "value": "/var/run/claudejobs/token"},
    ]
    assert {"name": "token", "mountPath": "/var/run/claudejobs", "readOnly": True} in container["volumeMounts"]
    # The account's own token, which the API server takes, stays away.
    assert pod["spec"]["automountServiceAccountToken"] is False


def token_of(pod: Json) -> Json:
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "token"]
    ((source,),) = [volume["projected"]["sources"]]
    token: Json = source["serviceAccountToken"]
    return token


def test_the_token_is_for_the_gateway_and_outlives_the_pod() -> None:
    for timeout in (1, 3600, 604800):
        pod = pod_of({"timeoutSeconds": timeout})
        token = token_of(pod)
        assert (token["audience"], token["path"]) == ("claudejobs-gateway", "token")
        assert token["expirationSeconds"] * 0.8 >= pod["spec"]["activeDeadlineSeconds"] - 1
        assert 600 <= token["expirationSeconds"] <= 2**32


def test_the_checkout_has_no_token() -> None:
    pod = pod_of({"workspace": {"git": {"url": "https://git.example/a.git"}}})
    (checkout,) = pod["spec"]["initContainers"]
    assert "token" not in {m["name"] for m in checkout["volumeMounts"]}
    assert "CLAUDEJOBS_TOKEN_FILE" not in {v["name"] for v in checkout["env"]}


def test_a_jobs_own_credentials_are_told_to_be_ignored() -> None:
    spec = JobSpec.model_validate({"prompt": "x", "credentialsSecretRef": {"name": "mine"}})
    assert ignored_fields(spec, SETTINGS) == ["spec.credentialsSecretRef"]
    assert ignored_fields(spec, make_settings()) == []
    assert ignored_fields(JobSpec(prompt="x"), SETTINGS) == []
