"""The full gear: the router's own policies, object for object, over the engines of the compiled kernel.

Owns the clock of the simulated router: when it decides, decides again and lets time pass. A policy sees each worker's
last frame, as old as `Routing.state_delay_s` says, and what the router has itself in flight (sim.gear_views); it never
sees output lengths. Must not know how engines proceed. What a lost worker held is routed again by the rules of the
search gear.
"""

from __future__ import annotations

import enum
import math
from heapq import heappop, heappush
from itertools import accumulate
from typing import Final

from core.policy.calibration import Calibration
from core.policy.context import ClassTarget, LinkFacts, PolicyContext, PoolFacts
from core.policy.protocol import Policy
from core.policy.registry import policy_named
from core.policy.slack_queue import QueueRules, SlackQueue, Waiting
from core.types import HeldWork, Hold, Rejection, RequestShape, Role, Route
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec
from sim.followed import FollowedForecasts
from sim.gear_views import Views
from sim.kernel.run import advance, advance_to_room
from sim.kernel.state import HELD, NOBODY, ROOM
from sim.outcome import Outcome, Target
from sim.placing import place_and_advance
from sim.prefix_beliefs import PrefixBeliefs
from sim.simulate import FOREVER_S, outcome_of, simulate, start
from sim.workload import Workload

# A request that is held for so long is given up: no client waits for longer (router.request_timeout_s is less).
LONGEST_HOLD_S: Final = 600.0
_NOTHING: Final = HeldWork()
_LEAST_HOLD_S: Final = 1e-3  # a policy that asks to be asked again at once is asked again then


class Refused(enum.Enum):
    """What clients do that are told when an equal request is expected to be admitted."""

    GIVE_UP = enum.auto()
    COME_BACK = enum.auto()  # at that time, once
    COME_BACK_RESERVED = enum.auto()  # with a reservation, of which the router keeps a book


def simulate_with_policy(
    cluster: ClusterSpec,
    workload: Workload,
    targets: tuple[Target, ...],
    policy: Policy,
    *,
    seed: int = 0,
    refused: Refused = Refused.GIVE_UP,
    predicted_by: PolicyContext | None = None,
    calibration: Calibration | None = None,
) -> Outcome:
    """Run the workload through the cluster with every arrival placed by `policy`.

    Of `cluster.routing` only the order of the queues and the age of states count here; a policy made with `context_of`
    keeps the rest. What the policy holds is decided again when a worker has more room, or in the end when the policy
    said; what it rejects is refused for good, unless `refused` says that clients come back: once, when they were told
    to (`Rejection.earliest_s`), as a new request whose `Outcome.arrived_s` and all that counts from there is that of
    the return. With `predicted_by`, the context of a policy whose costs are not the cluster's, the router corrects
    them by the steps it sees. With a `calibration` it follows what comes of its predictions, as a live one does. Equal
    arguments give equal outcomes.
    """
    gear = Gear(
        cluster,
        workload,
        targets,
        policy,
        seed=seed,
        refused=refused,
        predicted_by=predicted_by,
        calibration=calibration,
    )
    gear.run()
    return gear.outcome()


def with_predicting_policy(
    cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
) -> Outcome:
    """Run the full gear with the policy that predicts and admits as `cluster.routing` says; called like simulate."""
    policy = policy_named("slo-aware", context_of(cluster, targets))
    return simulate_with_policy(cluster, workload, targets, policy, seed=seed)


def gears_differ(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, skip: int = 0) -> float:
    """Return attainment by the search gear less that by the router's own policy, of the class where it is most."""
    search = simulate(cluster, workload, targets).attainment(targets, skip=skip)
    full = with_predicting_policy(cluster, workload, targets).attainment(targets, skip=skip)
    return max((a - b for a, b in zip(search, full, strict=True)), key=abs, default=0.0)


def context_of(cluster: ClusterSpec, targets: tuple[Target, ...], *, may_hold: bool = False) -> PolicyContext:
    """Tell policies what a router of this cluster would be told; `may_hold` one that keeps what no worker has room for.

    The search gear sends everything at once, so what is compared with it must not hold.
    """
    link, routing = cluster.link, cluster.routing
    return PolicyContext(
        pools={
            Role.PREFILL: _facts(cluster, cluster.prefill or cluster.decode),
            Role.DECODE: _facts(cluster, cluster.decode),
        },
        targets={target.name: ClassTarget(target.ttft_s, target.tpot_s) for target in targets},
        link=LinkFacts(
            latency_s=link.latency_s,
            s_per_token=link.kv_bytes_per_token / link.bytes_per_s,
            tail_share=1.0 / link.layers if link.layerwise else 1.0,
        ),
        request_overhead_s=cluster.request_overhead_s,
        handover_overhead_s=cluster.handover_overhead_s,
        first_token_from_prefill=cluster.first_token_from_prefill,
        whole_below_tokens=routing.whole_below_tokens,
        overflow=routing.overflow,
        admit_by_ttft=routing.admission is not Admission.OFF,
        admit_by_tpot=routing.admission is Admission.TTFT_AND_TPOT,
        may_hold=may_hold,
    )


def _facts(cluster: ClusterSpec, pool: PoolSpec) -> PoolFacts:
    return PoolFacts(
        cost=pool.cost,
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        chunked=pool.chunked and cluster.mode is not Mode.ONE_POOL,
        stages=pool.pipeline_parallel,
    )


class Kind(enum.IntEnum):
    """What comes next, at equal times in this order."""

    LOOK = 0  # the frames of now will be known later
    ROOM = 1  # what is held is decided again
    HELD_ENOUGH = 2  # a held request is decided again
    ARRIVAL = 3
    CONTROL = 4  # the fleet changes, and its controller is asked: sim.elastic_gear


_Entry = tuple[float, Kind, int]  # time, kind, request


class Gear:
    """One run: the agenda of the router, its decisions, and the kernel that they act on."""

    def __init__(
        self,
        cluster: ClusterSpec,
        workload: Workload,
        targets: tuple[Target, ...],
        policy: Policy,
        *,
        seed: int,
        refused: Refused,
        predicted_by: PolicyContext | None,
        calibration: Calibration | None,
    ) -> None:
        self._cluster, self._policy, self._refused = cluster, policy, refused
        self._state = start(cluster, workload, targets, seed=seed)
        self._views = Views(cluster, self._state, predicted_by)
        self._beliefs = PrefixBeliefs(workload, self._views.hellos) if cluster.prefix_cache else None
        self._calibration = calibration
        self._followed = FollowedForecasts(cluster, self._state, targets, calibration) if calibration else None
        self._queue: SlackQueue[int] = SlackQueue(QueueRules())
        self._waiting: dict[int, Waiting[int]] = {}  # all and only the items of the queue, by request
        self._prompts, self._slo_classes = workload.prompt_tokens.tolist(), workload.classes().tolist()
        self._targets = targets
        self._delay_s = cluster.routing.state_delay_s
        self._arrived: list[float] = workload.arrived_s.tolist()  # of those that come back, when they do
        self._returned: set[int] = set()
        self._given_up: list[int] = []
        self._promised_at_s: dict[int, float] = {}  # of all and only the requests with a reservation that are not back
        self._promised = _NOTHING  # the same, as policies see it
        self._ask_again_s: dict[int, float] = {}  # of all and only the held requests: what the agenda has for them
        self._decisions = 0
        self._reached_s = -math.inf
        self._placing: tuple[int, int, int] | None = None  # decided at _reached_s, to be done before time passes
        self._agenda: list[_Entry] = [(at_s, Kind.ARRIVAL, i) for i, at_s in enumerate(self._arrived)]
        if self._delay_s:
            self._agenda += [(at_s - self._delay_s, Kind.LOOK, i) for i, at_s in enumerate(self._arrived)]
            self._agenda.sort()

    def run(self) -> None:
        """Go through the agenda until everything has ended."""
        agenda = self._agenda
        while agenda:
            if not self._reach(agenda[0][0]):
                continue
            now_s, kind, request = heappop(agenda)
            self._happen(now_s, kind, request)
        self._reach(FOREVER_S)

    def _happen(self, now_s: float, kind: Kind, request: int) -> None:
        """Do one entry of the agenda, time having passed up to it."""
        if kind is Kind.ARRIVAL:
            self._decide(request, now_s)
        elif kind is Kind.LOOK:
            self._views.look(now_s)
        elif kind is Kind.ROOM:
            self._let_go(now_s)
        elif self._ask_again_s.get(request) == now_s:
            self._ask_again(request, now_s)

    def outcome(self) -> Outcome:
        """Read what became of every request."""
        self._state.reqs.stage[self._given_up] = HELD
        return outcome_of(self._cluster, self._state)

    def _reach(self, until_s: float) -> bool:
        """Do what was decided and let time pass; False if it stopped where a worker has more room for what is held."""
        to_room, placing = bool(self._waiting), self._placing
        room = self._state.counts[ROOM] if to_room else 0
        if placing is not None:
            self._placing = None
            self._reached_s = place_and_advance(self._state, *placing, self._reached_s, until_s, to_room)
        elif until_s <= self._reached_s:
            return True
        elif to_room:
            self._reached_s = advance_to_room(self._state, until_s)
        else:
            advance(self._state, until_s)
            self._reached_s = until_s
        if not to_room or self._state.counts[ROOM] == room:
            return True
        self._look_again(self._reached_s)
        return False

    def _look_again(self, now_s: float) -> None:
        """Let what is held be decided again when the router knows of the workers' present states."""
        if self._delay_s:
            self._views.look(now_s)
        heappush(self._agenda, (now_s + self._delay_s, Kind.ROOM, NOBODY))

    def _ask_again(self, request: int, now_s: float) -> None:
        """Decide a held request when the policy said: in its turn, or when it could start in time for the last time."""
        item = self._waiting[request]
        if self._queue.peek(now_s) is item:
            self._let_go(now_s)
        elif item.key_s <= now_s:
            self._decide(request, now_s)
        else:
            self._ask_at(request, item.key_s)

    def _let_go(self, now_s: float) -> None:
        """Decide again what is held, in turn, until a request has still to wait."""
        while (item := self._queue.peek(now_s)) is not None:
            self._decide(item.payload, now_s, is_next=True)
            if item.payload in self._waiting:
                return
            self._reach(now_s)

    def _decide(self, request: int, now_s: float, *, is_next: bool = False) -> None:
        """Ask the policy where a request goes, and note what is to be done; nothing held goes before the next one."""
        arrived_s, target = self._arrived[request], self._targets[self._slo_classes[request]]
        if request in self._promised_at_s:
            self._promise(request, None)
        if self._followed:
            self._followed.learn()
        shape = RequestShape(
            str(request),
            self._prompts[request],
            None,
            target.name,
            None,
            self._decisions,
            waited_s=now_s - arrived_s,
            cached=self._beliefs.cached(request) if self._beliefs else (),
            is_reserved=request in self._returned and self._refused is Refused.COME_BACK_RESERVED,
            margins=self._calibration.margins(target.name) if self._calibration else None,
            attainment=self._calibration.measured_attainment(target.name) if self._calibration else None,
        )
        self._decisions += 1
        held = _NOTHING if is_next else self._queue.held()
        decision = self._policy.decide(shape, self._views.view(now_s, held, self._promised), now_s)
        if isinstance(decision, Hold) and now_s - arrived_s < LONGEST_HOLD_S:
            self._hold(request, decision, now_s)
            return
        self._leave_queue(request, now_s)
        if isinstance(decision, Route):
            prefill, decode = self._views.numbers(decision.prefill, decision.decode)
            self._views.sent(prefill, decode, target.tpot_s, now_s)
            if self._beliefs:
                self._beliefs.record(decision.prefill or decision.decode, request)
            if self._followed:
                self._followed.given(request, decision.forecast, now_s)
            self._placing = (request, prefill, decode)
        elif isinstance(decision, Hold):
            self._given_up.append(request)
        elif not self._will_return(request, decision, now_s):
            self._placing = (request, NOBODY, NOBODY)

    def _hold(self, request: int, decision: Hold, now_s: float) -> None:
        item = self._waiting.get(request)
        if item is None or item.key_s != decision.key_s:
            if item is not None:
                self._queue.remove(item)
            item = self._waiting[request] = Waiting(decision.key_s, self._prompts[request], request)
            gone = self._queue.push(item, now_s)
            if gone is not None:
                self._placing = (gone.payload, NOBODY, NOBODY)
                self._forget(gone.payload)
                if gone is item:
                    return
        self._ask_at(request, max(decision.until_s, now_s + _LEAST_HOLD_S))
        if self._delay_s and len(self._waiting) == 1:
            self._look_again(now_s)  # it was decided by old states

    def _ask_at(self, request: int, until_s: float) -> None:
        if self._ask_again_s.get(request) != until_s:
            self._ask_again_s[request] = until_s
            heappush(self._agenda, (until_s, Kind.HELD_ENOUGH, request))

    def _leave_queue(self, request: int, now_s: float) -> None:
        item = self._waiting.get(request)
        if item is None:
            return
        if self._queue.peek(now_s) is item:
            self._queue.take(0, now_s)
        else:
            self._queue.remove(item)
        self._forget(request)

    def _forget(self, request: int) -> None:
        """Note that a request is not held any more."""
        del self._waiting[request]
        self._ask_again_s.pop(request, None)

    def _will_return(self, request: int, rejection: Rejection, now_s: float) -> bool:
        """Let a client come back once, when it was told to; False if it will not."""
        if self._refused is Refused.GIVE_UP or rejection.earliest_s is None or request in self._returned:
            return False
        back_s = now_s + rejection.earliest_s
        self._returned.add(request)
        self._arrived[request] = self._state.reqs.arrived[request] = back_s
        heappush(self._agenda, (back_s, Kind.ARRIVAL, request))
        if self._delay_s:
            heappush(self._agenda, (max(now_s, back_s - self._delay_s), Kind.LOOK, request))
        if self._refused is Refused.COME_BACK_RESERVED:
            self._promise(request, back_s)
        return True

    def _promise(self, request: int, at_s: float | None) -> None:
        """Note for when a request has a reservation; None: it is back."""
        if at_s is None:
            del self._promised_at_s[request]
        else:
            self._promised_at_s[request] = at_s
        due = sorted((due_s, name) for name, due_s in self._promised_at_s.items())
        tokens = accumulate((self._prompts[name] for _, name in due), initial=0)
        self._promised = HeldWork(tuple([due_s for due_s, _ in due]), tuple(tokens))
