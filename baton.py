"""The command line of Baton: `python baton.py VERB`.

Owns flags, exit codes and the wording of errors. Each verb is a thin call into its package, imported when it runs, so
that `--help` and `validate` are quick and need neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO, TypeAlias

from core.command_flags import add_config, add_json
from core.errors import BatonError, ConfigError
from sim.plan_flags import add_plan_flags, plan_flags

if TYPE_CHECKING:
    from core.config.load import LoadedConfig
    from core.config.models import BatonConfig
    from core.planning import Inventory, PlannedPools

OK, FAILED, USAGE = 0, 1, 2
_ROOT = Path(__file__).resolve().parent
_Verb: TypeAlias = Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class _Command:
    """A verb of a package: its module, loaded only if used, has `add_flags(parser)` and `run(options) -> int`."""

    name: str
    words: str
    module: str


_COMMANDS = (
    _Command("chaos", "break a cluster on purpose and see whether clients notice", "bench.chaos_command"),
    _Command("submit", "start Baton on a Ray cluster from another machine, as a job", "cluster.submit_command"),
    _Command("profile", "measure how fast the engines of the pools are on this machine", "bench.profile_command"),
    _Command("bench", "load an OpenAI-compatible endpoint and tell how it fared", "bench.bench_command"),
    _Command("compare", "ask two systems the same, in turns, and say by how much they differ", "bench.compare_command"),
    _Command("prove", "show whether what runs keeps the promise of a configuration", "bench.prove_command"),
    _Command("apply", "have what runs become what a changed configuration says", "cluster.apply_command"),
    _Command("drain", "let a worker finish what runs, then end or replace it", "cluster.drain_command"),
    _Command("flip", "have a running worker take the other role", "cluster.flip_command"),
    _Command("explain", "tell why a request was routed as it was, and where its time went", "router.explain_command"),
    _Command("simulate", "simulate the recorded traffic, as it was or with changes", "sim.simulate_command"),
    _Command("completion", "print a script that completes this command line in a shell", "core.completion_command"),
    _Command("version", "print the versions of Baton, Python, Ray and vLLM", "core.version_command"),
)

_DESCRIPTION = """\
Serve a large language model with prefill and decode on separate pools of workers, behind one OpenAI-compatible
HTTP port, and keep the latency promise written in one YAML file.
"""
_EPILOG = """\
examples:
  python baton.py up                                   the demonstration model, on this machine
  python baton.py up my.yaml --set router.port=8001    your own file, one value replaced
  python baton.py up --model Qwen/Qwen3-0.6B           another model, all else as in deploy/slo.yaml
  python baton.py validate my.yaml                     every error at once; starts nothing
  python baton.py plan my.yaml --gpu h100-sxm --gpus 8 which pools keep the promise; starts nothing
  python baton.py profile my.yaml                      measure how fast the engines are here, for `plan`
  python baton.py status --json | jq .                 what runs, for scripts
  python baton.py simulate --last 30m --set decode=3   the recorded traffic with another decode worker
  python baton.py explain ID                           why a request went where it did, and where its time went

exit codes:
  0  done
  1  it failed while running, or nothing runs
  2  wrong usage, or an error in the configuration
  3  plan: the promise cannot be kept; the nearest that can is shown
     prove: the promise is not kept
     chaos: clients noticed, or something stayed behind
  4  prove: nobody can tell yet; run longer

environment:
  BATON_SECTION__KEY   a configuration value, e.g. BATON_ROUTER__PORT=8001; wins over the file, --set wins over it
  BATON_STATE_DIR      where `up` leaves what `status` and `down` need
  BATON_DEBUG=1        show the stack trace of an error

Every key of the YAML is in docs/configuration.md.
"""


class _UsageError(Exception):
    """The command line is wrong; the text is ready to print."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that usage errors can be JSON too."""

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line."""
        raise _UsageError(f"{message}\n{self.format_usage().rstrip()}\nTry: {self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest verb, which argparse measures without its indent."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 14


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code that --help documents."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    try:
        code = _run(words, as_json="--json" in words)
        sys.stdout.flush()
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # The reader of our output went away (`| head`), or its disk is full; the interpreter shall not try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if exc.errno == errno.ENOSPC:
            _say(f"error: the output cannot be written: {exc.strerror}", sys.stderr)
        return FAILED
    return code


def _run(words: list[str], *, as_json: bool) -> int:
    try:
        options, unknown = _parser(words).parse_known_args(words)
        if unknown:
            raise _UsageError(f"unrecognized arguments: {' '.join(unknown)}\nTry: {options.prog} --help")
        verb: _Verb = options.run
        return verb(options)
    except _UsageError as exc:
        return _fail("usage_error", str(exc), USAGE, as_json=as_json)
    except ConfigError as exc:
        return _fail_for(exc, USAGE, as_json=as_json)
    except BatonError as exc:
        return _fail_for(exc, FAILED, as_json=as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", "interrupted", FAILED, as_json=as_json)


def _open_closed_streams() -> None:
    """Give the program streams where its caller closed them (`>&-`): what is written there is lost."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="baton.py", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Help, allow_abbrev=False
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(name: str, what: str, run: _Verb) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=what,
            description=_sentence(what),
            formatter_class=_Help,
            allow_abbrev=False,
        )
        verb.set_defaults(run=run, prog=verb.prog)
        return verb

    validate = add("validate", "check a configuration file; start nothing", _validate)
    add_config(validate, optional=False)
    add_json(validate)
    _add_plan(add)
    for command in _COMMANDS:
        _add_command(add, command, is_used=command.name in words)
    up = add("up", "start the pools and the router, and wait until they serve", _up)
    add_config(up, optional=True)
    up.add_argument("--foreground", action="store_true", help="stay until interrupted, then stop everything")
    up.add_argument("--model", metavar="PATH_OR_HUB_ID", help="serve this model; short for --set model.path=...")
    add_json(up)
    add_json(add("status", "show what runs", _status))
    add_json(add("doctor", "look for what is wrong with the KV hand-overs of what runs", _doctor))
    add_json(add("down", "stop everything that `up` started", _down))
    config = add("config", "look at the configuration (`config show`)", _validate)
    shows = config.add_subparsers(title="verbs", metavar="VERB", required=True)
    show_words = "print the configuration as YAML, with the source of each value that is no default"
    show = shows.add_parser("show", help=show_words, description=_sentence(show_words), allow_abbrev=False)
    show.set_defaults(run=_config_show, prog=show.prog)
    show.add_argument("--effective", action="store_true", help="all values, defaults included")
    add_config(show, optional=True)
    add_json(show)
    _add_keys(add)
    return parser


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


class _AddVerb(Protocol):
    """Makes the parser of one verb."""

    def __call__(self, name: str, what: str, run: _Verb) -> argparse.ArgumentParser: ...


def _add_command(add: _AddVerb, command: _Command, *, is_used: bool) -> None:
    def run(options: argparse.Namespace) -> int:
        code: int = import_module(command.module).run(options)
        return code

    verb = add(command.name, command.words, run)
    verb.set_defaults(run_dir=_run_dir, whole_parser=lambda: _parser([one.name for one in _COMMANDS]))
    if is_used:
        import_module(command.module).add_flags(verb)
        add_json(verb)


def _add_keys(add: _AddVerb) -> None:
    keys = add("keys", "make API keys for the tenants file (`keys new TENANT`)", _keys_new)
    makes = keys.add_subparsers(title="verbs", metavar="VERB", required=True)
    new_words = "make a key; print it once, and the lines for the tenants file, which holds only its hash"
    new = makes.add_parser("new", help=new_words, description=_sentence(new_words), allow_abbrev=False)
    new.set_defaults(run=_keys_new, prog=new.prog)
    new.add_argument("tenant", metavar="TENANT", help="name of the tenant")
    add_json(new)


def _add_plan(add: _AddVerb) -> None:
    plan = add("plan", "find the pools that keep the promise; start nothing, need no GPU", _plan)
    add_config(plan, optional=True)
    add_plan_flags(plan)
    add_json(plan)


def _run_dir() -> Path | None:
    """Find the folder of what runs from this checkout, for packages that know no cluster; None: nothing runs."""
    from cluster.state import StateDir

    record = StateDir.find(os.environ).read()
    return None if record is None else Path(record.run_dir)


def _validate(options: argparse.Namespace) -> int:
    loaded = _load(options)
    config = loaded.config
    notes = _notes(loaded)
    if options.as_json:
        pools = "auto" if config.pools == "auto" else "named"
        _say_json({"ok": True, "config": str(options.config), "pools": pools, "problems": [], "notes": notes})
        return OK
    _say(f"{options.config}: valid")
    _say(f"  model    {config.model.path}")
    for name, promise in config.slo.classes.items():
        share = f"{promise.attainment:.12g} of requests"
        _say(f"  promise  {name}: TTFT {promise.ttft_ms:.12g} ms, TPOT {promise.tpot_ms:.12g} ms for {share}")
    if config.pools == "auto":
        _say("  pools    auto: `up` plans them for the devices that the cluster has; `plan` shows the plan")
    else:
        _say(f"  pools    {config.pools.prefill.replicas} prefill, {config.pools.decode.replicas} decode")
    _say(f"  router   {config.router.host}:{config.router.port}")
    for note in notes:
        _say(f"note: {note}", sys.stderr)
    return OK


def _plan(options: argparse.Namespace) -> int:
    config = _load(options).config
    from sim.plan_command import Output, run

    output = Output(sys.stdout, sys.stderr, as_json=options.as_json, write=options.write)
    return run(config, options.config, plan_flags(options), output)


def _plan_pools(config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
    """Plan when `up` asks for it, so that `up` with named pools never loads the planner."""
    from sim.plan_command import plan_pools

    return plan_pools(config, inventory, check=check)


def _up(options: argparse.Namespace) -> int:
    if options.model is not None:
        # JSON text is YAML text: whatever the name holds, it stays text. --set still wins over --model.
        options.overrides.insert(0, f"model.path={json.dumps(options.model, ensure_ascii=False)}")
    loaded = _load(options)
    from cluster import commands
    from sim.live_decider import live_decider

    return commands.up(
        loaded.config,
        config_path=options.config,
        foreground=options.foreground,
        as_json=options.as_json,
        planner=_plan_pools,
        decider=live_decider,
    )


def _status(options: argparse.Namespace) -> int:
    from cluster import commands

    return commands.status(as_json=options.as_json)


def _doctor(options: argparse.Namespace) -> int:
    from cluster import doctor

    return doctor.run(as_json=options.as_json)


def _down(options: argparse.Namespace) -> int:
    from cluster import commands

    return commands.down(as_json=options.as_json)


def _config_show(options: argparse.Namespace) -> int:
    from core.config.show import effective_values, given_values, to_yaml

    loaded = _load(options)
    values = effective_values(loaded) if options.effective else given_values(loaded)
    if options.as_json:
        _say_json(values)
    else:
        _say(to_yaml(values, loaded.tree).rstrip("\n"))
    return OK


def _keys_new(options: argparse.Namespace) -> int:
    from router.keys import new_key

    made = new_key(options.tenant)
    if options.as_json:
        _say_json({"tenant": made.tenant, "key": made.key, "sha256": made.sha256})
    else:
        _say("\n".join(made.lines()))
    return OK


def _load(options: argparse.Namespace) -> LoadedConfig:
    from core.config.load import load_with_sources

    return load_with_sources(options.config, overrides=options.overrides, environ=os.environ)


def _notes(loaded: LoadedConfig) -> list[str]:
    """List what is odd but may be right on another machine."""
    from core.config.model_files import looks_like_folder, model_location

    named = [("model.path", loaded.config.model.path)]
    named += [(f"model.lora[{i}].path", adapter.path) for i, adapter in enumerate(loaded.config.model.lora)]
    return [
        f"{key}: there is no folder {path} here; that is right only if the workers' machines have it"
        for key, path in named
        if looks_like_folder(path) and model_location(path) == path and not os.path.isdir(path)
    ]


def _fail_for(exc: BatonError, code: int, *, as_json: bool) -> int:
    """Report a deliberate error, with its stack trace if BATON_DEBUG asks for it."""
    if os.environ.get("BATON_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(exc)
    problems: list[dict[str, str | None]] = []
    for problem in getattr(exc, "problems", ()):
        problems.append({field: getattr(problem, field) for field in problem.__dataclass_fields__})
    return _fail(exc.name, str(exc) or exc.name, code, as_json=as_json, problems=problems)


def _fail(name: str, message: str, code: int, *, as_json: bool, problems: Sequence[dict[str, str | None]] = ()) -> int:
    if as_json:
        _say_json({"ok": False, "error": name, "message": message, "problems": list(problems)})
    else:
        _say(f"error: {message}", sys.stderr)
    return code


def _say(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    # Arguments and file names that are no UTF-8 hold characters that no stream can write.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _say_json(value: object) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
