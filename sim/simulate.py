"""The search gear: one workload through one cluster, routed by compiled rules. See sim.policy_gear for the other."""

from __future__ import annotations

from typing import Final

import numpy as np

from sim.cluster import ClusterSpec
from sim.entries import compile_together
from sim.kernel.outages import push_outage
from sim.kernel.run import run_all
from sim.kernel.state import HELD, MAX_QUEUE, NOBODY, PREEMPTIONS, STEPS, State, make_state
from sim.outcome import End, Outcome, Target
from sim.workload import Workload

FOREVER_S: Final = 1e300


def simulate(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
    """Run the workload through the cluster with the compiled routing rules of `cluster.routing`.

    Equal arguments give equal outcomes. `seed` moves only Rule.RANDOM. Targets are what slack order and admission
    look at; no rule looks at output lengths.
    """
    state = start(cluster, workload, targets, seed=seed)
    run_all(state)
    return outcome_of(cluster, state)


def start(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> State:
    """Make the state at time 0, outages to come included."""
    state = make_state(cluster, workload, targets, seed=seed)
    compile_together(state)
    for outage in cluster.outages:
        push_outage(state, outage.worker, float(outage.from_s), float(outage.until_s))
    return state


def outcome_of(cluster: ClusterSpec, state: State) -> Outcome:
    """Read what became of every request when all events have happened."""
    reqs = state.reqs
    done = reqs.end == End.DONE
    end = reqs.end.copy()
    end[reqs.stage == HELD] = End.UNSERVED
    handed_over = (reqs.prefill_on != NOBODY) & done
    overhead_s = cluster.request_overhead_s + cluster.handover_overhead_s * handed_over
    first_s, last_s = np.where(done, reqs.first_s, 0.0), np.where(done, reqs.last_s, 0.0)
    return Outcome(
        arrived_s=reqs.arrived,
        ttft_s=np.where(done, first_s - reqs.arrived + overhead_s, np.inf),
        tpot_s=np.where(done, (last_s - first_s) / np.maximum(1, reqs.made - 1), np.inf),
        e2e_s=np.where(done, last_s - reqs.arrived + overhead_s, np.inf),
        max_itl_s=np.where(done, reqs.max_itl, np.inf),
        end=end,
        prefill_worker=reqs.prefill_on.astype(np.int32),
        decode_worker=reqs.decode_on.astype(np.int32),
        slo_class=reqs.slo,
        num_preemptions=int(state.counts[PREEMPTIONS]),
        num_steps=int(state.counts[STEPS]),
        blocks_held=int(state.workers.used_blocks.sum()),
        max_queue=int(state.counts[MAX_QUEUE]),
        makespan_s=float(reqs.last_s[done].max() - reqs.arrived[0]) if done.any() else 0.0,
    )
