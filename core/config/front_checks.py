"""What the keys of the HTTP front name must exist and fit: tenants, certificate, where traces go.

Owns the rules of the router's front that look at files or at other keys. Rules between other keys are in
core.config.checks.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Final
from urllib.parse import urlsplit

from core.config.model_files import file_location
from core.config.problems import ConfigProblem
from core.config.settings import Settings
from core.config.tenants import examine_tenants
from core.config.tree import Path, dotted
from core.errors import ConfigError
from core.tls_files import load_pair

_TENANTS: Final[Path] = ("router", "tenants")
_CERT: Final[Path] = ("router", "tls_cert")
_KEY: Final[Path] = ("router", "tls_key")
_OTLP: Final[Path] = ("router", "otlp_endpoint")


def check_front(settings: Settings, base: FilePath | None) -> Iterator[ConfigProblem]:
    """Apply every rule; relative paths start at `base` (default: the working directory), else at the checkout."""
    yield from _tenants_are_readable(settings, base)
    yield from _certificate_fits(settings, base)
    yield from _traces_have_an_address(settings)


def _tenants_are_readable(settings: Settings, base: FilePath | None) -> Iterator[ConfigProblem]:
    name = settings.text(_TENANTS)
    if not name:
        return
    _, problems = examine_tenants(
        FilePath(file_location(name, base)), slo_classes=tuple(settings.mapping(("slo", "classes")))
    )
    for problem in problems:
        # Where the file as a whole is at fault, the key that names it is where to look.
        yield problem if problem.path else settings.problem(_TENANTS, f"{problem.source}: {problem.message}")


def _certificate_fits(settings: Settings, base: FilePath | None) -> Iterator[ConfigProblem]:
    cert, key = settings.text(_CERT), settings.text(_KEY)
    if not cert and not key:
        return
    for given, missing in ((_CERT, _KEY), (_KEY, _CERT)):
        if settings.text(given) and settings.value(missing) is None:
            yield settings.problem(given, f"needs {dotted(missing)} beside it", "give both, or none for no TLS")
    if not cert or not key:
        return
    try:
        files = (FilePath(file_location(name, base)) for name in (cert, key))
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *files)
    except ConfigError as exc:
        path = _KEY if str(exc).startswith(dotted(_KEY)) else _CERT
        yield settings.problem(path, str(exc).partition(": ")[2])


def _traces_have_an_address(settings: Settings) -> Iterator[ConfigProblem]:
    given = settings.text(_OTLP)
    if not given:
        return
    remedy = "write it as http://HOST:4318/v1/traces"
    try:
        url = urlsplit(given)
        host, _ = url.hostname, url.port  # the port is only read, and judged, when asked for
    except ValueError as exc:
        yield settings.problem(_OTLP, f"is no URL: {exc}", remedy)
        return
    if url.scheme not in ("http", "https"):
        yield settings.problem(_OTLP, "must begin with http:// or https://", remedy)
    elif not host or any(c.isspace() for c in given):
        yield settings.problem(_OTLP, "names no host" if not host else "must not hold spaces", remedy)
