"""The committed stubs are what the sources make, and proto/ stays a folder of sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PROTO = CHECKOUT / "proto"
SOURCES = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))


def test_sources_are_found() -> None:
    assert Path("cluster/pb/worker.proto") in SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_committed_stubs_equal_generated_ones(source: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(PROTO / source)),
        ],
        check=True,
        timeout=60,
    )
    for suffix in ("_pb2.py", "_pb2.pyi"):
        stub = source.with_name(source.stem + suffix)
        assert (tmp_path / stub).read_text() == (CHECKOUT / stub).read_text(), f"{stub} is stale: run `make proto`"


def test_proto_is_no_package() -> None:
    """A `proto` package would shadow proto-plus, which Ray's Google clients import."""
    assert not list(PROTO.rglob("*.py"))
