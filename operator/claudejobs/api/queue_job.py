"""Which job of a BullMQ queue a ClaudeCodeJob was made for.

The identity decides that there is one resource per queue job, whoever asks and how often: the resource's name derives
from it, so that a second attempt to make it finds the first. It is made of what changes exactly when a queue job is
to run anew, and of nothing that changes when it is fetched again after a crash or a lost lock.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .base import GROUP, MAX_JOB_NAME

QUEUE_LABEL = f"{GROUP}/queue"
"""Label of a job that came from a queue: name of the ClaudeCodeQueue."""

QUEUE_JOB_ANNOTATION = f"{GROUP}/queue-job"
"""Annotation with the identity of the queue job, as JSON."""

QUEUE_JOB_LOST_ANNOTATION = f"{GROUP}/queue-job-lost"
"""Annotation of a job whose queue job vanished together with Redis's data: it is not taken for a removal."""


@dataclass(frozen=True)
class QueueJob:
    """The identity of one run of one job of a queue.

    Attributes:
        queue: BullMQ's qualified name, ``prefix:name``.
        id: BullMQ's job id.
        timestamp: when the producer added it, milliseconds; tells a job that was added again under an old id.
        finishes: how often BullMQ counts it as finished (``atm``): grows when a job was run and is retried by hand.
        deliveries: how often this project finished it. A retry by hand may set ``finishes`` back to 0.
    """

    queue: str
    id: str
    timestamp: int
    finishes: int = 0
    deliveries: int = 0

    @cached_property
    def resource_name(self) -> str:
        """Name of the ClaudeCodeJob: readable at its start, unique by its end."""
        digest = hashlib.sha256(self.annotation().encode()).hexdigest()[:12]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.queue.rpartition(':')[2]}-{self.id}".lower()).strip("-")
        return f"{words[: MAX_JOB_NAME - 13].rstrip('-') or 'job'}-{digest}"

    def annotation(self) -> str:
        """The identity as the resource carries it."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, annotation: str | None) -> QueueJob | None:
        """Read the annotation; ``None`` when there is none, or it is not one that this project wrote.

        Never raises: annotations are written by whoever may write jobs.
        """
        if not annotation:
            return None
        try:
            value: Any = json.loads(annotation)
            read = cls(**value)
        except (ValueError, TypeError, RecursionError):
            return None
        texts = all(isinstance(text, str) for text in (read.queue, read.id))
        numbers = all(type(number) is int for number in (read.timestamp, read.finishes, read.deliveries))
        return read if texts and numbers else None
