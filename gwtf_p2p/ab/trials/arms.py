"""The arms of a comparison, by name or written out.

    NAME[:FIELD=VALUE...][@adaptive|@limited|@strict|@recomputed|@unlimited]
        [/FORMAT[-subspaceN][-thin][-syncN][-elastic][-delayed]]

NAME is a router or one of `NAMED`, the fields are the router's settings (`protocol/routers/factory`), what follows @ is what
stage peers do with activations (`simulation/swarm/build`), and what follows / the format in which tensors travel (`WIRES`;
without it the run's own), of boundaries in a subspace of 1/N of the width if it says so, with data peers that hold no
weights, with an average of the copies of a stage every N iterations instead of their gradients in each, with shares of the
microbatches by their paces, and with delayed optimizer steps (the last two, and data peers without weights, are for simulated
arms alone: live ones would need another run; a live subspace is one of bytes, of the same model).
`swarm:gamma=0.1:in_flight=4@recomputed/int8`. An arm is held against SWARM arms of its own format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.replica_sync import MOST_EVERY
from gwtf_p2p.protocol.routers.factory import KINDS, configure
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.simulation.swarm.build import FLOAT32, Arm, Memory

OFFICIAL = "gamma=0.1:bias_corrected=true:backward_charge=2.5"

NAMED = {
    "gwtf-paper": ("gwtf:cost=paper", "flows by the paper's linear cost"),
    "swarm-official": (f"swarm:{OFFICIAL}:official_failures=true", "the official code's smoothing and time-outs, no ban"),
    "swarm-as-read": ("swarm:least_delay=true:restarts_whole=true", "as GWTF's paper reads SWARM (simulated alone)"),
    "swarm-official-bans": (f"swarm:{OFFICIAL}", "the official code's smoothing with short bans"),
}
"""Arms with a name of their own: how they are written out, and what they are."""

WIRES = {
    "float32": WireSpec.named("float32", "float32"),
    "bfloat16": WireSpec.named("bfloat16", "float16"),
    "float16": WireSpec.named("float16", "float16"),
    "fp8": WireSpec.named("fp8", "int8"),
    "int8": WireSpec.named("int8", "int8"),
    "int4": WireSpec.named("int4", "int8"),
    "int8+powersgd": WireSpec.named("int8", "powersgd"),
}
"""What is said after /: boundary tensors in that format, and averages in the nearest one that they have."""


SUBSPACE, MOST_FACTOR = "-subspace", 4096
"""Behind a format, with how many times fewer values cross a boundary."""

THIN = "-thin"
"""Behind that: data peers hold no weights."""

ELASTIC = "-elastic"
"""Behind that: they have shares by their paces."""

DELAYED = "-delayed"
"""Behind that: the next iteration is computed while one is averaged."""


SYNC = "-sync"
"""Behind that: after how many iterations copies of a stage are averaged, which is in float32."""


def written_out(text: str) -> str:
    """An arm without its name of its own; what is added to the name stays."""
    head, colon, rest = text.partition(":")
    name, at, memory = head.partition("@")
    return (NAMED[name][0] if name in NAMED else name) + at + memory + colon + rest


def parse_arm(text: str, recovery: str = "exact", where: str = "--arms", base: WireSpec = FLOAT32) -> Arm:
    """`base`: the formats of an arm that names none. Raises InputError for an unknown router, setting, memory or format."""
    plain, slash, wire = text.partition("/")
    words, at, memory = written_out(plain).partition("@")
    router, *settings = words.split(":")
    if router not in KINDS:
        raise InputError(where, "", f"expected one of {', '.join((*KINDS, *NAMED))}, got {router!r}")
    pairs = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
    known = {choice.value for choice in Memory}
    if at and memory not in known:
        raise InputError(where, "", f"expected @ and one of {', '.join(sorted(known))}, got {text!r}")
    more = {}
    for name, suffix in (("delayed", DELAYED), ("elastic", ELASTIC)):
        more[name] = wire.endswith(suffix)
        wire = wire.removesuffix(suffix)
    wire, synced, every = wire.partition(SYNC)
    more["thin"] = wire.endswith(THIN)
    wire, dash, factor = wire.removesuffix(THIN).partition(SUBSPACE)
    is_known = wire in WIRES and _is_number(dash, factor, MOST_FACTOR) and _is_number(synced, every, MOST_EVERY)
    if slash and not is_known:
        expected = (
            f"expected / and one of {', '.join(WIRES)}, and perhaps {SUBSPACE}N, {THIN}, {SYNC}N, {ELASTIC} and {DELAYED}"
        )
        raise InputError(where, "", f"{expected}, got {text!r}")
    memory_mode = Memory(memory) if at else Memory.ADAPTIVE
    formats = WIRES[wire] if slash else base
    if synced:
        formats = replace(formats, averages=FLOAT32.averages)
    config, subspace, sync = configure(router, pairs, where), int(factor or 0), int(every or 0)
    return Arm(router, config, recovery, memory_mode, formats, subspace=subspace, replica_sync=sync, **more)


def _is_number(said: str, number: str, most: int) -> bool:
    """Nothing is said, or a number from 2 on."""
    return not said or (number.isdecimal() and 2 <= int(number) <= most)


def parse_arms(text: str, where: str) -> tuple[str, ...]:
    """Arms separated by commas, each once and each right. Raises InputError."""
    arms = tuple(word.strip() for word in text.split(",") if word.strip())
    if not arms or len(set(arms)) < len(arms):
        raise InputError(where, "", f"expected arms separated by commas, each once, got {text!r}")
    for arm in arms:
        parse_arm(arm, where=where)
    return arms


def is_swarm(arm: str) -> bool:
    """One of the arms among which the baseline is chosen: SWARM's wiring on the same data plane as the others."""
    return arm.startswith("swarm") and not arm.startswith(("swarm-hub", "swarm-as-read"))


def best_swarm(means: Sequence[tuple[str, float]], wire: str = "") -> str | None:
    """The SWARM arm of least iteration time among those of this format (`wire_of`); None without any."""
    able = [(seconds, arm) for arm, seconds in means if is_swarm(arm) and wire_of(arm) == wire]
    return min(able)[1] if able else None


def wire_of(arm: str) -> str:
    """The format that an arm names; empty: the run's own."""
    return arm.partition("/")[2]
