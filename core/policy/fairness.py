"""How much service each tenant has had: a virtual token counter.

Owns the counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2): prompt and output
tokens weighed by what they cost, a tenant's own weight, and the lift of those that come back from idle, who may not
save up service for later. Must not know requests, queues or keys.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OTHERS: Final = ""  # the account of requests without a tenant, and of tenants that found no place of their own
_SPARE_ENTRIES: Final = 64  # of the heap, beyond two for each active tenant


@dataclass(slots=True)
class _Account:
    """The service one tenant has had, and how many of its requests are in the system."""

    service_s: float = 0.0  # divided by its weight
    num_active: int = 0


class TenantService:
    """Counts service; the lower a tenant's counter, the sooner it should be served."""

    def __init__(
        self,
        *,
        prompt_token_s: float,
        output_token_s: float,
        weights: Mapping[str, float] | None = None,
        max_tenants: int = 1000,
    ) -> None:
        """Take the seconds that a prompt and an output token take of a worker, and the weights that are not 1.

        Of more tenants than `max_tenants`, those that were idle the longest are forgotten; as long as there are none,
        further ones share one account.
        """
        self._prompt_token_s = prompt_token_s
        self._output_token_s = output_token_s
        self._weights = dict(weights or {})
        self._max_tenants = max_tenants
        self._others = _Account()
        self._active: dict[str, _Account] = {}  # all and only the tenants with requests in the system
        self._idle: OrderedDict[str, _Account] = OrderedDict()  # of the others some, the longest idle first
        # A heap of (service, number, account): each active account once or more, its service as it once was.
        self._least: list[tuple[float, int, _Account]] = []
        self._num_pushed = 0
        self._last_left_s = 0.0  # service of the tenant that became idle last

    def __len__(self) -> int:
        """Count the tenants with an account of their own."""
        return len(self._active) + len(self._idle)

    def arrived(self, tenant: str) -> None:
        """Note that a request of `tenant` is in the system, waiting or running, until `left`."""
        account = self._account(tenant)
        if account is None:
            account = self._open(tenant)
        if not account.num_active:
            # Algorithm 2, lines 9 to 15: nobody who was away is behind those that stayed.
            floor_s = self._least_s() if self._least else self._last_left_s
            account.service_s = max(account.service_s, floor_s)
            self._activate(tenant, account)
        account.num_active += 1

    def left(self, tenant: str) -> None:
        """Note that a request has ended or was refused after it had arrived."""
        account = self._account(tenant)
        if account is None or not account.num_active:
            return
        account.num_active -= 1
        if account.num_active:
            return
        self._last_left_s = account.service_s
        if account is not self._others:
            self._idle[tenant] = self._active.pop(tenant)
        self._least_s()

    def charge(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """Count tokens that were computed for `tenant`: a prompt's when it is begun, outputs as they come."""
        account = self._account(tenant)
        if account is not None:
            cost_s = prompt_tokens * self._prompt_token_s + output_tokens * self._output_token_s
            account.service_s += cost_s / self._weights.get(tenant, 1.0)

    def over_share_s(self, tenant: str) -> float:
        """Return the service that `tenant` has had beyond the least served one that has requests in the system.

        In seconds of a worker, divided by the tenant's weight; 0 for an unknown tenant and where nobody waits.
        """
        account = self._account(tenant)
        least_s = self._least_s()
        return max(0.0, account.service_s - least_s) if account is not None and self._least else 0.0

    def _account(self, tenant: str) -> _Account | None:
        """Find the account that a tenant uses; None: it would begin one."""
        account = self._active.get(tenant) or self._idle.get(tenant)
        if account is None and (self._others.num_active or tenant == OTHERS):
            return self._others
        return account

    def _open(self, tenant: str) -> _Account:
        """Make an account, in the place of the longest idle one where there are too many."""
        if len(self) >= self._max_tenants:
            if not self._idle:
                return self._others
            self._idle.popitem(last=False)
        account = self._idle[tenant] = _Account()
        return account

    def _activate(self, tenant: str, account: _Account) -> None:
        if account is not self._others:
            self._active[tenant] = self._idle.pop(tenant)
        if len(self._least) > 2 * len(self._active) + _SPARE_ENTRIES:
            self._least = [entry for entry in self._least if entry[2].num_active]
            heapq.heapify(self._least)
        heapq.heappush(self._least, (account.service_s, self._num_pushed, account))
        self._num_pushed += 1

    def _least_s(self) -> float:
        """Return the least service of an active tenant, 0 if there is none; brings the heap's top up to date."""
        least = self._least
        while least:
            service_s, number, account = least[0]
            if not account.num_active:
                heapq.heappop(least)
            elif account.service_s > service_s:
                heapq.heapreplace(least, (account.service_s, number, account))
            else:
                return service_s
        return 0.0
