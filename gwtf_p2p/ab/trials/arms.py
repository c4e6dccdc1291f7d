"""The arms of a comparison, by name or written out.

    NAME[:FIELD=VALUE...][@adaptive|@limited|@strict|@recomputed|@unlimited]

NAME is a router or one of `NAMED`, the fields are the router's settings (`protocol/routers/factory`), and what follows @ is
what stage peers do with activations (`simulation/swarm/build`). `swarm:gamma=0.1:in_flight=4@recomputed`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.routers.factory import KINDS, configure
from gwtf_p2p.simulation.swarm.build import Arm, Memory

OFFICIAL = "gamma=0.1:bias_corrected=true:backward_charge=2.5"

NAMED = {
    "gwtf-paper": ("gwtf:cost=paper", "flows by the paper's linear cost"),
    "swarm-official": (f"swarm:{OFFICIAL}:official_failures=true", "the official code's smoothing and time-outs, no ban"),
    "swarm-official-bans": (f"swarm:{OFFICIAL}", "the official code's smoothing with short bans"),
}
"""Arms with a name of their own: how they are written out, and what they are."""


def written_out(text: str) -> str:
    """An arm without its name of its own; what is added to the name stays."""
    head, colon, rest = text.partition(":")
    name, at, memory = head.partition("@")
    return (NAMED[name][0] if name in NAMED else name) + at + memory + colon + rest


def parse_arm(text: str, recovery: str = "exact", where: str = "--arms") -> Arm:
    """Raises InputError for an unknown router, setting or memory."""
    words, at, memory = written_out(text).partition("@")
    router, *settings = words.split(":")
    if router not in KINDS:
        raise InputError(where, "", f"expected one of {', '.join((*KINDS, *NAMED))}, got {router!r}")
    pairs = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
    known = {choice.value for choice in Memory}
    if at and memory not in known:
        raise InputError(where, "", f"expected @ and one of {', '.join(sorted(known))}, got {text!r}")
    return Arm(router, configure(router, pairs, where), recovery, Memory(memory) if at else Memory.ADAPTIVE)


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
    return arm.startswith("swarm") and not arm.startswith("swarm-hub")


def best_swarm(means: Sequence[tuple[str, float]]) -> str | None:
    """The SWARM arm of least iteration time; None without any."""
    able = [(seconds, arm) for arm, seconds in means if is_swarm(arm)]
    return min(able)[1] if able else None
