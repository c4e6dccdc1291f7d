"""The scenario file: what is simulated, as data.

    name, seeds, iterations, warmup_iterations
    [model]    stages, microbatch_bytes, microbatches_per_data_peer, stage_gradient_bytes, stage_state_bytes
    [links]    table = FILE (relative to this file) | uniform = { latency_ms, gbps }; bandwidth_scale; peer_upload_mbps
    [[peers]]  role = "data": count; role = "stage": count_per_stage, capacity; both: forward_s, backward_s | backward_factor,
               region
    [churn]    crash_probability_per_iteration, rejoin_probability_per_iteration
    [churn_by_time]  instead of it: mean_uptime_s, mean_downtime_s, tail; region_dark_every_s, region_dark_s; slow_every_s,
               slow_s, slow_factor

A value that may be a list is drawn uniformly per peer by the seed (see `draw`). A data peer's `forward_s` and `backward_s`
are those of the part that it holds, embedding and head together. `gbps` and `peer_upload_mbps` are bits, latencies one way.
Every wrong, missing or unknown field raises InputError.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gwtf_p2p.protocol.ids import OLDER_ROLES, ROLES
from gwtf_p2p.simulation.lines.links import LinkSpec
from gwtf_p2p.simulation.scenario.fields import Fields, read_toml

MOST_PEERS = 20_000
GIGABIT = 1e9 / 8
MEGABIT = 1e6 / 8


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes in bytes: one boundary activation (its gradient is alike), one stage's gradient, and a joiner's download."""

    stages: int
    microbatch_bytes: int
    microbatches_per_data_peer: int
    stage_gradient_bytes: int
    stage_state_bytes: int


@dataclass(frozen=True, slots=True)
class LinkTable:
    """Latency and bandwidth between regions, before scaling. A uniform network is a table with one region."""

    regions: tuple[str, ...]
    links: dict[tuple[str, str], LinkSpec]


@dataclass(frozen=True, slots=True)
class LinksSpec:
    """`line_bytes_per_s`: what each peer's line is drawn from; empty: lines do not limit."""

    table: LinkTable
    bandwidth_scale: float
    line_bytes_per_s: tuple[float, ...]

    def between(self, a: str, b: str) -> LinkSpec:
        """The link between peers of two regions."""
        spec = self.table.links[min(a, b), max(a, b)]
        return LinkSpec(spec.latency_s, spec.bandwidth_bytes_per_s * self.bandwidth_scale)


@dataclass(frozen=True, slots=True)
class PeerGroup:
    """`count` data peers, or `count` stage peers in each stage. `backward_s` is empty when `backward_factor` is given."""

    is_data: bool
    count: int
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    backward_factor: float
    capacity: tuple[int, ...]
    region: str


@dataclass(frozen=True, slots=True)
class ChurnSpec:
    """Per iteration: of each live stage peer to crash, and of each crashed one to come back."""

    crash_probability: float = 0.0
    rejoin_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class TimedChurnSpec:
    """Means in seconds of virtual time, whatever an iteration takes; 0: never. `tail` is the exponent of Pareto uptimes, above
    1 (0: exponential ones); `slow_factor` is how many times as long a slow stage peer computes."""

    uptime_s: float = 0.0
    downtime_s: float = 0.0
    tail: float = 0.0
    dark_every_s: float = 0.0
    dark_s: float = 0.0
    slow_every_s: float = 0.0
    slow_s: float = 0.0
    slow_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario; `draw.draw_peers(scenario, seed)` makes its peers."""

    name: str
    seeds: tuple[int, ...]
    iterations: int
    warmup_iterations: int
    model: ModelSpec
    links: LinksSpec
    groups: tuple[PeerGroup, ...]
    churn: ChurnSpec
    timed_churn: TimedChurnSpec = TimedChurnSpec()

    @property
    def data_peers(self) -> int:
        return sum(group.count for group in self.groups if group.is_data)


def load_scenario(path: Path) -> Scenario:
    """Raises InputError that names the file, the field and what was expected."""
    top = read_toml(path)
    model = _model(top.table("model"))
    links = _links(top.table("links"), path.parent)
    groups = tuple(_group(fields, links) for fields in top.tables("peers"))
    for is_data, role in ((True, "data"), (False, "stage")):
        if not any(group.is_data is is_data for group in groups):
            raise top.error("peers", f'expected at least one group with role = "{role}"')
    if sum(g.count * (1 if g.is_data else model.stages) for g in groups) > MOST_PEERS:
        raise top.error("peers", f"expected at most {MOST_PEERS} peers in all")
    iterations = top.whole("iterations", 1)
    warmup = top.whole("warmup_iterations", 0, default=0)
    if warmup >= iterations:
        raise top.error("warmup_iterations", f"expected fewer than iterations ({iterations}), got {warmup}")
    seeds = top.wholes("seeds", 0)
    if len(set(seeds)) < len(seeds):
        raise top.error("seeds", "expected each seed once")
    churn = _churn(top.table("churn")) if top.has("churn") else ChurnSpec()
    timed = _timed_churn(top.table("churn_by_time")) if top.has("churn_by_time") else TimedChurnSpec()
    if top.has("churn") and top.has("churn_by_time"):
        raise top.error("churn_by_time", "expected it or churn, not both")
    scenario = Scenario(top.text("name"), seeds, iterations, warmup, model, links, groups, churn, timed)
    top.finish()
    return scenario


def _model(fields: Fields) -> ModelSpec:
    model = ModelSpec(
        stages=fields.whole("stages", 1),
        microbatch_bytes=fields.whole("microbatch_bytes", 1),
        microbatches_per_data_peer=fields.whole("microbatches_per_data_peer", 1),
        stage_gradient_bytes=fields.whole("stage_gradient_bytes", 0),
        stage_state_bytes=fields.whole("stage_state_bytes", 0),
    )
    fields.finish()
    return model


def _links(fields: Fields, folder: Path) -> LinksSpec:
    if fields.has("table") == fields.has("uniform"):
        raise fields.error("table", "expected either table = FILE or uniform = { latency_ms, gbps }")
    if fields.has("table"):
        table = load_link_table(folder / fields.text("table"))
    else:
        uniform = fields.table("uniform")
        table = LinkTable(("any",), {("any", "any"): _link(uniform)})
        uniform.finish()
    lines = fields.numbers("peer_upload_mbps") if fields.has("peer_upload_mbps") else ()
    spec = LinksSpec(table, fields.number("bandwidth_scale", 1.0), tuple(mbps * MEGABIT for mbps in lines))
    fields.finish()
    return spec


def load_link_table(path: Path) -> LinkTable:
    """A file with `regions`, [same_region] and a [[link]] for each pair of regions."""
    top = read_toml(path)
    regions = top.texts("regions")
    if len(set(regions)) < len(regions) or "any" in regions:
        raise top.error("regions", 'expected each region once, and none called "any"')
    same = top.table("same_region")
    links = {(region, region): _link(same) for region in regions}
    same.finish()
    for fields in top.tables("link"):
        pair = fields.texts("between")
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(regions):
            raise fields.error("between", f"expected two different regions of this file, got {list(pair)!r}")
        key = (min(pair), max(pair))
        if key in links:
            raise fields.error("between", f"expected each pair once, {' - '.join(key)} is there already")
        links[key] = _link(fields)
        fields.finish()
    missing = [(a, b) for a in sorted(regions) for b in sorted(regions) if a <= b and (a, b) not in links]
    if missing:
        raise top.error("link", f"missing, expected one between {' and '.join(missing[0])}")
    top.finish()
    return LinkTable(regions, links)


def _link(fields: Fields) -> LinkSpec:
    return LinkSpec(fields.number("latency_ms", positive=False) / 1000, fields.number("gbps") * GIGABIT)


def _group(fields: Fields, links: LinksSpec) -> PeerGroup:
    role = fields.text("role")
    role = OLDER_ROLES.get(role, role)
    if role not in ROLES:
        raise fields.error("role", f"expected data or stage, got {role!r}")
    if fields.has("backward_s") == fields.has("backward_factor"):
        raise fields.error("backward_s", "expected either backward_s or backward_factor")
    region = fields.text("region", "any")
    if region != "any" and region not in links.table.regions:
        raise fields.error("region", f"expected any or a region of the link table, got {region!r}")
    is_data = role == "data"
    group = PeerGroup(
        is_data=is_data,
        count=fields.whole("count" if is_data else "count_per_stage", 1),
        forward_s=fields.numbers("forward_s"),
        backward_s=fields.numbers("backward_s") if fields.has("backward_s") else (),
        backward_factor=fields.number("backward_factor") if fields.has("backward_factor") else 0.0,
        capacity=() if is_data else fields.wholes("capacity", 1),
        region=region,
    )
    fields.finish()
    return group


def _timed_churn(fields: Fields) -> TimedChurnSpec:
    def together(first: str, second: str) -> tuple[float, float]:
        if fields.has(first) != fields.has(second):
            raise fields.error(second if fields.has(first) else first, f"missing, expected beside {first} and {second} both")
        return (fields.number(first), fields.number(second)) if fields.has(first) else (0.0, 0.0)

    uptime = together("mean_uptime_s", "mean_downtime_s")
    tail = fields.number("tail") if fields.has("tail") else 0.0
    if fields.has("tail") and (tail <= 1 or not uptime[0]):
        raise fields.error("tail", "expected a number above 1, beside mean_uptime_s: else there is no mean")
    dark = together("region_dark_every_s", "region_dark_s")
    slow = together("slow_every_s", "slow_s")
    spec = TimedChurnSpec(*uptime, tail, *dark, *slow, fields.number("slow_factor", 1.0))
    if bool(slow[0]) != (spec.slow_factor != 1.0):
        raise fields.error("slow_factor", "expected beside slow_every_s, and another one than 1")
    fields.finish()
    return spec


def _churn(fields: Fields) -> ChurnSpec:
    churn = ChurnSpec(
        fields.number("crash_probability_per_iteration", 0.0, positive=False, most=1.0),
        fields.number("rejoin_probability_per_iteration", 0.0, positive=False, most=1.0),
    )
    fields.finish()
    return churn
