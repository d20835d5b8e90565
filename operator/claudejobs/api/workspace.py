"""The part of a ClaudeCodeJob's spec that says where the agent works."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Name, Quantity, SpecModel, cel, validations
from .podtemplate import LocalObjectReference


class EmptyDirWorkspace(SpecModel):
    """A new, empty workspace for each attempt."""

    size_limit: Quantity = Field("2Gi", description="The pod is evicted when it writes more.")


class PersistentVolumeClaimWorkspace(SpecModel):
    """A claim that exists in the job's namespace; its content survives the pod, so that the next attempt resumes
    the agent's session."""

    claim_name: Name = Field(description="Name of the claim.")


class VolumeClaimTemplateWorkspace(SpecModel):
    """A claim of the job's own, made before its first pod. All attempts share it, so that the next one resumes the
    agent's session. Its name is in status.workspaceClaim."""

    size: Quantity = Field(description="Storage to ask for.")
    storage_class_name: Name | None = Field(None, description="StorageClass; default: the cluster's default one.")
    access_modes: list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]] = Field(
        ["ReadWriteOnce"],
        min_length=1,
        max_length=2,
        description="How nodes may mount it. ReadWriteOncePod cannot be combined.",
        json_schema_extra=validations(
            cel(
                "size(self) == 1 || !self.exists(mode, mode == 'ReadWriteOncePod')",
                "ReadWriteOncePod cannot be combined with another access mode",
            ),
            **{"x-kubernetes-list-type": "set"},
        ),
    )
    retention_policy: Literal["Delete", "Retain"] = Field(
        "Delete",
        description="Delete removes the claim together with the job. Retain leaves it when the job is deleted; another "
        "job can have it as persistentVolumeClaim, and no job gets it unasked, not even one of the same name.",
    )


class GitWorkspace(SpecModel):
    """A git repository, cloned into the working directory before the agent starts: shallow where the server allows,
    without submodules and LFS. A clone of the same repository that a lasting workspace holds is left as it is."""

    url: str = Field(
        max_length=2048,
        # Without user and password: whoever may read the resource would read them.
        pattern=r"^((https?|git)://|ssh://([A-Za-z0-9][A-Za-z0-9._-]*@)?)[A-Za-z0-9\[][^\s/@]*(/\S*)?$",
        description="Where to clone from: http, https, ssh or git; credentials are given by secretRef only.",
    )
    ref: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="Branch, tag or commit; default: the remote's HEAD.",
    )
    secret_ref: LocalObjectReference | None = Field(
        None,
        description="Secret with password and, if needed, username (https), or ssh-privatekey and, better, known_hosts "
        "(ssh). Only the clone has it: the agent cannot push with it.",
    )


class Workspace(SpecModel):
    """Where the agent works. At most one of emptyDir, persistentVolumeClaim and volumeClaimTemplate; git may be added
    to each."""

    empty_dir: EmptyDirWorkspace | None = Field(None, description="A new, empty workspace for each attempt (default).")
    persistent_volume_claim: PersistentVolumeClaimWorkspace | None = Field(None, description="An existing claim.")
    volume_claim_template: VolumeClaimTemplateWorkspace | None = Field(
        None, description="A claim that is made for the job, and shared by its attempts."
    )
    git: GitWorkspace | None = Field(
        None,
        description="A repository to start from.",
        json_schema_extra=validations(
            cel(
                "!has(self.secretRef) || !self.url.startsWith('git://')",
                "git:// takes no credentials; use https:// or ssh://, or leave out secretRef",
            )
        ),
    )

    @property
    def lasting(self) -> bool:
        """Whether the workspace outlives a pod."""
        return self.persistent_volume_claim is not None or self.volume_claim_template is not None
