"""What `baton simulate` answers: the recorded past again, and what it would have been with something changed.

Owns the flags and where the recording is found. Must not know how any of it is simulated or worded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from core.errors import ConfigError, NotRunning
from core.latency.profile import read_profile
from sim.past import case_of, changed, changes_of
from sim.past_report import as_fields, error_line, happened, lines_of, replay_error, simulated
from sim.recording import Recording, read_recording

LIVE: Final = "live"
FILE_NAME: Final = "traffic.jsonl"  # the default of router.record
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPILOG: Final = """\
examples:
  python baton.py simulate                                  the past as it was: how far can this be trusted?
  python baton.py simulate --last 30m --set decode=3        with three decode workers
  python baton.py simulate --slo interactive.ttft_ms=300    with another promise
  python baton.py simulate --kill prefill-1 --traffic 1.5   one worker less, half as much traffic again
  python baton.py simulate --from traffic.jsonl --set policy=least-loaded
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `simulate`."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--from",
        dest="source",
        metavar="live|FILE",
        default=LIVE,
        help="the recording: of what runs from this checkout (default), or a file that router.record wrote",
    )
    parser.add_argument("--last", metavar="TIME", help="only the end of it, e.g. 30m, 2h, 90s (default: all)")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="prefill, decode (workers), chunk (tokens of a step), seqs, whole_below (tokens), policy; may be repeated",
    )
    parser.add_argument(
        "--slo",
        dest="promises",
        metavar="CLASS.KEY=VALUE",
        action="append",
        default=[],
        help="another promise, e.g. interactive.ttft_ms=300; also tpot_ms, attainment; may be repeated",
    )
    parser.add_argument(
        "--kill",
        dest="killed",
        metavar="WORKER",
        action="append",
        default=[],
        help="without this worker; may be repeated",
    )
    parser.add_argument("--traffic", metavar="FACTOR", type=float, default=1.0, help="so many times the recorded rate")
    parser.add_argument(
        "--profile", metavar="FILE", type=Path, help="costs of steps, in place of those that were learnt"
    )
    parser.add_argument("--price", metavar="PER_HOUR", type=float, help="price of one device for an hour")


def run(options: argparse.Namespace) -> int:
    """Do `baton simulate`; return 0.

    Raises ConfigError for flags and files that cannot be used, NotRunning when no file is named and nothing runs.
    """
    changes = changes_of(options.settings, options.promises, options.killed, traffic=options.traffic)
    recording = _recording(options.source, options.last, options.run_dir)
    past = case_of(recording, None if options.profile is None else read_profile(options.profile))
    other = None if changes.are_none else changed(past, changes)
    _say_if_compiling()
    outcome = past.run()
    columns = [("happened", happened(recording, past)), ("simulated", simulated(recording, past, outcome))]
    if other is not None:
        columns.append(("what if", simulated(recording, other, other.run())))
    error = replay_error(recording, past, outcome)
    if options.as_json:
        told = {name.replace(" ", "_"): as_fields(telling) for name, telling in columns}
        wrong = None if error is None else {name: getattr(error, name) for name in error.__dataclass_fields__}
        span = {"from_s": recording.from_s, "until_s": recording.until_s, "requests": len(recording.requests)}
        text = json.dumps({**span, **told, "replay_error": wrong, "note": error_line(error)}, indent=2)
    else:
        text = "\n".join((_headline(recording), "", *lines_of(columns, error, price_per_hour=options.price)))
    sys.stdout.write(text + "\n")
    return 0


def _recording(source: str, last: str | None, run_dir: Callable[[], Path | None]) -> Recording:
    if source == LIVE:
        folder = run_dir()
        if folder is None:
            raise NotRunning("nothing runs from this checkout; name a recording with --from FILE")
        path = folder / FILE_NAME
        if not path.is_file():
            raise ConfigError(
                f"{path}: there is no recording; let router.record be {FILE_NAME} and serve requests, or name a file "
                "with --from"
            )
    else:
        path = Path(source)
    found = read_recording(path)
    return found if last is None else found.last(_seconds(last))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(f"--last {text}: write a number and a unit of s, m, h, d, e.g. 30m")
    return seconds


def _headline(recording: Recording) -> str:
    span_s = recording.until_s - recording.from_s
    span = f"{span_s / 60:.0f} minutes" if span_s >= 120 else f"{span_s:.0f} s"
    guessed = sum(request.is_guessed for request in recording.requests)
    workers = ", ".join(worker.worker_id for worker in recording.workers())
    text = f"{len(recording.requests):,} requests in {span} on {workers}, policy {recording.setting.policy}"
    if guessed:
        text += (
            f"\n{guessed:,} of them were not answered: their outputs are taken to be as long as others of their class"
        )
    return text


def _say_if_compiling() -> None:
    """The simulator is compiled by the first run after a change of it, which people should not take for hanging."""
    from sim.kernel import compiled

    if compiled.CACHE is None or not any(compiled.CACHE.rglob("*.nbc")):
        sys.stderr.write("compiling the simulator, once: about half a minute\n")
        sys.stderr.flush()
