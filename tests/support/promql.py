"""What PromQL expressions ask for: names of series, and the labels that they are matched and grouped by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from core.metrics import METRICS

# Of targets, not of metrics: Prometheus puts them on, the latter two by deploy/prometheus/prometheus.yaml.
TARGET_LABELS = frozenset({"instance", "job", "worker", "role"})
BUILT_IN = frozenset({"up"})
_WORDS = frozenset(
    {
        *("sum", "min", "max", "avg", "count", "rate", "increase", "histogram_quantile", "topk", "label_values"),
        *("by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless"),
    }
)
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")
_VARIABLE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Asked:
    """One series that an expression names."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value


def asked_of(expression: str) -> list[Asked]:
    """List the series of an expression."""
    text = _GROUPING.sub(" ", _VARIABLE.sub(" ", expression))
    if text.startswith("label_values("):
        text = text[len("label_values(") :].partition(",")[0]
    found = []
    for match in _SELECTOR.finditer(text):
        name = match[1]
        if name not in _WORDS and not _is_inside_braces(text, match.start()):
            found.append(Asked(name, tuple(_MATCHER.findall(match[2] or ""))))
    return found


def labels_grouped_by(expression: str) -> set[str]:
    """Name the labels that an expression groups or joins by."""
    return {name.strip() for names in _GROUPING.findall(expression) for name in names.split(",") if name.strip()}


def _is_inside_braces(text: str, at: int) -> bool:
    return text.count("{", 0, at) > text.count("}", 0, at)


class Exported:
    """What was really exported: the series by name, with the values that their labels took."""

    def __init__(self, *texts: str) -> None:
        self._series: dict[str, dict[str, set[str]]] = {}
        for text in texts:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = self._series.setdefault(sample.name, {})
                    for name, value in sample.labels.items():
                        labels.setdefault(name, set()).add(value)

        for metric in METRICS:  # some have no series before their first event; tests/router holds labels against these
            if not any(name.startswith(metric.name) for name in self._series):
                self.add_rule(metric.name, set(metric.labels))

    def add_rule(self, name: str, labels: set[str]) -> None:
        """Take what a recording rule makes for exported too, with any value of its labels."""
        self._series[name] = {label: set() for label in labels}

    def faults(self, expression: str) -> Iterator[str]:
        """Tell what an expression asks for that is not exported."""
        known_labels: set[str] = set(TARGET_LABELS)
        for asked in asked_of(expression):
            if asked.name in BUILT_IN:
                continue
            labels = self._series.get(asked.name)
            if labels is None:
                yield f"no metric {asked.name}"
                continue
            known_labels |= set(labels)
            for label, operator, value in asked.matchers:
                if label not in labels and label not in TARGET_LABELS:
                    yield f"{asked.name} has no label {label}"
                elif operator in ("=", "!=") and "$" not in value:
                    occurring = labels.get(label)
                    if occurring and value not in occurring:
                        yield f"{asked.name} has no {label}={value!r}"
        for label in labels_grouped_by(expression) - known_labels:
            yield f"nothing in {expression!r} has a label {label}"
