"""Whose request it is: keys to tenants.

Owns the look-up of a key, and the tenant as the rest of the router sees it. Keys are hashed as they come in, and are
never kept, logged or repeated in a message. Must not count what a tenant uses: router.limits does.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.config.tenants import TenantConfig, digest_of, read_tenants
from core.errors import ConfigError, Forbidden, Unauthorized

_SCHEME: Final = "bearer "

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant and its rights; None stands for no limit."""

    name: str = ""  # empty: anybody, for no key is asked for
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    classes: tuple[str, ...] | None = None  # the usual one first; None: all

    @property
    def is_unlimited(self) -> bool:
        """Nothing of what it does needs to be counted."""
        return self.requests_per_minute is None and self.tokens_per_minute is None and self.max_concurrent is None

    def check_class(self, slo_class: str) -> None:
        """Refuse a class that is not the tenant's.

        Raises Forbidden.
        """
        if self.classes is not None and slo_class not in self.classes:
            allowed = ", ".join(self.classes)
            message = f"the SLO class {slo_class!r} is not open to tenant {self.name}; allowed are {allowed}"
            raise Forbidden(message, param="x-slo-class", slo_class=slo_class)


ANYBODY: Final = Tenant()
# Whoever started the cluster: no limits, all classes. No tenant of a file can have this name.
OPERATOR: Final = Tenant("(operator)")


class Tenants:
    """The tenants of one file, or nobody in particular where there is none."""

    def __init__(self, file: str = "", *, slo_classes: Collection[str] = (), operator_key: str = "") -> None:
        """Read the file, if one is named; its classes must be among `slo_classes`, if any are given.

        `operator_key` is one more key, of whoever started the cluster; empty: there is none.

        Raises ConfigErrors with every problem of the file.
        """
        self._file = file
        self._slo_classes = slo_classes
        digest = digest_of(operator_key)
        self._operator = {digest: (digest, OPERATOR)} if operator_key else {}
        self._by_name: Mapping[str, Tenant] = {}
        # All and only the keys of the file, and the operator's, hashed. A look-up tells nothing about keys by the time
        # it takes: it compares hashes, and finds their place by Python's own hash of them, seeded for each process.
        self._by_digest: Mapping[bytes, tuple[bytes, Tenant]] = {}
        if file:
            self._load()

    @property
    def are_known(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._file)

    @property
    def weights(self) -> Mapping[str, float]:
        """Give each tenant's share of the service."""
        return {name: tenant.weight for name, tenant in self._by_name.items()} or {ANYBODY.name: ANYBODY.weight}

    def authenticate(self, authorization: str | None, api_key: str | None = None) -> Tenant:
        """Find the tenant of a request by its headers `Authorization` and, as Anthropic's clients send it, `x-api-key`.

        Raises Unauthorized.
        """
        if not self._file:
            return ANYBODY
        key = _key_in(authorization) if authorization is not None else api_key
        if not key:
            raise Unauthorized("an API key is needed: send it as `Authorization: Bearer KEY`")
        digest = digest_of(key)
        found = self._by_digest.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            raise Unauthorized("the API key is unknown")
        return found[1]

    def reload(self) -> bool:
        """Read the file again; one that cannot be used changes nothing and is logged. Return whether it was taken."""
        if not self._file:
            return False
        try:
            self._load()
        except ConfigError as exc:
            log.error("the tenants stay as they were: %s", exc)
            return False
        log.info("%d tenants with %d keys read from %s", len(self._by_name), len(self._by_digest), self._file)
        return True

    def _load(self) -> None:
        config = read_tenants(Path(self._file), slo_classes=self._slo_classes)
        by_name = {name: _tenant(name, given) for name, given in config.tenants.items()}
        digests = ((bytes.fromhex(key), by_name[name]) for name, given in config.tenants.items() for key in given.keys)
        self._by_digest = {digest: (digest, tenant) for digest, tenant in digests} | self._operator
        self._by_name = by_name


def _tenant(name: str, given: TenantConfig) -> Tenant:
    return Tenant(
        name,
        given.weight,
        given.requests_per_minute,
        given.tokens_per_minute,
        given.max_concurrent,
        given.classes,
    )


def _key_in(authorization: str) -> str | None:
    """Take the key out of `Bearer KEY` (RFC 6750, 2.1; the scheme's case does not matter)."""
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthorized("the header Authorization must be `Bearer KEY`")
    return authorization[len(_SCHEME) :].strip()
