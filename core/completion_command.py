"""`baton completion bash|zsh|fish`: a script that completes verbs, flags and their values in a shell.

Owns the three dialects. What there is to complete is read from the parser of the command line, so that a new verb or
flag needs nothing here. Loads nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

PROGRAMS: Final = ("baton", "baton.py")
_FILES: Final = ("FILE", "PATH", "CONFIG", "DIR")  # metavars that say that a value is a file
_PLAIN: Final = str.maketrans("[]:\n", "(), ", "'`")
_EPILOG: Final = """\
examples:
  alias baton='python /path/to/baton.py'            the name that is completed, beside baton.py itself
  source <(python baton.py completion bash)         for this shell; in ~/.bashrc for all
  python baton.py completion zsh > ~/.zfunc/_baton  with ~/.zfunc in fpath, before compinit
  python baton.py completion fish > ~/.config/fish/completions/baton.fish
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option, or a positional argument, which has no names."""

    names: tuple[str, ...]
    words: str
    takes_value: bool
    choices: tuple[str, ...]
    is_file: bool
    label: str


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb, named by the words that lead to it; the program itself has none."""

    path: tuple[str, ...]
    words: str
    flags: tuple[Flag, ...]
    below: tuple[tuple[str, str], ...]  # verbs that may follow, with what they do

    @property
    def key(self) -> str:
        """The words that lead to it, as one."""
        return " ".join(self.path)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the argument of `completion`."""
    parser.epilog = _EPILOG
    parser.add_argument("shell", metavar="SHELL", choices=sorted(_DIALECTS), help="bash, fish or zsh")


def run(options: argparse.Namespace) -> int:
    """Do `baton completion`; return 0. `options.whole_parser` makes the parser of all verbs."""
    text = script(options.shell, options.whole_parser())
    sys.stdout.write(json.dumps({"shell": options.shell, "script": text}) + "\n" if options.as_json else text)
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Write the completion of a command line for a shell."""
    return "\n".join(_DIALECTS[shell](tuple(verbs_of(parser)))) + "\n"


def verbs_of(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), words: str = "") -> Iterator[Verb]:
    """Yield a parser and all below it."""
    flags: list[Flag] = []
    below: list[tuple[str, str]] = []
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # argparse tells of its actions in no other way
        if isinstance(action, argparse._SubParsersAction):
            found = dict(action.choices)
            below = [(choice.dest, choice.help or "") for choice in action._choices_actions]
        elif action.help != argparse.SUPPRESS:
            flags.append(_flag(action))
    yield Verb(path, words, tuple(flags), tuple(below))
    for name, what in below:
        yield from verbs_of(found[name], (*path, name), what)


def _flag(action: argparse.Action) -> Flag:
    label = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Flag(
        tuple(action.option_strings),
        action.help or "",
        action.nargs != 0,
        tuple(map(str, action.choices)) if action.choices is not None else (),
        any(name in label for name in _FILES),
        label,
    )


def _bash(verbs: tuple[Verb, ...]) -> Iterator[str]:
    places = "|".join(f'"{" ".join(verb.path[:-1])} {verb.path[-1]}"' for verb in verbs if verb.path)
    yield "# bash completion of baton; made by `baton completion bash`"
    yield "_baton() {"
    yield "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}"
    yield '    local verb="" words="" files="" word'
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield f'        case "$verb $word" in {places}) verb="${{verb:+$verb }}$word" ;; esac'
    yield "    done"
    yield '    case "$verb $before" in'
    for verb in verbs:
        for flag in (flag for flag in verb.flags if flag.names and flag.takes_value):
            names = "|".join(f'"{verb.key} {name}"' for name in flag.names)
            reply = "-f" if flag.is_file else f'-W "{" ".join(flag.choices)}"'
            yield f'        {names}) COMPREPLY=($(compgen {reply} -- "$current")); return ;;'
    yield "    esac"
    yield '    case "$verb" in'
    for verb in verbs:
        words = [name for name, _ in verb.below] + [name for flag in verb.flags for name in flag.names]
        words += [choice for flag in verb.flags if not flag.names for choice in flag.choices]
        files = " files=1" if any(flag.is_file for flag in verb.flags if not flag.names) else ""
        yield f'        "{verb.key}") words="{" ".join(words)}"{files} ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield '    if [[ -n $files && $current != -* ]]; then COMPREPLY+=($(compgen -f -- "$current")); fi'
    yield "}"
    yield f"complete -o filenames -F _baton {' '.join(PROGRAMS)}"


def _zsh(verbs: tuple[Verb, ...]) -> Iterator[str]:
    yield f"#compdef {' '.join(PROGRAMS)}"
    yield "# made by `baton completion zsh`"
    yield "_baton() {"
    yield '    local verb="" word'
    yield "    local -a below"
    yield "    integer depth=0"
    yield "    for word in ${words[2,CURRENT-1]}; do"
    places = "|".join(f'"{" ".join(verb.path[:-1])} {verb.path[-1]}"' for verb in verbs if verb.path)
    yield f'        case "$verb $word" in ({places}) verb="${{verb:+$verb }}$word"; (( depth++ )) ;; esac'
    yield "    done"
    yield "    shift $depth words"
    yield "    (( CURRENT -= depth ))"
    yield '    case "$verb" in'
    for verb in verbs:
        yield f'        ("{verb.key}")'
        if verb.below:
            yield "            below=(" + " ".join(_quoted(f"{n}:{_plain(what)}") for n, what in verb.below) + ")"
            yield "            _describe verb below ;;"
        else:
            yield "            _arguments " + " ".join(_zsh_spec(flag) for flag in verb.flags) + " ;;"
    yield "    esac"
    yield "}"
    yield '[[ $zsh_eval_context[-1] == loadautofunc ]] && _baton "$@" || compdef _baton ' + " ".join(PROGRAMS)


def _zsh_spec(flag: Flag) -> str:
    value = f"({' '.join(flag.choices)})" if flag.choices else "_files" if flag.is_file else " "
    if not flag.names:
        return _quoted(f"*:{_plain(flag.label)}:{value}")
    ending = f":{_plain(flag.label)}:{value}" if flag.takes_value else ""
    return " ".join(_quoted(f"*{name}[{_plain(flag.words)}]{ending}") for name in flag.names)


def _fish(verbs: tuple[Verb, ...]) -> Iterator[str]:
    yield "# fish completion of baton; made by `baton completion fish`"
    for program in PROGRAMS:
        yield f"complete -c {program} -f"
        for verb in verbs:
            seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in verb.path) or "__fish_use_subcommand"
            if verb.below and verb.path:
                seen += "; and not __fish_seen_subcommand_from " + " ".join(name for name, _ in verb.below)
            head = f"complete -c {program} -n {_quoted(seen)}"
            for name, what in verb.below:
                yield f"{head} -a {name} -d {_quoted(_plain(what))}"
            for flag in verb.flags:
                yield f"{head}{_fish_flag(flag)} -d {_quoted(_plain(flag.words))}"


def _fish_flag(flag: Flag) -> str:
    text = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in flag.names)
    if flag.names and flag.takes_value:
        text += " -r"
    if flag.choices:
        text += f" -a {_quoted(' '.join(flag.choices))}"
    return text + (" -F" if flag.is_file else "")


def _plain(text: str) -> str:
    """Leave out what dialects give a meaning to."""
    return text.replace("%%", "%").translate(_PLAIN)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "") + "'"


_Dialect = Callable[[tuple[Verb, ...]], Iterator[str]]
_DIALECTS: Final[Mapping[str, _Dialect]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
