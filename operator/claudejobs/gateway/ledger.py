"""What each job used and cost, as far as this replica saw it.

Kept in memory, for budgets and for /jobs. The metrics sum by namespace and model, and the log has a line per call, so
that nothing is lost with a replica that ends.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any

from claudejobs.api.events import BUDGET_SPENT

from .admission import Job
from .prices import PriceTable
from .refusal import RefusedError
from .usage import Usage

MAX_JOBS = 20_000
"""Jobs remembered; those that called last."""


@dataclass
class Account:
    """One job's.

    Attributes:
        cost_usd: of the models whose price is known.
        unpriced: calls of models whose price is not known.
        charged: what counts against the budget, US dollars by attempt; there unknown models cost the dearest price.
        in_flight: calls that run.
    """

    namespace: str
    job: str
    job_uid: str
    user: str | None
    requests: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    usage: Usage = field(default_factory=Usage)
    charged: dict[int, float] = field(default_factory=dict)
    in_flight: int = 0


class Ledger:
    """The accounts of the jobs."""

    def __init__(self, prices: PriceTable) -> None:
        self._prices = prices
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def account(self, job: Job) -> Account:
        """The account of a job."""
        account = self._accounts.get(job.uid)
        if account is None:
            account = self._accounts[job.uid] = Account(job.namespace, job.name, job.uid, job.user)
            while len(self._accounts) > MAX_JOBS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(job.uid)
        return account

    def spent(self, job: Job) -> float:
        """What the job has spent, US dollars: what the operator counted of the attempts before and what this replica
        saw of this one, or all that this replica saw, if that is more. A runner's own figures are the agent's word."""
        charged = self.account(job).charged
        return max(job.cost_usd + charged.get(job.attempt, 0.0), sum(charged.values()))

    def check_budget(self, job: Job) -> None:
        """Refuse a call of a job that has spent its budget.

        Raises:
            RefusedError: it has. A 400 is final for the agent's client.
        """
        if job.budget_usd is not None and (spent := self.spent(job)) >= job.budget_usd:
            message = f"{BUDGET_SPENT}: {spent:.4f} of {job.budget_usd:g} US dollars"
            raise RefusedError(400, "invalid_request_error", "budget", message)

    def charge(self, job: Job, model: str, usage: Usage) -> float | None:
        """Add a call's tokens to the job's account; what they cost, US dollars, if that is known."""
        account = self.account(job)
        account.requests += 1
        for name, count in asdict(usage).items():
            setattr(account.usage, name, getattr(account.usage, name) + count)
        cost = self._prices.cost(model, usage)
        if cost is None:
            account.unpriced += 1
        else:
            account.cost_usd += cost
        charged = self._prices.at_most(usage) if cost is None else cost
        account.charged[job.attempt] = account.charged.get(job.attempt, 0.0) + charged
        return cost

    def report(self, namespace: str | None = None, user: str | None = None) -> list[dict[str, Any]]:
        """The accounts as JSON, of one namespace or user if given; those that called last come first."""
        return [
            {
                "namespace": account.namespace,
                "job": account.job,
                "jobUid": account.job_uid,
                "userId": account.user,
                "requests": account.requests,
                "costUSD": round(account.cost_usd, 6),
                "unpricedRequests": account.unpriced,
                **{_camel(name): count for name, count in asdict(account.usage).items()},
            }
            for account in reversed(self._accounts.values())
            if namespace in (None, account.namespace) and user in (None, account.user)
        ]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
