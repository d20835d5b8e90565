"""ClaudeCodePool: pods that are started before there is a job for them. ``crds/`` is generated from here."""

from __future__ import annotations

from pydantic import Field

from .base import SpecModel, StatusModel
from .job import CredentialsSecretRef, JobSpec
from .podtemplate import PodTemplate
from .workspace import EmptyDirWorkspace, Workspace

POOL_KIND = "ClaudeCodePool"
POOL_PLURAL = "claudecodepools"


class PoolTemplate(SpecModel):
    """The fields of a job that shape its pod. A job takes a pod of the pool when its own fields say the same."""

    empty_dir: EmptyDirWorkspace = Field(
        default_factory=EmptyDirWorkspace, description="As the job's spec.workspace.emptyDir."
    )
    credentials_secret_ref: CredentialsSecretRef | None = Field(
        None, description="As the job's spec.credentialsSecretRef."
    )
    termination_grace_period_seconds: int = Field(
        15, ge=1, le=600, description="As the job's spec.terminationGracePeriodSeconds."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="As the job's spec.podTemplate.")


class PoolSpec(SpecModel):
    """How many pods wait, and for which jobs."""

    size: int = Field(ge=0, le=1000, description="Pods that wait; one that a job has taken is replaced by another.")
    template: PoolTemplate = Field(default_factory=PoolTemplate, description="What the jobs' pods are like.")

    def as_job(self) -> JobSpec:
        """A job whose pods are those of the pool."""
        template = self.template
        return JobSpec(
            prompt="-",
            workspace=Workspace(empty_dir=template.empty_dir),
            credentials_secret_ref=template.credentials_secret_ref,
            termination_grace_period_seconds=template.termination_grace_period_seconds,
            pod_template=template.pod_template,
        )


class PoolStatus(StatusModel):
    """What the operator knows of a pool."""

    observed_generation: int | None = Field(None, description="Generation of the spec that the status speaks of.")
    ready: int = Field(0, ge=0, description="Pods that run and wait for a job.")
    message: str = Field("", description="Why there are not as many as there should be.")
