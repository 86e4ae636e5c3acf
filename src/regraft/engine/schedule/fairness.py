"""Virtual token counters: which adapter's turn it is.

Sheng, Cao, Li, Zhu, Li, Zhuo, Gonzalez, Stoica 2024, "Fairness in Serving Large Language Models", arXiv 2401.00588,
Algorithm 2, with S-LoRA's prices and adapters as the clients. A counter grows by what its tenant is served,

    c += (1 · prompt tokens + 2 · generated tokens) / weight,

and the tenant with the least counter, of those with waiting requests, is next. One that comes back is lifted to the
least counter of those waiting, or of the tenant that waited last: nobody saves up while idle.
"""

from __future__ import annotations

from collections.abc import Mapping

from regraft.engine.checks import check_number
from regraft.engine.request import Tenant
from regraft.engine.schedule.lazy_heap import LazyHeap

PROMPT_PRICE, GENERATED_PRICE = 1.0, 2.0
SPARE_COUNTERS = 1024  # counters that would only be lifted are forgotten when there are so many more than of others


class TokenCounters:
    """A counter for each tenant that was ever served.

    Args:
        weights: how much a tenant may be served in proportion to others; 1 for those not in it.

    Raises:
        UsageError: a weight that is no finite number above 0.
    """

    def __init__(self, weights: Mapping[Tenant, float] | None = None) -> None:
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            check_number(f"weight of {'+'.join(tenant)}", weight, "a finite number above 0", lambda value: value > 0)
        self._counters: dict[Tenant, float] = {}
        self._forgotten = 0.0  # no less than any counter that is not in _counters
        self._most_counters = SPARE_COUNTERS
        self._waiting: set[Tenant] = set()
        self._by_counter = LazyHeap(self.__getitem__, self._waiting.__contains__)
        self._last_to_leave: Tenant | None = None

    def __getitem__(self, tenant: Tenant) -> float:
        return self._counters.get(tenant, self._forgotten)

    def join(self, tenant: Tenant) -> None:
        """The tenant has a waiting request, and had none."""
        least = self._by_counter.peek() if self._waiting else self._last_to_leave
        floor = self._forgotten if least is None else self[least]
        self._forget(floor)
        self._counters[tenant] = max(self[tenant], floor)
        self._waiting.add(tenant)
        self._by_counter.push(tenant)

    def leave(self, tenant: Tenant) -> None:
        """The tenant has no waiting request any more."""
        self._waiting.remove(tenant)
        self._last_to_leave = tenant

    def charge(self, tenant: Tenant, *, prompt_tokens: int = 0, generated_tokens: int = 0) -> None:
        """The tenant is served so many tokens."""
        price = PROMPT_PRICE * prompt_tokens + GENERATED_PRICE * generated_tokens
        self._counters[tenant] = self[tenant] + price / self._weights.get(tenant, 1.0)

    def _forget(self, floor: float) -> None:
        if len(self._counters) >= self._most_counters:
            kept = {t: c for t, c in self._counters.items() if c > floor or t in self._waiting}
            self._counters, self._forgotten = kept, max(self._forgotten, floor)
            self._most_counters = 2 * len(kept) + SPARE_COUNTERS
