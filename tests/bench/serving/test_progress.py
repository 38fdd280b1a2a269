"""A terminal is told how a run goes, and nothing else is."""

from __future__ import annotations

import io
from dataclasses import replace

from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import endpoint
from bench.serving.load_run import LoadRun
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import Targets
from bench.serving.progress import Progress, line
from bench.serving.session import BenchSpec, opened
from bench.serving.timing import Timing
from tests.support.bench_answers import answered
from tests.support.http_mocks import mock_server

TARGETS = {"": Targets(200, 50)}
SPEC = BenchSpec(DatasetSpec(num_requests=40, input_tokens=8, output_tokens=3), LoadShape(rate=40), targets=TARGETS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def run(stream: io.StringIO) -> LoadRun:
    loads: list[LoadRun] = []
    async with mock_server() as mock, opened(endpoint(mock.url)) as session, Progress(stream, TARGETS) as progress:

        def watch(load: LoadRun) -> None:
            loads.append(load)
            progress(load)

        await session.run(replace(SPEC), watch=watch)
    return loads[0]


async def test_a_terminal_gets_one_line_that_is_taken_away_at_the_end() -> None:
    terminal = Terminal()
    await run(terminal)
    text = terminal.getvalue()
    assert "in flight" in text
    assert "attainment" in text
    assert "\n" not in text
    assert text.endswith("\r")


async def test_a_file_gets_nothing() -> None:
    file = io.StringIO()
    load = await run(file)
    assert file.getvalue() == ""
    load.live.ended[:] = [answered(0.0, 0.1), answered(0.0, 0.3), Timing(0.0, error="x")]
    text = line(load, TARGETS)
    for words in ("[..........] 3/40", "TTFT 200 ms", "TPOT 10.0 ms", "attainment 33%", "1 of the last 3 failed"):
        assert words in text
