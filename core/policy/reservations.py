"""Promises to refused requests: a token that makes one of them come first when it is back at the time it was told.

Owns the tokens and the ledger of promised times. A token says for whom and when, is signed by the cluster's secret
(HMAC-SHA256, RFC 2104), is used once and expires. Must not know requests or HTTP, nor the clock: the time is handed in
and is that of all routers that share the secret, seconds since the epoch.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from dataclasses import astuple, dataclass
from typing import Final

_PURPOSE: Final = b"baton reservation 1"  # so that no other signature under the secret is a token
_MAC_BYTES: Final = 16
_MAX_TOKEN_CHARS: Final = 1024
_MOST_PER_S: Final = 1e5  # promises, whatever rate is given


@dataclass(frozen=True, slots=True)
class Reservation:
    """A promise."""

    token: str
    earliest_s: float  # since the epoch: the request is to come back from here
    expires_s: float  # until here


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a token says; its fields in order are its JSON."""

    issuer: str
    number: int
    slo_class: str
    tenant: str
    earliest_s: float
    expires_s: float

    @property
    def id(self) -> tuple[str, int]:
        return self.issuer, self.number


class Reservations:
    """Issues tokens and takes them back; bounded in number by what can be kept."""

    def __init__(self, secret: str, *, issuer: str, window_s: float = 5.0, horizon_s: float = 120.0) -> None:
        """Take the cluster's secret, a name that no other issuer under it has or has had, and the times.

        A token can be used for `window_s` from its time on; nothing further away than `horizon_s` is promised. Used
        tokens are known to this object alone. Raises ValueError for an empty secret: anybody could sign.
        """
        if not secret:
            raise ValueError("reservations need the cluster's secret, and it is empty")
        self._key = hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)
        self._issuer = issuer
        self._window_s = window_s
        self._horizon_s = horizon_s
        self._num_issued = 0
        self._promised: dict[int, int] = {}  # how many for each second since the epoch that is not over
        self._used: dict[tuple[str, int], float] = {}  # ids of used tokens, as they were used, and when they expire
        self._sweep_at_s = -math.inf  # when seconds that are over are next looked for

    @property
    def num_promised(self) -> int:
        """Count the promises whose time is not known to be over."""
        return sum(self._promised.values())

    def issue(
        self, slo_class: str, tenant: str, *, earliest_s: float, rate_per_s: float, now_s: float
    ) -> Reservation | None:
        """Promise a time to a request, at `earliest_s` or in the first second after it that is not given away.

        `rate_per_s` is how many requests like it the pool can take. None if that leaves no time within the horizon.
        """
        self._forget_what_is_over(now_s)
        start_s = max(earliest_s, now_s)
        second = math.floor(start_s)
        while self._promised.get(second, 0) >= (capacity := _capacity(rate_per_s, second)):
            second += 1
            if second > now_s + self._horizon_s:
                return None
        if start_s > now_s + self._horizon_s:
            return None
        taken = self._promised.get(second, 0)
        self._promised[second] = taken + 1
        # Those that share a second come one after the other, and not all as it begins.
        earliest_s = max(start_s, second + taken / capacity)
        self._num_issued += 1
        claim = _Claim(self._issuer, self._num_issued, slo_class, tenant, earliest_s, earliest_s + self._window_s)
        return Reservation(self._sign(claim), claim.earliest_s, claim.expires_s)

    def redeem(self, token: str, slo_class: str, tenant: str, now_s: float) -> bool:
        """Tell whether a request of this class and tenant was promised this time, and use its token up if so.

        A token that comes too early stays good.
        """
        claim = self._verified(token)
        if claim is None or (claim.slo_class, claim.tenant) != (slo_class, tenant):
            return False
        self._forget_what_is_over(now_s)
        if not claim.earliest_s <= now_s <= claim.expires_s or claim.id in self._used:
            return False
        self._used[claim.id] = claim.expires_s
        return True

    def _sign(self, claim: _Claim) -> str:
        body = json.dumps(astuple(claim)).encode()
        mac = hmac.digest(self._key, body, hashlib.sha256)[:_MAC_BYTES]
        return base64.urlsafe_b64encode(mac + body).rstrip(b"=").decode()

    def _verified(self, token: str) -> _Claim | None:
        """Read a token; None if this secret has not signed it."""
        if len(token) > _MAX_TOKEN_CHARS:
            return None
        try:
            data = base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4))
        except ValueError:  # no base64, no ASCII
            return None
        mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, body, hashlib.sha256)[:_MAC_BYTES]):
            return None
        return _Claim(*json.loads(body))

    def _forget_what_is_over(self, now_s: float) -> None:
        if now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + 1
            self._promised = {s: count for s, count in self._promised.items() if s + 1 + self._window_s > now_s}
        # In the order of use: one that expires later keeps those behind it for `window_s` at most.
        while self._used:
            oldest = next(iter(self._used))
            if self._used[oldest] >= now_s:
                break
            del self._used[oldest]


def _capacity(rate_per_s: float, second: int) -> int:
    """Return how many requests of a steady rate fall into one second, so that any span has its due, one at most off."""
    rate_per_s = min(max(rate_per_s, 0.0), _MOST_PER_S)
    return math.floor(rate_per_s * (second + 1)) - math.floor(rate_per_s * second)
