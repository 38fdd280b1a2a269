"""`baton submit`: start Baton on a Ray cluster from another machine, as a job of Ray's.

Owns what is sent (the configuration, nothing else), the job's command line and the wait until it serves. The cluster's
nodes have Baton already: by a `ray up` file of deploy/ray, by the container, or by hand. What runs there is
`baton up --foreground`, so the job's end is Baton's, and stopping the job drains it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.console import Console
from core.command_flags import add_config
from core.errors import ConfigError, StartFailed

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

OK: Final = 0
ADDRESS_VARIABLE: Final = "RAY_API_SERVER_ADDRESS"  # as Ray's own `ray job` knows it
DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
POLL_S: Final = 1.0
STOP_S: Final = 120.0  # for `up` to drain; Ray kills a job three seconds after it is told to stop unless told otherwise
SERVES: Final = "requests are served"  # in the log once the router is ready
_CONFIG: Final = "slo.yaml"
_START: Final = "start.sh"
# Nodes run Ray with the checkout on PYTHONPATH, and Baton's environment in it; `python` there may be the system's.
_START_SCRIPT: Final = """\
IFS=:
for folder in $PYTHONPATH; do
  python="$folder/.venv/bin/python"
  [ -f "$folder/baton.py" ] && [ -x "$python" ] && exec "$python" -m baton "$@"
done
echo "No Baton on the head: start its Ray with the checkout on PYTHONPATH, or name Baton's interpreter by --python."
exit 2
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `submit`."""
    add_config(parser, optional=True)
    address = f"the cluster's job server (default: {ADDRESS_VARIABLE}, else {DEFAULT_ADDRESS})"
    parser.add_argument("--address", metavar="URL", help=address)
    parser.add_argument("--python", metavar="PATH", help="interpreter on the head (default: that of its checkout)")
    parser.add_argument("--timeout", metavar="S", type=float, default=1800.0, help="to wait until it serves (1800)")
    parser.add_argument("--stop", metavar="JOB", help="end this job instead: drains and stops what it started")


def run(options: argparse.Namespace) -> int:
    """Do `baton submit`; return 0 once requests are served, or the job to stop has ended.

    Raises ConfigError when no job server answers or the file cannot be read, StartFailed when the job ends or does not
    serve in time; a job that does not serve in time goes on.
    """
    console = Console(as_json=options.as_json)
    client = connect(options.address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
    if options.stop:
        end = stop(client, options.stop)
        console.line(f"job {options.stop}: {end}")
        console.result({"ok": True, "job": options.stop, "status": end})
        return OK
    start = [options.python, "-m", "baton"] if options.python else ["sh", _START]
    command = shlex.join([*start, "up", _CONFIG, "--foreground", *_set_flags(options.overrides)])
    job = submit(client, options.config, f"exec {command}")
    console.stage("submitted", f"job {job} at {client.get_address()}")
    follow(client, job, console, timeout_s=options.timeout)
    console.block([f"Stop it with: python baton.py submit --stop {job}"])
    console.result({"ok": True, "job": job})
    return OK


def connect(address: str) -> JobSubmissionClient:
    """Reach a cluster's job server. Raises ConfigError when none answers at `address`."""
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # they tell of each file they pack
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        reason = str(exc).splitlines()[0]
        remedy = "forward it with `ray dashboard CLUSTER.yaml` or `kubectl port-forward`, and name it with --address"
        raise ConfigError(f"--address: no job server of Ray answers at {address}: {reason}\n  {remedy}") from exc


def submit(client: JobSubmissionClient, config: Path, entrypoint: str) -> str:
    """Send the configuration and start the job; return its id. Raises ConfigError for a file that cannot be read."""
    with tempfile.TemporaryDirectory(prefix="baton-submit-") as folder:
        try:
            shutil.copyfile(config, Path(folder) / _CONFIG)
        except OSError as exc:
            raise ConfigError(f"CONFIG: {config} cannot be read: {exc.strerror}") from exc
        (Path(folder) / _START).write_text(_START_SCRIPT)
        environment = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_S:g}"}}
        job: str = client.submit_job(entrypoint=entrypoint, runtime_env=environment, metadata={"name": "baton"})
        return job


def follow(client: JobSubmissionClient, job: str, console: Console, *, timeout_s: float) -> None:
    """Show the job's lines until requests are served. Raises StartFailed."""
    deadline_s = time.monotonic() + timeout_s
    num_shown, serves = 0, False
    while True:
        status = client.get_job_status(job)
        lines = client.get_job_logs(job).splitlines()
        for line in lines[num_shown:]:
            console.line(line)
        num_shown = len(lines)
        if serves:  # since the look before, so that all which `up` says of it is there
            return
        serves = any(SERVES in line for line in lines)
        if status.is_terminal():
            raise StartFailed(f"job {job} ended before it served: {status.value}")
        if time.monotonic() > deadline_s:
            raise StartFailed(f"job {job} does not serve after {timeout_s:g} s; it goes on. `ray job logs {job}`")
        time.sleep(POLL_S)


def stop(client: JobSubmissionClient, job: str) -> str:
    """End a job and wait until it has drained; return its last status. Raises ConfigError for one unknown there."""
    try:
        client.stop_job(job)
    except RuntimeError as exc:
        raise ConfigError(f"--stop: {job}: {str(exc).splitlines()[0]}") from exc
    deadline_s = time.monotonic() + STOP_S + POLL_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline_s:
            raise StartFailed(f"job {job} did not end in {STOP_S:g} s")
        time.sleep(POLL_S)
    return str(status.value)


def _set_flags(overrides: list[str]) -> list[str]:
    return [word for value in overrides for word in ("--set", value)]
