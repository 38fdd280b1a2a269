"""The environment of the peers that come as wheels: NIXL and Mooncake.

Owns their versions. numpy and torch are those of the environment that runs the benchmark: NIXL's wheel would bring
several GB of torch and CUDA, of which nothing is used here.
"""

from __future__ import annotations

import site
from pathlib import Path
from typing import Final

from bench.peers_venv import install_peers

REQUIREMENTS: Final = ("nixl==1.5.1", "nixl-cu12==1.5.1", "mooncake-transfer-engine-non-cuda==0.3.13")


def install(folder: Path) -> Path:
    """Install the peers unless they are there; see install_peers. Raises PeersMissing."""
    return install_peers(folder, REQUIREMENTS, below=site.getsitepackages())
