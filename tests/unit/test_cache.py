"""What is known of jobs and pods: the newest version counts, in whatever order they arrive."""

from __future__ import annotations

from claudejobs.kube.cache import Cache

from .model.objects import JOB_UID, job_object, pod_object

KEY = ("team", "job")


def test_an_older_version_does_not_replace_a_newer_one() -> None:
    cache = Cache()
    cache.put_job(job_object({"priority": 2}, resourceVersion="10"))
    held = cache.put_job(job_object({"priority": 1}, resourceVersion="9"))
    assert (held.spec.priority, cache.jobs[KEY].spec.priority) == (2, 2)
    cache.put_pod(pod_object(1, {"phase": "Failed"}, resourceVersion="10"))
    pod = cache.put_pod(pod_object(1, {"phase": "Running"}, resourceVersion="9"))
    assert pod is not None
    assert pod.phase == "Failed"


def test_a_new_job_of_the_same_name_replaces_the_old_one_and_has_none_of_its_pods() -> None:
    cache = Cache()
    cache.put_job(job_object(resourceVersion="10"))
    cache.put_pod(pod_object(1))
    new = cache.put_job(job_object(resourceVersion="11", uid="another"))
    assert cache.pods_of(new) == []
    assert cache.drop_job(KEY, JOB_UID) is None
    assert cache.jobs[KEY].uid == "another"
    assert cache.drop_job(KEY, "another") == new
    assert cache.drop_job(KEY, "another") is None


def test_a_pod_is_dropped_by_its_uid() -> None:
    cache = Cache()
    job = cache.put_job(job_object())
    cache.put_pod(pod_object(1))
    assert cache.drop_pod(KEY, "job-1", "another") is None
    assert [pod.name for pod in cache.pods_of(job)] == ["job-1"]
    dropped = cache.drop_pod(KEY, "job-1", "pod-uid-1")
    assert dropped is not None
    assert (cache.pods_of(job), cache.all_pods()) == ([], [])


def test_a_pod_of_something_else_is_not_kept() -> None:
    cache = Cache()
    assert cache.put_pod(pod_object(1, ownerReferences=[])) is None
    assert cache.all_pods() == []
