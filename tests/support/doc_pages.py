"""The Markdown pages of the project as data: fenced blocks with their marks, inline code, links, headings.

A block of commands says in the comment before it how it is proven:

    <!-- test: run -->              in a scratch folder that looks like the checkout; needs no cluster
    <!-- test: up -->               starts the one cluster that the blocks below ask
    <!-- test: cluster -->          against that cluster
    <!-- test: down -->             stops it
    <!-- test: parse, why -->       cannot run here: its flags and files are checked

`exits 0 3` after the mode names the exit codes that are right for the block's last command; without it 0 is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODES = ("run", "up", "cluster", "down", "parse")
_FENCE = re.compile(r"^( *)```(\w*)\s*$")
_MARK = re.compile(r"<!-- test: (\w+)(?: exits ([\d ]+))?(?:, (.+?))? -->")
_ENDS_A_COMMAND = frozenset({"|", "||", ">", ">>", "<", "&&", ";", "&", ")", "|&"})


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str  # from the root
    line: int  # of its opening fence
    language: str
    text: str
    mode: str  # one of MODES; empty: it bears no mark
    why: str = ""
    exits: tuple[int, ...] = (0,)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def command_lines(self) -> list[str]:
        """List the lines with continued ones joined, without comments and here-documents."""
        lines: list[str] = []
        until = ""
        for line in self.text.replace("\\\n", " ").splitlines():
            if until:
                until = "" if line.strip() == until else until
                continue
            here = re.search(r"<<-?\s*'?(\w+)'?", line)
            until = here[1] if here else ""
            if line.strip() and not line.lstrip().startswith("#"):
                lines.append(line)
        return lines


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown page."""

    path: str  # from the root
    text: str

    @property
    def prose(self) -> str:
        """What is not in a fence."""
        return re.sub(r"^( *)```.*?^\1```", "", self.text, flags=re.DOTALL | re.MULTILINE)

    def inline_code(self) -> list[str]:
        """List what stands in single backquotes, with line breaks as spaces."""
        return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", self.prose)]

    def links(self) -> list[str]:
        """List the targets of links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def anchors(self) -> set[str]:
        """List the headings as links name them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def blocks(self) -> Iterator[Block]:
        """Yield every fenced block."""
        lines = self.text.splitlines()
        at = 0
        while at < len(lines):
            opening = _FENCE.match(lines[at])
            if opening is None:
                at += 1
                continue
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            indent = len(opening[1])
            text = "\n".join(line[indent:] for line in lines[at + 1 : end]) + "\n"
            before = next((line for line in reversed(lines[:at]) if line.strip()), "")
            mode, exits, why = _mark_in(before)
            yield Block(self.path, at + 1, opening[2], text, mode, why, exits)
            at = end + 1


def _mark_in(line: str) -> tuple[str, tuple[int, ...], str]:
    found = _MARK.search(line)
    if found is None:
        return "", (0,), ""
    exits = tuple(int(code) for code in found[2].split()) if found[2] else (0,)
    return found[1], exits, found[3] or ""


def pages() -> list[Page]:
    """Read README.md and everything below docs/."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def words_of(line: str) -> list[list[str]]:
    """Split a line of shell into the words of its commands; what a pipe or a redirection leads to is another one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in _ENDS_A_COMMAND:
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]
