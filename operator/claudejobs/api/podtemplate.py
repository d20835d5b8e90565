"""The part of a pod that a job's author may shape: where it runs and how large it is, never what it may reach.

The Kubernetes types that appear here are declared in full, so that the API server checks them when the job
is applied, not when its pod is made.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import LabelValue, Name, Quantity, SpecModel, cel, validations

LabelKey = Annotated[str, Field(max_length=317)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]


class Toleration(SpecModel):
    """Lets the pod run on nodes with a matching taint."""

    key: LabelKey | None = Field(None, description="Taint key; empty matches every key.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="How the key relates to the value.")
    value: str | None = Field(None, max_length=63, description="Taint value, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; empty matches every effect."
    )
    toleration_seconds: int | None = Field(None, description="How long a NoExecute taint is tolerated, seconds.")


class LabelSelectorRequirement(SpecModel):
    """One expression over labels."""

    key: LabelKey = Field(description="Label key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How key relates to values.")
    values: list[LabelValue] = Field(default_factory=list, max_length=64, description="With In and NotIn.")


class LabelSelector(SpecModel):
    """Selects objects by label; all parts must match."""

    match_labels: Labels = Field(default_factory=dict, description="Labels that must be equal.")
    match_expressions: list[LabelSelectorRequirement] = Field(
        default_factory=list, max_length=32, description="Expressions that must hold."
    )


class TopologySpreadConstraint(SpecModel):
    """Spreads pods over failure domains."""

    max_skew: int = Field(ge=1, description="Largest allowed difference between two domains, in pods.")
    topology_key: LabelKey = Field(description="Node label whose values are the domains.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="What to do when the skew cannot be kept."
    )
    label_selector: LabelSelector | None = Field(None, description="The pods that are counted.")
    min_domains: int | None = Field(None, ge=1, description="Least number of domains, with DoNotSchedule.")
    match_label_keys: list[LabelKey] = Field(
        default_factory=list, max_length=16, description="Pod labels whose values join the selector."
    )
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(None, description="Count by node affinity.")
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(None, description="Count by node taints.")


class NodeSelectorRequirement(SpecModel):
    """One expression over node labels or fields."""

    key: LabelKey = Field(description="Label key, or field name.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How the key relates to the values."
    )
    values: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=64, description="Values for the operator."
    )


class NodeSelectorTerm(SpecModel):
    """Expressions that must all hold."""

    match_expressions: list[NodeSelectorRequirement] = Field(
        default_factory=list, max_length=32, description="Over node labels."
    )
    match_fields: list[NodeSelectorRequirement] = Field(
        default_factory=list, max_length=32, description="Over node fields."
    )


class NodeSelector(SpecModel):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=32, description="The terms.")


class PreferredSchedulingTerm(SpecModel):
    """A term that nodes should match."""

    weight: int = Field(ge=1, le=100, description="How much a match counts.")
    preference: NodeSelectorTerm = Field(description="The term.")


class NodeAffinity(SpecModel):
    """Which nodes the pod must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="What a node must match."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] = Field(
        default_factory=list, max_length=32, description="What a node should match."
    )


class PodAffinityTerm(SpecModel):
    """Pods that this pod runs beside, or away from."""

    topology_key: LabelKey = Field(description="Node label whose equal values mean 'beside'.")
    label_selector: LabelSelector | None = Field(None, description="The pods, by label.")
    namespaces: list[Name] = Field(default_factory=list, max_length=32, description="Their namespaces; default own.")
    namespace_selector: LabelSelector | None = Field(None, description="Their namespaces, by label.")
    match_label_keys: list[LabelKey] = Field(
        default_factory=list, max_length=16, description="Pod labels whose values join the selector."
    )
    mismatch_label_keys: list[LabelKey] = Field(
        default_factory=list, max_length=16, description="Pod labels whose values must differ."
    )


class WeightedPodAffinityTerm(SpecModel):
    """A pod affinity term that should hold."""

    weight: int = Field(ge=1, le=100, description="How much it counts.")
    pod_affinity_term: PodAffinityTerm = Field(description="The term.")


class PodAffinity(SpecModel):
    """Which pods the pod must or should run beside."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] = Field(
        default_factory=list, max_length=32, description="Terms that must hold."
    )
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] = Field(
        default_factory=list, max_length=32, description="Terms that should hold."
    )


class PodAntiAffinity(PodAffinity):
    """Which pods the pod must or should run away from."""


class Affinity(SpecModel):
    """Where the pod is scheduled."""

    node_affinity: NodeAffinity | None = Field(None, description="By node.")
    pod_affinity: PodAffinity | None = Field(None, description="Beside pods.")
    pod_anti_affinity: PodAntiAffinity | None = Field(None, description="Away from pods.")


class Resources(SpecModel):
    """What the runner's container asks for and may use."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict,
        description="What is reserved on the node: cpu, memory, ephemeral-storage, devices.",
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What may be used at most."
    )


class LocalObjectReference(SpecModel):
    """An object in the job's namespace."""

    name: Name = Field(description="Its name.")


_RESERVED = r"^([a-z0-9-]+[.])*(claudecode[.]dev|kubernetes[.]io|k8s[.]io)/"
_RESERVED_RULE = cel(
    f"self.all(k, !k.matches('{_RESERVED}'))",
    "keys of claudecode.dev, kubernetes.io and k8s.io are reserved; use a key without a prefix or of your own domain",
)


class PodTemplate(SpecModel):
    """Scheduling and size of the job's pods.

    Labels and annotations with a domain prefix only reach the pod when the operator's
    ``ALLOWED_METADATA_DOMAINS`` lists the domain: on many clusters an annotation attaches networks, injects
    secrets or switches protections off.
    """

    labels: Labels = Field(
        default_factory=dict,
        description="Labels for the pods.",
        json_schema_extra=validations(_RESERVED_RULE),
    )
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict,
        description="Annotations for the pods.",
        json_schema_extra=validations(_RESERVED_RULE),
    )
    resources: Resources | None = Field(
        None,
        description="Requests and limits of the runner's container; what is left out is the operator's default.",
    )
    node_selector: Labels = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Tolerated taints.")
    affinity: Affinity | None = Field(None, description="Where the pods are scheduled.")
    topology_spread_constraints: list[TopologySpreadConstraint] = Field(
        default_factory=list, max_length=16, description="How the pods spread over failure domains."
    )
    runtime_class_name: Name | None = Field(
        None, description="RuntimeClass of the pods; ignored when the operator prescribes one."
    )
    priority_class_name: Name | None = Field(
        None,
        description="PriorityClass of the pods; it must be one that the operator's ALLOWED_PRIORITY_CLASSES lists.",
        json_schema_extra=validations(
            cel("!self.startsWith('system-')", "the classes named system-* are for the cluster's own pods")
        ),
    )
    image_pull_secrets: list[LocalObjectReference] = Field(
        default_factory=list, max_length=8, description="Secrets for pulling the runner's image."
    )
