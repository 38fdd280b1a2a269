"""What is measured of an engine that follows a known cost is that cost, with the overheads it has."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.core_wait import CoreTimes
from bench.engine_process import Call, EngineFacts
from bench.profile_engine import SHARED_CORES_ERROR, Driver, Effort, at_mean, kv_bytes_per_token, measure, profile_of
from core.errors import EngineFailed
from core.latency.step import Step, StepCost, Table, attention_pairs
from core.types import Role
from core.worker_spec import EngineSpec, WorkerSpec
from engine.measured_engine import CallTimes
from engine.step_clock import TracedStep

TRUTH = StepCost(Table.line(2e-3, 1e-4), Table.constant(1e-8), Table.line(3e-3, 1e-4), Table.constant(1e-6))
OVERHEAD_S = 4e-3
HANDOVER_S = 7e-3
EFFORT = Effort(rounds=2, round_s=20.0)


class CostedEngine:
    """Runs a batch as vLLM would if every call came at once: prompts in one step each, then decode steps."""

    def __init__(self, role: Role, model: Path, *, kv_address: str = "", tensor_parallel: int = 1) -> None:
        engine_spec = EngineSpec(
            "vllm", str(model), "m", max_num_seqs=32, kv_cache_bytes=1 << 20, tensor_parallel=tensor_parallel
        )
        self.spec = WorkerSpec(f"{role}-0", role, 1, "127.0.0.1", "/nowhere", engine_spec)
        self.facts = EngineFacts("vllm 0", 4096, 32, 2000, kv_address, "float32", "auto")
        self.recomputes = False
        self.is_killed = threading.Event()
        self._steps: list[TracedStep] = []
        self._times: list[CallTimes] = []
        self._now_s = 1e9  # far ahead of the real clock: all steps are after the warm-up
        self._cached: list[list[int]] = []

    def core_times(self) -> CoreTimes:
        return CoreTimes(3.0 * len(self._steps), 1.0 * len(self._steps))

    def steps(self) -> list[TracedStep]:
        return list(self._steps)

    def begin(self, calls: Sequence[Call]) -> None:
        sent_s = self._now_s
        overhead_s, context = OVERHEAD_S, []
        for call in calls:
            prompt, params = call.body["prompt"], call.body.get("kv_transfer_params", {})
            if "do_remote_prefill" in params and not self.recomputes:
                # What prefill does meanwhile, as the client of decode sees it.
                overhead_s += HANDOVER_S + TRUTH.prefill_s(len(prompt))
                self._now_s += overhead_s
            else:
                cached = max((len(c) for c in self._cached if prompt[: len(c)] == c), default=0)
                new = len(prompt) - cached
                self._step(Step(new, 1, attention_pairs(new, cached)))
                self._cached.append(prompt)
            context.append(len(prompt))
        first_s = self._now_s + (0.0 if overhead_s > OVERHEAD_S else OVERHEAD_S)
        outputs = [call.body["max_tokens"] for call in calls]
        for done in range(1 if overhead_s == OVERHEAD_S else 0, max(outputs)):
            live = [length + done for length, out in zip(context, outputs, strict=True) if out > done]
            self._step(Step(decode_seqs=len(live), context_tokens=sum(live)))
            if done == 0:
                first_s = self._now_s
        self._times = [CallTimes(sent_s, first_s, self._now_s, 200)] * len(calls)

    def finish(self) -> list[CallTimes]:
        return self._times

    def run(self, calls: Sequence[Call]) -> list[CallTimes]:
        self.begin(calls)
        return self.finish()

    def kill(self) -> None:
        self.is_killed.set()

    def _step(self, step: Step) -> None:
        began_s = self._now_s
        self._now_s += TRUTH.seconds(step)
        self._steps.append(TracedStep(began_s, self._now_s, step))


@pytest.fixture
def pair(tmp_path: Path) -> list[CostedEngine]:
    return [CostedEngine(role, tmp_path, kv_address="127.0.0.1:1") for role in Role]


def test_the_profile_finds_the_cost_and_the_overheads(pair: list[CostedEngine]) -> None:
    said: list[str] = []
    groups = [measure(pair, EFFORT, said.append)]
    profile = profile_of(groups, model="m", device="d")
    cost = profile.shape(1).cost
    for tokens in (20, 700, 1900):
        assert cost.prefill_s(tokens) == pytest.approx(TRUTH.prefill_s(tokens), rel=0.03)
    for seqs, context in ((1, 100), (12, 9000), (30, 4000)):
        assert cost.decode_s(seqs, context) == pytest.approx(TRUTH.decode_s(seqs, context), rel=0.03)
    assert profile.request_overhead_s == pytest.approx(OVERHEAD_S, rel=0.01)
    # Beyond a request served whole: that one's overhead is part of both.
    assert profile.handover_overhead_s == pytest.approx(HANDOVER_S, rel=0.01)
    assert profile.shape(1).prefill_error < 0.1
    on_cpu = profile_of(groups, model="m", device="cpu-x-1-core")
    assert SHARED_CORES_ERROR <= on_cpu.shape(1).prefill_error < 0.15
    assert profile.kv_bytes_per_token == (1 << 20) // (2000 * 32)
    assert len(profile.shapes) == 1
    assert profile.source.endswith("which waited for cores 25% of their time")
    assert [words.partition(":")[0] for words in said[:2]] == ["round 1 of 2", "round 2 of 2"]


def test_engines_of_unlike_sizes_are_unlike_shapes(tmp_path: Path) -> None:
    engines = [CostedEngine(role, tmp_path, tensor_parallel=size) for role, size in zip(Role, (2, 1), strict=True)]
    profile = profile_of([measure(engines, EFFORT, lambda words: None)], model="m", device="d")
    assert [(shape.tensor_parallel, shape.pipeline_parallel) for shape in profile.shapes] == [(1, 1), (2, 1)]
    assert profile.handover_overhead_s == 0.0  # these hand nothing over


def test_a_hand_over_that_is_computed_again_is_no_measurement(pair: list[CostedEngine]) -> None:
    pair[1].recomputes = True
    with pytest.raises(EngineFailed, match="computed again"):
        measure(pair, EFFORT, lambda words: None)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_engine_that_fails_ends_the_others(pair: list[CostedEngine], failing: int) -> None:
    def fail(calls: Sequence[Call]) -> None:
        raise EngineFailed("out of memory")

    def compute_for_ever(calls: Sequence[Call]) -> None:
        assert waiting.is_killed.wait(20.0), "nobody ended it"
        raise EngineFailed("killed")

    waiting = pair[1 - failing]
    pair[failing].begin, waiting.begin = fail, compute_for_ever
    with pytest.raises(EngineFailed, match="out of memory"):
        measure(pair, EFFORT, lambda words: None)
    assert pair[failing].is_killed.is_set()


def test_the_warm_up_does_not_count(pair: list[CostedEngine]) -> None:
    driver = Driver(pair[0], seed=0)
    driver.prepare(EFFORT)
    assert pair[0].steps()
    driver.finish()
    assert driver.steps == ()


def test_an_engine_of_few_tokens_and_sequences_is_measured_too(tmp_path: Path) -> None:
    engine = CostedEngine(Role.DECODE, tmp_path)
    engine.facts = replace(engine.facts, max_model_len=128, num_kv_blocks=40)
    engine.spec = replace(engine.spec, engine=replace(engine.spec.engine, max_num_seqs=2, max_num_batched_tokens=128))
    profile = profile_of([measure([engine], EFFORT, lambda words: None)], model="m", device="d")
    assert profile.shape(1).cost.prefill_s(50) == pytest.approx(TRUTH.prefill_s(50), rel=0.03)
    assert all(each.step.decode_seqs <= 2 for each in engine.steps())


def test_loads_come_in_another_order_each_round(pair: list[CostedEngine]) -> None:
    driver = Driver(pair[0], seed=0)
    driver.prepare(EFFORT)
    rounds = []
    for _ in range(2):
        before = len(pair[0].steps())
        driver.run_round(60.0)
        rounds.append([each.step.prefill_tokens for each in pair[0].steps()[before:]])
    assert rounds[0] != rounds[1]
    assert sorted(rounds[0]) == sorted(rounds[1])


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_kv_bytes_are_those_of_the_models_file(tmp_path: Path, dtype: str, size: int) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,'
        ' "hidden_size": 64, "head_dim": 16}'
    )
    engine = CostedEngine(Role.DECODE, tmp_path)
    engine.facts = EngineFacts("vllm 0", 4096, 32, 2000, "", dtype, "auto")
    assert kv_bytes_per_token(engine) == 3 * 2 * 2 * 16 * size


def test_kv_bytes_of_an_unknown_model_and_cache_are_unknown(tmp_path: Path) -> None:
    engine = SimpleNamespace(
        spec=SimpleNamespace(engine=EngineSpec("vllm", str(tmp_path), "m")),
        facts=EngineFacts("vllm 0", 4096, 32, 2000, "", "float32", "auto"),
    )
    assert kv_bytes_per_token(engine) == 0


def test_a_round_out_of_time_is_cut(pair: list[CostedEngine]) -> None:
    driver = Driver(pair[0], seed=0)
    driver.prepare(EFFORT)
    before = len(pair[0].steps())
    driver.run_round(-1.0)
    assert len(pair[0].steps()) == before


def test_the_steps_of_a_profile_add_up_to_the_time_they_took() -> None:
    prompt, output = Step(100, 1, attention_pairs(100)), Step(decode_seqs=2, context_tokens=50)
    typical = {step: TRUTH.seconds(step) for step in (prompt, output)}
    # Of three decode steps one takes twice as long; of two prompts none.
    steps = [(prompt, typical[prompt])] * 2 + [(output, typical[output])] * 2 + [(output, 2 * typical[output])]
    cost = at_mean(TRUTH, steps)
    assert cost.seconds(prompt) == pytest.approx(typical[prompt])
    assert cost.seconds(output) == pytest.approx(typical[output] * 4 / 3)


def test_a_step_held_up_for_long_does_not_count_in_full() -> None:
    output = Step(decode_seqs=2, context_tokens=50)
    usual_s = TRUTH.seconds(output)
    cost = at_mean(TRUTH, [(output, usual_s), (output, 1000 * usual_s)])
    assert cost.seconds(output) == pytest.approx(usual_s * (1 + 3) / 2)
    assert cost.prefill_s(100) == TRUTH.prefill_s(100)  # none was measured
