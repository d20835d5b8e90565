"""What the gateway counts, for Prometheus. Labels are namespaces and models only, which are few."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .usage import Usage

MAX_MODELS = 100
OTHER = "other"
KINDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        own: dict[str, Any] = {"namespace": "claudejobs_gateway", "registry": self.registry}
        self.requests = Counter(
            "requests", "Calls passed on to the model API.", ["namespace", "model", "status"], **own
        )
        self.refused = Counter("refused", "Calls not passed on.", ["reason"], **own)
        self.tokens = Counter("tokens", "Tokens used.", ["namespace", "model", "kind"], **own)
        self.cost = Counter("cost_usd", "Cost of models with a known price, US dollars.", ["namespace", "model"], **own)
        self.in_flight = Gauge("requests_in_flight", "Calls that run.", **own)
        self.closed = Gauge("models_closed", "Models in a pause that the API asked for.", **own)
        self.first_byte = Histogram(
            "upstream_seconds",
            "Time until the model API begins to answer.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
            **own,
        )

    def used(self, namespace: str, model: str, usage: Usage, cost: float | None) -> None:
        """Count what a call used."""
        model = self.model(model)
        for kind in KINDS:
            if count := getattr(usage, kind):
                self.tokens.labels(namespace, model, kind.removesuffix("_tokens")).inc(count)
        if cost:
            self.cost.labels(namespace, model).inc(cost)

    def model(self, name: str) -> str:
        """The model as a label: a name that is the API's own, or else ``other``, lest callers make up thousands."""
        return name if name in self._models else OTHER

    def know(self, name: str) -> None:
        """The API has answered in this model's name."""
        if len(self._models) < MAX_MODELS:
            self._models.add(name)

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
