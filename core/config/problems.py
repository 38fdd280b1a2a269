"""What is wrong with a configuration, as data.

Owns the shape of one problem and the exception that carries them all. Must not know how problems are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing to correct.

    `path` is dotted and empty for the file as a whole; `source` is `file:line`, the name of an environment
    variable, the `--set` given, or `default`.
    """

    path: str
    message: str
    source: str
    value: str | None = None  # the value found, as YAML flow text; None: there is none to show
    allowed: str | None = None  # type and range in words
    suggestion: str | None = None  # what to write instead

    def __str__(self) -> str:
        found = f"{self.path} = {self.value}" if self.value is not None and self.path else self.path
        parts = [f"{self.source}: " + (f"{found}: " if found else "") + self.message]
        if self.allowed is not None:
            parts.append(f"allowed: {self.allowed}")
        if self.suggestion is not None:
            parts.append(self.suggestion)
        return "; ".join(parts)


class ConfigErrors(ConfigError):
    """Every problem of one configuration, found in one pass."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems in the configuration:"]
        lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)


def by_place(problem: ConfigProblem) -> tuple[int, str, int]:
    """Order problems as a reader meets them: lines of the file, then variables, then flags."""
    file, colon, line = problem.source.rpartition(":")
    if colon and line.isdigit() and not problem.source.startswith("--set"):
        return 0, file, int(line)
    rank = 2 if problem.source.startswith("BATON_") else 3 if problem.source.startswith("--set") else 1
    return rank, "", 0
