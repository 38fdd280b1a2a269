"""A scratch folder in which the commands of the pages run as a reader would type them in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.doc_pages import ROOT, Block

BLOCK_S = 240.0  # for one block, on a machine that is busy with other things
_SHOWN = ("baton.py", "deploy", "docs", "bench", "core", "cluster", "router", "sim", "engine", "kv_transfer")
# What pages take for granted: a configuration of the reader's own, and recorded traffic.
_MINE = """\
model: {path: deploy/models/baton-demo}
slo:
  classes:
    interactive: {ttft_ms: 1000, tpot_ms: 100}
"""


@dataclass(frozen=True)
class Shell:
    """Runs blocks in a folder that has what the checkout has, with a state folder of its own."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Shell:
        for name in _SHOWN:
            (folder / name).symlink_to(ROOT / name)
        for place in (folder / ".venv" / "bin", folder / "bin"):
            place.mkdir(parents=True)
            # A link would not find the packages of the environment that this interpreter belongs to.
            python = place / "python"
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
        (folder / "my.yaml").write_text(_MINE)
        (folder / "changed.yaml").write_text(_MINE)
        rows = "".join(f"{i},{200 + 7 * (i % 13)},20\n" for i in range(240))
        (folder / "traffic.csv").write_text("arrived_s,prompt_tokens,output_tokens\n" + rows)
        return cls(folder)

    def run(self, block: Block, *, address: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a block to its end; `address` stands for the router's usual one."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "RAY_"))}
        inherited |= {"BATON_STATE_DIR": str(self.folder / "state"), "OMP_NUM_THREADS": "1"}
        inherited["PATH"] = f"{self.folder / 'bin'}:{inherited['PATH']}"
        text = block.text.replace("127.0.0.1:8000", address) if address else block.text
        return subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            cwd=self.folder,
            env=inherited | environ,
            capture_output=True,
            text=True,
            timeout=BLOCK_S,
            check=False,
        )

    def run_well(self, block: Block, *, address: str = "", **environ: str) -> str:
        """Run a block; return what it printed. Raises AssertionError unless it ended as its mark says."""
        done = self.run(block, address=address, **environ)
        said = f"{block.place} ended with {done.returncode}\n{block.text}\n{done.stdout}\n{done.stderr}"
        assert done.returncode in block.exits, said
        assert "Traceback" not in done.stderr, said
        return done.stdout
