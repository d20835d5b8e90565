"""What tokens cost. Pure.

The built-in table has the public list prices. It is for budgets and reports, not for bills: discounts and service
tiers are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from .usage import Usage

MILLION = 1_000_000

WEB_SEARCH = 0.01
"""US dollars of one search by the API's own tool."""


class Price(BaseModel):
    """US dollars per million tokens; what is not said of the cache follows from ``input``, as the public API's does.

    Attributes:
        long_prompt_tokens: a request whose prompt has more tokens than this, those of the cache included, costs
            ``long_prompt_factor`` times as much.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cache_read: float | None = Field(None, ge=0, allow_inf_nan=False)
    cache_write: float | None = Field(None, ge=0, allow_inf_nan=False)
    cache_write_1h: float | None = Field(None, ge=0, allow_inf_nan=False)
    long_prompt_tokens: int | None = Field(None, ge=0)
    long_prompt_factor: float = Field(1.0, ge=0, allow_inf_nan=False)

    def of(self, usage: Usage) -> float:
        """What these tokens cost, US dollars."""
        read = 0.1 * self.input if self.cache_read is None else self.cache_read
        write = 1.25 * self.input if self.cache_write is None else self.cache_write
        write_1h = 2 * self.input if self.cache_write_1h is None else self.cache_write_1h
        tokens = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * read
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * write
            + usage.cache_write_1h_tokens * write_1h
        )
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if self.long_prompt_tokens is not None and prompt > self.long_prompt_tokens:
            tokens *= self.long_prompt_factor
        return tokens / MILLION + usage.web_searches * WEB_SEARCH


PRICES: dict[str, Price] = {
    "claude-fable-5": Price(input=10, output=50),
    "claude-fable-5-1": Price(input=10, output=50, cache_read=0.25),
    "claude-mythos-5": Price(input=10, output=50),
    "claude-mythos-5-1": Price(input=10, output=50, cache_read=0.25),
    "claude-opus-5": Price(input=5, output=25),
    "claude-opus-5-5": Price(input=4, output=20, cache_read=0.20),
    "claude-sonnet-5": Price(input=2, output=10),
    "claude-sonnet-5-5": Price(input=2, output=10, cache_read=0.10),
    "claude-haiku-5-5": Price(input=0.10, output=0.50, long_prompt_tokens=100_000, long_prompt_factor=5),
    "claude-opus-4": Price(input=15, output=75),  # 4.0 and 4.1
    "claude-opus-4-5": Price(input=5, output=25),
    "claude-opus-4-6": Price(input=5, output=25),
    "claude-opus-4-7": Price(input=5, output=25),
    "claude-opus-4-8": Price(input=5, output=25),
    "claude-sonnet-4": Price(input=3, output=15),
    "claude-haiku-4-5": Price(input=1, output=5),
    "claude-3-7-sonnet": Price(input=3, output=15),
    "claude-3-5-sonnet": Price(input=3, output=15),
    "claude-3-5-haiku": Price(input=0.8, output=4),
    "claude-3-opus": Price(input=15, output=75),
    "claude-3-haiku": Price(input=0.25, output=1.25),
}


class PriceTable:
    """Prices by the beginning of a model's name; the longest that fits counts."""

    def __init__(self, overrides: Mapping[str, Price] | None = None) -> None:
        self._prices = PRICES | dict(overrides or {})
        self._by_length = sorted(self._prices, key=len, reverse=True)

    def of(self, model: str) -> Price | None:
        """The price of a model, ``None`` when it is not known."""
        return next((self._prices[prefix] for prefix in self._by_length if model.startswith(prefix)), None)

    def cost(self, model: str, usage: Usage) -> float | None:
        """US dollars, ``None`` when the model's price is not known."""
        price = self.of(model)
        return None if price is None else price.of(usage)

    def at_most(self, usage: Usage) -> float:
        """What these tokens cost at the dearest price that is known: what a budget assumes of an unknown model, which
        would otherwise be a way around it."""
        return max(price.of(usage) for price in self._prices.values())
