"""One endpoint under benchmark: its model, prompts of its tokens, warm-up, and runs.

Owns the order of these. Must not know flags or wording.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench.serving.connection import ConnectionPool
from bench.serving.datasets import DatasetSpec, Source, make_source
from bench.serving.endpoint import Endpoint
from bench.serving.interruption import ended_by_ctrl_c
from bench.serving.load_run import Live, LoadRun, Run, RunOptions
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import PERCENTILES, ClassTargets, measure
from bench.serving.openai_requests import (
    Api,
    ApiRequests,
    ServedModel,
    local_counter,
    served_model,
    server_counter,
)
from bench.serving.prompt_text import Vocabulary, learn_vocabulary
from bench.serving.result import BenchResult, Json
from bench.serving.stages import stage_totals, stages_between
from core.errors import ConfigError

OPENAI, OPENAI_CHAT = "openai", "openai-chat"  # backends, by vLLM's names
Watch = Callable[[LoadRun], None]
_WARM_UP_CLIENTS: Final = 8


@dataclass(frozen=True, slots=True)
class BenchSpec:
    """All that one benchmark is, but the endpoint."""

    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    shape: LoadShape = field(default_factory=LoadShape)
    options: RunOptions = field(default_factory=RunOptions)
    targets: ClassTargets = field(default_factory=dict)
    is_chat: bool = False
    model: str | None = None  # None: the first that the endpoint names
    tokenizer: Path | None = None
    temperature: float | None = 0.0
    ignore_eos: bool | None = None  # None: where lengths are made up
    extra_body: Mapping[str, object] = field(default_factory=dict)
    explains: bool = False
    num_warmups: int = 0
    warm_up_s: float = 0.0
    percentiles: tuple[float, ...] = PERCENTILES
    label: str = ""


class Session:
    """Runs benchmarks against one endpoint; made by `opened`."""

    def __init__(self, endpoint: Endpoint, pool: ConnectionPool) -> None:
        self.endpoint = endpoint
        self.pool = pool
        self._models: ServedModel | None = None
        self._vocabularies: dict[tuple[str, bool, Path | None], Vocabulary] = {}

    async def run(
        self,
        spec: BenchSpec,
        *,
        watch: Watch | None = None,
        is_hopeless: Callable[[Live], bool] | None = None,
    ) -> BenchResult:
        """Do one benchmark; Ctrl-C ends it early, with what has ended.

        Raises ConfigError for what the endpoint or the dataset does not have, KeyboardInterrupt when nothing has ended.
        """
        requests, source, api = await self.requests(spec)
        await self.warm_up(requests, spec)
        load = LoadRun(self.pool, requests, spec.shape, spec.options, is_hopeless)
        if watch is not None:
            watch(load)
        before = await stage_totals(self.pool, self.endpoint)
        with ended_by_ctrl_c(load):
            run = await load.run(first=spec.num_warmups)
        if load.is_interrupted and not run.timings:
            raise KeyboardInterrupt
        after = await stage_totals(self.pool, self.endpoint)
        notes = (*source.notes, *self._notes(spec))
        if load.is_interrupted:
            total = len(requests) - spec.num_warmups
            notes = (*notes, f"interrupted: of {total:,} requests, the {len(run.timings):,} that had ended are counted")
        elif load.is_cut:
            notes = (*notes, "stopped early: more requests had missed their targets than the promise allows")
        return BenchResult(
            label=spec.label or self.endpoint.url,
            backend=OPENAI_CHAT if spec.is_chat else OPENAI,
            model=api.model,
            shape=spec.shape,
            metrics=measure(run, spec.targets, percentiles=spec.percentiles, warm_up_s=spec.warm_up_s),
            run=run,
            stages=stages_between(before, after),
            notes=notes,
            settings=_settings(spec),
            is_interrupted=load.is_interrupted,
        )

    async def requests(self, spec: BenchSpec) -> tuple[ApiRequests, Source, Api]:
        """Prepare the requests of a benchmark, those of its warm-up first."""
        api = await self._api(spec)
        dataset = replace(spec.dataset, num_requests=spec.dataset.num_requests + spec.num_warmups)
        if dataset.max_total_tokens is None:
            dataset = replace(dataset, max_total_tokens=(await self.model()).max_model_len)
        source = make_source(dataset, await self.vocabulary(spec, api))
        if len(source) <= spec.num_warmups:
            raise ConfigError(f"the dataset has {len(source)} requests, and the warm-up takes {spec.num_warmups}")
        return ApiRequests(source, self.endpoint, api), source, api

    async def model(self) -> ServedModel:
        """Ask once which model is served."""
        if self._models is None:
            self._models = await served_model(self.pool, self.endpoint)
        return self._models

    async def _api(self, spec: BenchSpec) -> Api:
        made_up = spec.dataset.name not in ("sharegpt", "custom")
        return Api(
            model=spec.model or (await self.model()).name,
            is_chat=spec.is_chat,
            temperature=spec.temperature,
            ignore_eos=made_up if spec.ignore_eos is None else spec.ignore_eos,
            extra_body=spec.extra_body,
            explains=spec.explains,
        )

    async def vocabulary(self, spec: BenchSpec, api: Api) -> Vocabulary:
        """Learn once which words of its tokenizer prompts are made of."""
        key = (api.model, api.is_chat, spec.tokenizer)
        if key not in self._vocabularies:
            by_server = server_counter(self.pool, self.endpoint, api)
            count = local_counter(spec.tokenizer) if spec.tokenizer is not None else by_server
            self._vocabularies[key] = await learn_vocabulary(count)
        return self._vocabularies[key]

    def _notes(self, spec: BenchSpec) -> tuple[str, ...]:
        own = [
            found
            for (_, chat, file), found in self._vocabularies.items()
            if (chat, file) == (spec.is_chat, spec.tokenizer)
        ]
        if all(found.is_exact for found in own):
            return ()
        return ("the tokenizer has few words of one token: prompts are a few tokens off; counts are the server's",)

    async def warm_up(self, requests: ApiRequests, spec: BenchSpec) -> None:
        """Send the first requests, which do not count. Raises ConfigError when none is answered."""
        if spec.num_warmups:
            shape = LoadShape(max_concurrency=min(_WARM_UP_CLIENTS, spec.num_warmups))
            options = replace(spec.options, cancel_share=0.0)
            found = await LoadRun(self.pool, requests, shape, options).run(count=spec.num_warmups)
            _refuse_broken(found)


@asynccontextmanager
async def opened(endpoint: Endpoint) -> AsyncIterator[Session]:
    """Open a session, and close its connections at the end."""
    pool = ConnectionPool(endpoint)
    try:
        yield Session(endpoint, pool)
    finally:
        await pool.close()


def _refuse_broken(run: Run) -> None:
    """Do not measure what answers nothing. Raises ConfigError."""
    errors = [t.error for t in run.timings if t.error and not t.is_refused]
    if errors and len(errors) == len(run.timings):
        raise ConfigError(f"every request of the warm-up failed; the first: {errors[0]}")


def _settings(spec: BenchSpec) -> dict[str, Json]:
    dataset = spec.dataset
    return {
        "dataset_name": dataset.name,
        "dataset_path": str(dataset.path) if dataset.path else None,
        "input_len": dataset.input_tokens if dataset.name == "random" else None,
        "output_len": dataset.output_tokens if dataset.name == "random" else None,
        "cancel_share": spec.options.cancel_share,
        "ramp_up_s": spec.shape.ramp_up_s,
        "num_warmups": spec.num_warmups,
        "seed": spec.options.seed,
    }


def at_rate(spec: BenchSpec, rate: float, *, seconds: float, seed: int | None = None) -> BenchSpec:
    """Make the same benchmark at another rate, of as many requests as are due in `seconds`."""
    seed = spec.options.seed if seed is None else seed
    shape = replace(spec.shape, rate=rate, seconds=None)
    count = max(1, math.ceil(rate * seconds))
    return replace(
        spec,
        dataset=replace(spec.dataset, num_requests=count, seed=seed),
        shape=shape,
        options=replace(spec.options, seed=seed),
    )
