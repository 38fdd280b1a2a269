"""How much each tenant may ask for: requests and tokens in a minute, requests in flight.

Owns the counting and the exact time at which a refused request would be let in. The clock is handed in and must not run
backwards. Must not know keys, HTTP or workers.

A limit in a minute is a bucket that fills at that rate and holds BURST_S of it: in any window of `w` seconds no more
than `w` seconds' worth and one bucket more is let in. Tokens are taken by estimate when the prompt is known, and set
right by what was really used when the request has ended, output included: then the bucket may owe, and nothing is let
in until the debt is filled. So the long run keeps the limit exactly, whatever the estimates are.
"""

from __future__ import annotations

from typing import Final

from core.errors import RateLimited
from router.tenants import Tenant

BURST_S: Final = 10.0
_MINUTE_S: Final = 60.0
# What a sum of floats may lack; without it a client that comes back at the named time could be a rounding too early.
_SLACK: Final = 1e-9


class _Bucket:
    """One limit in a minute; `level` may be negative, which is a debt."""

    __slots__ = ("_at_s", "capacity", "level", "rate_per_s")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.rate_per_s = per_minute / _MINUTE_S
        self.capacity = max(1.0, self.rate_per_s * BURST_S)
        self.level = self.capacity
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Say how long from now until `amount` is there; what is more than the bucket holds needs a full one."""
        if now_s > self._at_s:
            self.level = min(self.capacity, self.level + (now_s - self._at_s) * self.rate_per_s)
            self._at_s = now_s
        missing = min(amount, self.capacity) - self.level
        return missing / self.rate_per_s if missing > _SLACK * self.capacity else 0.0

    def take(self, amount: float) -> None:
        """Use `amount`, or give it back when negative."""
        self.level = min(self.capacity, self.level - amount)


class _Account:
    """What one tenant has used."""

    __slots__ = ("num_running", "requests", "tenant", "tokens")

    def __init__(self, tenant: Tenant, now_s: float) -> None:
        self.num_running = 0  # granted and not settled
        self.renew(tenant, now_s)

    def renew(self, tenant: Tenant, now_s: float) -> None:
        """Begin with these limits."""
        self.tenant = tenant
        rpm, tpm = tenant.requests_per_minute, tenant.tokens_per_minute
        self.requests = None if rpm is None else _Bucket(rpm, now_s)
        self.tokens = None if tpm is None else _Bucket(tpm, now_s)

    def refuse(self, limit: int | None, key: str, words: str, wait_s: float | None) -> RateLimited:
        """Make the error that names the limit and the time."""
        message = f"tenant {self.tenant.name} is at its limit of {limit} {words} ({key})"
        return RateLimited(message, retry_after_s=wait_s, earliest_s=wait_s)


class Grant:
    """The leave of one request to run; settle it exactly once, whatever became of the request."""

    __slots__ = ("_account", "_charged")

    def __init__(self, account: _Account | None) -> None:
        self._account = account
        self._charged = 0.0

    def charge(self, prompt_tokens: int, now_s: float) -> None:
        """Take the prompt's tokens, as estimated, out of the tenant's minute.

        Raises RateLimited with the exact time to wait; the request then does not count, but must still be settled.
        """
        account = self._account
        if account is None or account.tokens is None:
            return
        wait_s = account.tokens.wait_s(prompt_tokens, now_s)
        if wait_s > 0:
            if account.requests is not None:
                account.requests.take(-1.0)
            limit = account.tenant.tokens_per_minute
            raise account.refuse(limit, "tokens_per_minute", "tokens in a minute", wait_s)
        account.tokens.take(prompt_tokens)
        self._charged += prompt_tokens

    def settle(self, prompt_tokens: int, output_tokens: int) -> None:
        """End the grant: put what was really used, 0 of a refused request, in the place of what was estimated."""
        account = self._account
        if account is None:
            return
        self._account = None
        account.num_running -= 1
        if account.tokens is not None:
            account.tokens.take(prompt_tokens + output_tokens - self._charged)


FREE: Final = Grant(None)  # of whoever has no limits


class Limits:
    """The accounts of all tenants that have limits."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}  # of all and only the tenants with limits that were seen

    def admit(self, tenant: Tenant, now_s: float) -> Grant:
        """Let one request in, and count it.

        Raises RateLimited: with the exact time to wait for a limit in a minute; without one for requests in flight,
        for nobody knows when one ends.
        """
        if tenant.is_unlimited:
            return FREE
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = _Account(tenant, now_s)
        elif account.tenant is not tenant and account.tenant != tenant:  # the file was read again
            account.renew(tenant, now_s)
        most = tenant.max_concurrent
        if most is not None and account.num_running >= most:
            raise account.refuse(most, "max_concurrent", "requests in flight", None)
        wait_s = 0.0 if account.requests is None else account.requests.wait_s(1.0, now_s)
        if account.tokens is not None:  # a debt is known before the prompt is
            wait_s = max(wait_s, account.tokens.wait_s(0.0, now_s))
        if wait_s > 0:
            raise self._over(account, wait_s, now_s)
        if account.requests is not None:
            account.requests.take(1.0)
        account.num_running += 1
        return Grant(account)

    @staticmethod
    def _over(account: _Account, wait_s: float, now_s: float) -> RateLimited:
        tenant = account.tenant
        if account.requests is not None and account.requests.wait_s(1.0, now_s) > 0:
            limit = tenant.requests_per_minute
            return account.refuse(limit, "requests_per_minute", "requests in a minute", wait_s)
        return account.refuse(tenant.tokens_per_minute, "tokens_per_minute", "tokens in a minute", wait_s)
