"""What one request asks of its service: SLO class, targets of its own, priority.

Owns the reading and the bounds of these headers, and of `priority` in a body. Must not decide where a request goes.

`x-slo-class` names a class that the tenant may use; without it the default class holds, or the tenant's first one if
the default is not its own. `x-slo-ttft-ms` and `x-slo-tpot-ms` (as inference-perf sends them; `x-llm-d-slo-ttft-ms` and
`x-llm-d-slo-tpot-ms` are read where those are missing) replace the class's targets for this request, and what is
promised, ordered and measured by them is so. A looser target is always allowed. A tighter one puts a request before
others, so that a tenant known by key may go as low as the tightest target among its classes, which it could have
named, and no lower; where no key is asked for, everybody may use everything anyway. The class keeps its tier: whom it
gives way to is never changed by a target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from core.errors import InvalidRequest
from core.router_spec import SLOTarget
from router.tenants import Tenant

# As of slo.classes.<name>.ttft_ms and tpot_ms.
_TTFT_RANGE_MS: Final = (1.0, 3_600_000.0)
_TPOT_RANGE_MS: Final = (0.1, 600_000.0)
# The first that is there counts.
_TTFT_HEADERS: Final = (b"x-slo-ttft-ms", b"x-llm-d-slo-ttft-ms")
_TPOT_HEADERS: Final = (b"x-slo-tpot-ms", b"x-llm-d-slo-tpot-ms")
_OWN_TARGETS: Final = frozenset(_TTFT_HEADERS + _TPOT_HEADERS)
_NUMBER: Final = re.compile(rb"[0-9]{1,10}(?:\.[0-9]{1,6})?\Z")
_PRIORITIES: Final = range(-(1 << 31), 1 << 31)


class RequestSLO(NamedTuple):
    """What one request is promised; `ttft_s` and `tpot_s` are its own targets, None where its class's hold."""

    slo_class: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    priority: int = 0  # within its class, less is sooner (vLLM's `priority`)


class SLOHeaders:
    """Reads the promise of each request out of its headers."""

    def __init__(self, targets: Sequence[SLOTarget], default: str) -> None:
        self._targets = {t.name: t for t in targets}
        self._plain = {t.name: RequestSLO(t.name) for t in targets}
        self._default = self._plain[default]

    def read(self, headers: Mapping[bytes, bytes], tenant: Tenant) -> RequestSLO:
        """Find class and own targets of a request.

        Raises InvalidRequest for an unknown class or a target out of range, Forbidden for a class of others.
        """
        wanted = headers.get(b"x-slo-class")
        if wanted is not None:
            slo = self._named(wanted.decode("latin-1"), tenant)
        elif tenant.classes is None or self._default.slo_class in tenant.classes:
            slo = self._default
        else:
            slo = self._named(tenant.classes[0], tenant)
        if _OWN_TARGETS.isdisjoint(headers):
            return slo
        return self._with_own_targets(slo, headers, tenant)

    def target(self, slo: RequestSLO) -> SLOTarget:
        """Give the target to measure a request by: its class's, with its own values where it has any."""
        target = self._targets[slo.slo_class]
        if slo.ttft_s is None and slo.tpot_s is None:
            return target
        ttft_s = target.ttft_s if slo.ttft_s is None else slo.ttft_s
        return replace(target, ttft_s=ttft_s, tpot_s=target.tpot_s if slo.tpot_s is None else slo.tpot_s)

    def _with_own_targets(self, slo: RequestSLO, headers: Mapping[bytes, bytes], tenant: Tenant) -> RequestSLO:
        ttft_s = tpot_s = 0.0
        if tenant.name:
            open_to = [t for t in self._targets.values() if tenant.classes is None or t.name in tenant.classes]
            ttft_s, tpot_s = min(t.ttft_s for t in open_to), min(t.tpot_s for t in open_to)
        return RequestSLO(
            slo.slo_class,
            _target_s(_TTFT_HEADERS, headers, _TTFT_RANGE_MS, ttft_s),
            _target_s(_TPOT_HEADERS, headers, _TPOT_RANGE_MS, tpot_s),
        )

    def _named(self, name: str, tenant: Tenant) -> RequestSLO:
        slo = self._plain.get(name)
        if slo is None:
            valid = ", ".join(sorted(n for n in self._plain if tenant.classes is None or n in tenant.classes))
            raise InvalidRequest(f"no SLO class {name!r}; valid are {valid}", param="x-slo-class")
        tenant.check_class(name)
        return slo


def priority_in(value: object) -> int:
    """Read a body's `priority`; a body without one has 0.

    Raises InvalidRequest.
    """
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value not in _PRIORITIES:
        message = f"priority must be a whole number from {_PRIORITIES.start} to {_PRIORITIES.stop - 1}, less is sooner"
        raise InvalidRequest(message, param="priority")
    return value


def _target_s(
    names: tuple[bytes, ...], headers: Mapping[bytes, bytes], range_ms: tuple[float, float], least_s: float
) -> float | None:
    """Read one target; the lower bound is the range's, or what the tenant may ask for if that is more."""
    name = next((n for n in names if n in headers), None)
    if name is None:
        return None
    text = headers[name]
    low, high = max(range_ms[0], least_s * 1000), range_ms[1]
    value = float(text) if _NUMBER.match(text) else -1.0
    if not low <= value <= high:
        why = ": no tenant goes below the tightest of its classes" if low > range_ms[0] else ""
        message = f"{name.decode()} must be a number of milliseconds from {low:.12g} to {high:.12g}{why}"
        raise InvalidRequest(message, param=name.decode())
    return value / 1000
