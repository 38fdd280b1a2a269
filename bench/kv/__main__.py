"""`python -m bench.kv [sizes|overlap|all]`: the hand-over beside memcpy, sockets and peers; its tail behind a prefill.

Owns the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.kv.cache import BLOCK_TOKENS
from bench.kv.compare import PEERS_FOLDER, SIZES, Comparison, Plan
from bench.kv.figures import Results, verdicts
from bench.kv.report import report
from bench.kv.systems import PEERS, TRANSPORTS


def main(words: Sequence[str]) -> int:
    """Run what was asked for; a peer that does not run is noted, never an error."""
    arguments = _parser().parse_args(words)
    plan = Plan(
        sizes=sorted(set(arguments.sizes)),
        rounds=arguments.rounds,
        transports=arguments.transports,
        peers=arguments.peers,
        peers_folder=arguments.peers_venv,
        calm_s=arguments.calm,
        repeats=arguments.repeats,
    )
    comparison = Comparison(plan)
    taken = list(comparison.sizes()) if arguments.what in ("sizes", "all") else []
    taken += comparison.overlap() if arguments.what in ("overlap", "all") else []
    results = Results(taken)
    if arguments.json is not None:
        judged = [asdict(verdict) for verdict in verdicts(results)]
        record = {"taken": [asdict(each) for each in taken], "verdicts": judged, "notes": comparison.notes}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    for line in report(results, rounds=plan.rounds, notes=comparison.notes):
        sys.stdout.write(line + "\n")
    return 0 if taken else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.kv", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("sizes", "overlap", "all"), default="all")
    parser.add_argument("--sizes", nargs="+", type=_tokens, default=SIZES, help="tokens; multiples of 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transports", nargs="*", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), default=tuple(PEERS), help="none: leave them out")
    parser.add_argument("--peers-venv", type=Path, default=PEERS_FOLDER, help="where NIXL and Mooncake are installed")
    parser.add_argument("--calm", type=float, default=0.0, help="seconds that a pair may wait for an idle machine")
    parser.add_argument("--repeats", type=int, help="moves of each size in a round, instead of 30 to 1 by size")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser


def _tokens(word: str) -> int:
    tokens = int(word)
    if tokens <= 0 or tokens % BLOCK_TOKENS:
        raise argparse.ArgumentTypeError(f"{word} tokens are not whole blocks; give multiples of {BLOCK_TOKENS}")
    return tokens


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
