"""A plan as text for people: verdict, candidates, picture, and why not when it cannot be.

Owns wording and layout, at most 100 columns. Must not know how a plan is found (sim.search) or how it is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from sim.cluster import ClusterSpec
from sim.comparison import WIDTH, comparison, per_gpu, placement, steps
from sim.faster_link import FasterLink
from sim.figures import decimals_known, figure, floored, percent, plain, with_interval
from sim.outcome import Target
from sim.picture import ASCII, UNICODE, draw
from sim.plan import CLEAR, Candidate, Interval, Plan, PlanQuestion, Verdict

_MOST_ROWS = 8  # of candidates
_MOST_CLASS_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """What a question was made from, for people."""

    model: str
    traffic: str
    source: str  # of the profiles
    priced: bool = False  # prices are money; else hours of a device
    notes: tuple[str, ...] = ()


def render(
    plan: Plan,
    question: PlanQuestion,
    setting: Setting,
    *,
    faster: FasterLink | None = None,
    ascii_only: bool = False,
) -> str:
    """Write the whole report; `ascii_only` for terminals that are not UTF-8."""
    parts = [wrap(verdict(plan, question), WIDTH), _premises(plan, question, setting)]
    if plan.shortfall is not None:
        parts.append(shortfall_lines(plan, question))
    rows = _rows(plan)
    if rows:
        parts += [_table(rows, plan, question, setting), comparison(plan, question, faster)]
        parts.append(draw(plan.curve, question.targets, ASCII if ascii_only else UNICODE))
    parts.append(_notes(plan, setting))
    text = "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"
    return text.encode("ascii", "replace").decode("ascii") if ascii_only else text


def verdict(plan: Plan, question: PlanQuestion) -> str:
    """Say the answer in one sentence."""
    best = plan.best
    if best is None:
        return f"This cannot be met: not even one worker fits {_devices(question)}."
    if question.fixed is not None:
        begin = "As asked"
    elif plan.verdict is Verdict.INFEASIBLE:
        asked = f" at {plain(question.rate)} requests/s" if question.rate is not None else ""
        return f"The promise cannot be kept{asked} with {_devices(question)}; nearest is {placement(best.cluster)}."
    else:
        begin = _begin(plan, best)
    if best.goodput.high <= 0:
        return f"{begin}: {placement(best.cluster)} keeps the promise at no rate."
    carries = f"carries {with_interval(best.goodput)} requests/s within the promise"
    ending = ""
    if plan.verdict is Verdict.INFEASIBLE:
        ending = ", which does not keep it" + (f" at {plain(question.rate)} requests/s" if question.rate else "")
    return f"{begin}: {placement(best.cluster)} {carries}, {per_gpu(best)} per GPU{ending}."


def _begin(plan: Plan, best: Candidate) -> str:
    if plan.verdict is not Verdict.UNCLEAR:
        return "P/D pays" if plan.verdict is Verdict.DISAGGREGATE else "One pool is better here"
    if best.cluster.prefill is not None:
        return "No clear difference, but more is expected of"
    more = plan.ratio is not None and plan.ratio.mid * CLEAR <= 1
    return f"No clear difference, {'and more is expected of' if more else 'so'} the simpler"


def shortfall_lines(plan: Plan, question: PlanQuestion) -> list[str]:
    """Say what binds, the nearest promise that can be kept, and the rate at which this one can."""
    short = plan.shortfall
    if short is None:
        return []
    lines = wrap(f"  binding   {short.binding}: {short.reason}", WIDTH, subsequent_indent=" " * 12)
    at = f" at {plain(question.rate)} requests/s" if question.rate is not None else ""
    for target in short.nearest:
        lines.append(f"  nearest   {_promise(target)}{at}")
    if short.feasible_rate is not None and short.feasible_rate > 0:
        lines.append(f"  or        the promise as it is, at up to {floored(short.feasible_rate)} requests/s")
    elif question.rate is not None:
        lines.append("  or        more devices, or faster ones: the promise as it is is kept at no rate")
    return lines


def _premises(plan: Plan, question: PlanQuestion, setting: Setting) -> list[str]:
    words = [("model", setting.model), ("devices", _devices(question))]
    words += [("promise", _promise(target)) for target in question.targets]
    asked = "as much as possible" if question.rate is None else f"{plain(question.rate)} requests/s"
    words += [("traffic", f"{setting.traffic}; to carry: {asked}"), ("profile", setting.source)]
    if plan.best is not None:
        words.append(("KV cache", _kv_memory(plan.best.cluster)))
    lines: list[str] = []
    for name, text in words:
        lines += wrap(f"  {name:<10}{text}", WIDTH, subsequent_indent=" " * 12)
    return lines


def _kv_memory(cluster: ClusterSpec) -> str:
    """Say how much KV the plan counts on; an engine that is given less carries less."""
    tokens = cluster.decode.kv_capacity_tokens
    size = tokens * cluster.link.kv_bytes_per_token
    gigabytes = f" ({plain(size / 1e9)} GB)" if size else ""
    return f"each decode worker is taken to hold {tokens:,} tokens{gigabytes}"


def _promise(target: Target) -> str:
    ttft, tpot = plain(target.ttft_s * 1000), plain(target.tpot_s * 1000)
    return f"{target.name}: TTFT {ttft} ms and TPOT {tpot} ms for {plain(100 * target.attainment)} %"


def _devices(question: PlanQuestion) -> str:
    texts = []
    for i, group in enumerate(question.groups):
        nodes = f"{group.nodes} nodes of {group.devices_per_node}" if group.nodes > 1 else "one node"
        letter = f"{_letter(i)}: " if len(question.groups) > 1 else ""
        texts.append(f"{letter}{group.devices:,} x {group.profile.device} ({nodes})")
    return ", ".join(texts)


def _letter(group: int) -> str:
    return chr(ord("A") + group)


def _rows(plan: Plan) -> list[Candidate]:
    """Choose the candidates to show: the front, and the best of each kind even if they are not on it."""
    chosen: list[Candidate] = []
    for candidate in (plan.best, plan.best_disaggregated, plan.best_one_pool, *plan.front):
        if candidate is not None and candidate not in chosen:
            chosen.append(candidate)
    return sorted(chosen[:_MOST_ROWS], key=lambda c: -c.goodput.mid)


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the table of candidates."""

    head: str
    cells: tuple[str, ...]
    dropped: int = 0  # the first to go, highest first, when the page is too narrow; 0: never
    left: bool = False

    @property
    def width(self) -> int:
        return max(len(self.head), *map(len, self.cells))

    def line(self, row: int) -> str:
        cell = self.head if row < 0 else self.cells[row]
        return f"{cell:<{self.width}}" if self.left else f"{cell:>{self.width}}"


def _table(rows: Sequence[Candidate], plan: Plan, question: PlanQuestion, setting: Setting) -> list[str]:
    price = "$/1M" if setting.priced else "GPUh/1M"
    columns = [
        _Column("", tuple(">" if row is plan.best else "" for row in rows), left=True),
        _Column("placement", tuple(_where(row, question) for row in rows), left=True),
        _Column("chunk", tuple(steps(row.cluster) for row in rows), dropped=1),
        _Column("GPUs", tuple(f"{row.cluster.gpus:,}" for row in rows)),
        _Column("goodput/s", tuple(with_interval(row.goodput) for row in rows)),
        _Column("per GPU", tuple(per_gpu(row) for row in rows), dropped=3),
        *_shares(rows, question.targets),
        _Column(price, tuple(_price(row) for row in rows), dropped=2 if setting.priced else 4),
    ]
    while sum(c.width for c in columns) + 2 * (len(columns) - 1) > WIDTH and any(c.dropped for c in columns):
        columns.remove(max(columns, key=lambda c: c.dropped))
    lines = ["  ".join(column.line(row) for column in columns).rstrip() for row in range(-1, len(rows))]
    at = f"at {plain(question.rate)} requests/s" if question.rate is not None else "at the goodput"
    legend = f"Ranges: 90 % intervals. Shares: requests that met both targets, {at}."
    if any(column.head == price for column in columns):
        unit = "money" if setting.priced else "device hours"
        legend += f" {price}: {unit} for a million requests at the goodput."
    if any(row.nodes_spanned for row in rows):
        legend += " *: KV goes between nodes."
    return lines + wrap(legend, WIDTH)


def _where(row: Candidate, question: PlanQuestion) -> str:
    letters = tuple(_letter(g) for g in row.group) if len(question.groups) > 1 else ()
    return placement(row.cluster, letters) + (" *" if row.nodes_spanned else "")


def _shares(rows: Sequence[Candidate], targets: Sequence[Target]) -> list[_Column]:
    """Make a column for each class, or where they are many, one for the class that is worst off."""
    if len(targets) > _MOST_CLASS_COLUMNS:
        return [_Column("lowest class", tuple(percent(_lowest(row, targets)) for row in rows))]
    return [
        _Column(target.name[:14], tuple(percent(row.attainment[i]) for row in rows)) for i, target in enumerate(targets)
    ]


def _lowest(candidate: Candidate, targets: Sequence[Target]) -> Interval:
    """Return the attainment of the class that is nearest to, or furthest under, its promise."""
    pairs = zip(candidate.attainment, targets, strict=True)
    return min(pairs, key=lambda pair: pair[0].mid - pair[1].attainment)[0]


def _price(candidate: Candidate) -> str:
    """Price a million requests at the goodput."""
    if candidate.goodput.mid <= 0:
        return "-"
    ends = (candidate.goodput.high, candidate.goodput.mid, candidate.goodput.low)
    low, mid, high = (candidate.price_per_hour / (e * 3600.0) * 1e6 if e > 0 else float("inf") for e in ends)
    return figure(mid, decimals_known(Interval(low, mid, high)))


def _notes(plan: Plan, setting: Setting) -> list[str]:
    notes = [*setting.notes, *plan.notes]
    if plan.gears_differ is not None:
        points = plain(100 * abs(plan.gears_differ), 2)
        notes.append(f"checked with the router's own policies: attainment differs by {points} points")
    stats = plan.stats
    notes.append(
        f"placements: {stats.considered:,} considered, {stats.pruned:,} ruled out by bounds, {stats.simulated:,} "
        f"simulated with {stats.simulated_requests:,} requests, in {plain(stats.elapsed_s, 2)} s"
    )
    return [line for note in notes for line in wrap(f"- {note}", WIDTH, subsequent_indent="  ")]
