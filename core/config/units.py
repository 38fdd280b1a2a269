"""The units that end configuration keys, and what people write instead.

Owns the reading of `400ms`, `0.4 s` or `ttft_s` as a quantity, so that an error can say what to write.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of time, of memory, or of a network."""

    suffix: str  # as a key ends, without the underscore
    words: str
    dimension: str
    scale: Fraction  # one of this unit, in seconds, in bytes, or in bytes per second


_UNITS = {  # the likeliest first within a dimension
    unit.suffix: unit
    for unit in (
        Unit("ms", "milliseconds", "time", Fraction(1, 1000)),
        Unit("s", "seconds", "time", Fraction(1)),
        Unit("min", "minutes", "time", Fraction(60)),
        Unit("us", "microseconds", "time", Fraction(1, 1_000_000)),
        Unit("h", "hours", "time", Fraction(3600)),
        Unit("bytes", "bytes", "size", Fraction(1)),
        Unit("gb", "GiB", "size", Fraction(1 << 30)),
        Unit("mb", "MiB", "size", Fraction(1 << 20)),
        Unit("kb", "KiB", "size", Fraction(1 << 10)),
        Unit("gbit_s", "gigabits per second", "rate", Fraction(10**9, 8)),
        Unit("mbit_s", "megabits per second", "rate", Fraction(10**6, 8)),
    )
}
_SPELLINGS = {
    "b": "bytes",
    "byte": "bytes",
    "k": "kb",
    "kib": "kb",
    "m": "mb",
    "mib": "mb",
    "g": "gb",
    "gib": "gb",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "msec": "ms",
    "millis": "ms",
    "milliseconds": "ms",
    "minutes": "min",
    "hours": "h",
}
_QUANTITY = re.compile(r"\s*(?P<number>[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?P<unit>[A-Za-z]{1,12})\s*")


def unit_of(key: str) -> Unit | None:
    """Say in what unit the values of `key` are, e.g. milliseconds for `ttft_ms`; None if the key names none."""
    return _split(key)[1]


def stem_of(key: str) -> str:
    """Cut the unit off a key: `ttft` for `ttft_ms`, `ttft_s` and `ttft`."""
    return _split(key)[0]


def convert(value: float, given: Unit, wanted: Unit) -> str | None:
    """Write `value` of one unit in another, as a number; None if they measure different things."""
    if given.dimension != wanted.dimension or not math.isfinite(value):
        return None
    return f"{float(Fraction(value) * given.scale / wanted.scale):.12g}"


def convert_text(text: str, wanted: Unit) -> str | None:
    """Read `400ms` or `1.5 GiB` and write it as a number of `wanted` units; None if it is no such quantity."""
    match = _QUANTITY.fullmatch(text)
    given = _named(match["unit"]) if match else None
    if match is None or given is None:
        return None
    return convert(float(match["number"]), given, wanted)


def units_like(unit: Unit) -> tuple[Unit, ...]:
    """List the other units of the same dimension, the likeliest first."""
    return tuple(other for other in _UNITS.values() if other.dimension == unit.dimension and other != unit)


def _split(key: str) -> tuple[str, Unit | None]:
    """Split a key before the longest unit that it ends with."""
    words = key.split("_")
    for begin in range(max(1, len(words) - 2), len(words)):
        unit = _named("_".join(words[begin:]))
        if unit is not None:
            return "_".join(words[:begin]), unit
    return key, None


def _named(word: str) -> Unit | None:
    word = word.lower()
    return _UNITS.get(_SPELLINGS.get(word, word))
