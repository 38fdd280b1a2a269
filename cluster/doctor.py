"""The command `doctor`: asks every worker of the running cluster for its ledger, leases and transports.

Owns where the workers and the cluster's token are found, and the exit code: 0 all is well, 1 something is wrong or
nothing runs. Judging is cluster.kv_diagnosis's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cluster.cluster_status import MemberStatus
from cluster.commands import NOT_SERVING, OK, controller_status
from cluster.console import Console
from cluster.front import front_of
from cluster.kv_diagnosis import RankAnswer, findings, of_self_tests, page
from cluster.router_probe import ask_pairs
from cluster.state import StateDir
from core.component_tls import ComponentTLS, tls_from_json
from core.errors import BatonError, StartFailed
from kv_transfer.control import KVControlClient

ASK_S: Final = 5.0
_SIMULATED: Final = "simulated:"  # scheme of the KV address of an engine that hands nothing over


def run(*, as_json: bool) -> int:
    """Print what the hand-overs are doing, what is wrong and what to do about it. Raises BatonError without a token."""
    console = Console(as_json=as_json)
    state = StateDir.find(os.environ)
    record = state.read()
    problem = f"nothing runs (no record in {state.path})"
    try:
        members = None if record is None else controller_status(record).members
    except StartFailed as exc:
        members, problem = None, f"nothing runs any more: {exc}; `down` clears what is left"
    if record is None or members is None:
        console.line(problem)
        console.result({"ok": False, "error": "not_running", "message": problem})
        return NOT_SERVING
    run_dir = Path(record.run_dir)
    answers = asyncio.run(ask(members, read_token(run_dir), read_tls(run_dir)))
    found = findings(answers)
    if record.url:
        found += of_self_tests(ask_pairs(front_of(record.url, run_dir)))
    console.block(page(answers, found))
    console.result(
        {
            "ok": not found,
            "findings": [asdict(finding) for finding in found],
            "workers": [
                {"name": answer.member.name, "kv_address": answer.address, "problem": answer.problem}
                | {"stats": answer.stats}
                for answer in answers
            ],
        }
    )
    return NOT_SERVING if found else OK


async def ask(members: Sequence[MemberStatus], token: str, tls: ComponentTLS | None = None) -> list[RankAnswer]:
    """Ask the KV endpoints of all workers at once, one for each engine rank; ask nothing of those that hand nothing."""
    asking = []
    for member in members:
        if member.role is None:
            continue
        can_answer = member.state == "ready" and not member.kv_address.startswith(_SIMULATED)
        addresses = member.kv_address.split(",") if can_answer else [""]
        asking += [_ask_rank(member, address, token, tls) for address in addresses]
    return await asyncio.gather(*asking)


async def _ask_rank(member: MemberStatus, address: str, token: str, tls: ComponentTLS | None) -> RankAnswer:
    if not address:
        return RankAnswer(member, "")
    client = KVControlClient(address, token, tls=tls, timeout_s=ASK_S)
    try:
        return RankAnswer(member, address, await client.stats())
    except BatonError as exc:
        return RankAnswer(member, address, problem=str(exc))
    finally:
        await client.close()


def read_token(run_dir: Path) -> str:
    """Read the cluster's token from what the router was told. Raises BatonError where that cannot be read."""
    return str(_told(run_dir, "token"))


def read_tls(run_dir: Path) -> ComponentTLS | None:
    """Read likewise where the certificates of components lie; None: there are none."""
    return tls_from_json(_told(run_dir, "tls"))


def _told(run_dir: Path, name: str) -> Any:
    file = run_dir / "router.spec.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError) as exc:
        raise BatonError(
            f"the cluster's token cannot be read from {file} ({exc}); run `doctor` as the user, and on the machine, "
            "that ran `up`"
        ) from exc
