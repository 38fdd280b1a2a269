"""The hand-over's counters in Prometheus text, from what an engine's KV endpoint reports.

Owns names and help of the baton_kv_* metrics. They are read when somebody scrapes, never pushed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ACCOUNTS = ("granted", "held", "released", "expired")


def render(stats: Mapping[str, Any]) -> str:
    """Render the answer of KVControlClient.stats as Prometheus text."""
    return "\n".join(_lines(stats)) + "\n"


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    yield from _head("baton_kv_lease_blocks", "gauge", "KV blocks leased since start, by what became of them")
    for account in _ACCOUNTS:
        yield f'baton_kv_lease_blocks{{state="{account}"}} {stats["blocks"][account]}'
    yield from _single(
        "baton_kv_lease_imbalance_blocks",
        "gauge",
        "granted - held - released - expired; always 0",
        stats["imbalance_blocks"],
    )
    yield from _single("baton_kv_leases_open", "gauge", "Hand-overs in progress on this side", len(stats["leases"]))
    yield from _single("baton_kv_staged_bytes", "gauge", "KV copied out and not yet sent", stats["staged_bytes"])
    yield from _single("baton_kv_cached_bytes", "gauge", "KV that peers read in the cache", stats["cached_bytes"])
    for side in ("receives", "sends"):
        name = f"baton_kv_{side}_total"
        yield from _head(name, "counter", f"Hand-over {side} that ended, by outcome")
        for outcome, count in stats[side].items():
            yield f'{name}{{outcome="{outcome}"}} {count}'
    yield from _transports(stats.get("transports", {}))
    overlap = stats["overlap"]
    yield from _single(
        "baton_kv_quarantined", "gauge", "Prefill workers whose KV is not taken for a while", len(stats["quarantined"])
    )
    counters = (
        ("baton_kv_mismatches_total", "Hand-overs that brought wrong KV and were recomputed", stats["mismatches"]),
        ("baton_kv_digests_total", "Hand-overs sent with a digest of their blocks, end to end", stats["digests"]),
        ("baton_kv_sent_bytes_total", "KV bytes sent", stats["bytes_sent"]),
        (
            "baton_kv_uncopied_bytes_total",
            "KV bytes that peers were told to read in the cache",
            stats["bytes_uncopied"],
        ),
        ("baton_kv_landed_bytes_total", "KV bytes received into the cache", stats["bytes_landed"]),
        ("baton_kv_send_landed_bytes_total", "KV bytes of sends that landed", overlap["num_bytes"]),
        (
            "baton_kv_send_hidden_bytes_total",
            "Of these, sent before the last layer was computed",
            overlap["hidden_bytes"],
        ),
        ("baton_kv_send_exposed_seconds_total", "From the last layer computed to all landed", overlap["exposed_s"]),
    )
    for name, text, value in counters:
        yield from _single(name, "counter", text, value)


def _transports(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    texts = {
        "bytes": "KV bytes of sends that landed, by transport",
        "handovers": "Sends that landed, by the transport they ended on",
        "failures": "Streams that did not open or broke, by transport",
    }
    for field, text in texts.items():
        name = f"baton_kv_transport_{field}_total"
        yield from _head(name, "counter", text)
        for transport, count in counts.items():
            yield f'{name}{{transport="{transport}"}} {count[field]}'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"{name} {value}"
