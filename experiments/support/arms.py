"""The sets of arms that comparisons use; a set is written +NAME, or +NAME/FORMAT. How an arm is written: `gwtf_p2p/ab/arms`."""

from __future__ import annotations

from collections.abc import Sequence

from gwtf_p2p.ab.trials.arms import OFFICIAL, parse_arm
from gwtf_p2p.protocol.errors import InputError

__all__ = ["SETS", "expand", "parse_arm"]


def _swarm_sweep() -> list[str]:
    """Start value, smoothing, requests in flight, and what is done with activations: all that fits the same memory.

    The paper's and the official code's settings are among them; the official code always recomputes.
    """
    smoothing: tuple[str, ...] = ("gamma=0.8", "gamma=0.3", OFFICIAL)
    starts: tuple[str, ...] = ("0.05", "0.5")
    return [
        f"swarm:initial_s={start}:{gamma}:in_flight={limit}{memory}"
        for start in starts
        for gamma in smoothing
        for limit in (0, 2, 4, 6)
        for memory in ("", "@recomputed", "@strict")
    ]


SETS = {"swarm_sweep": _swarm_sweep()}


def expand(words: Sequence[str]) -> list[str]:
    """Arms with the sets written out. Raises InputError for a set that does not exist."""
    arms: list[str] = []
    for word in words:
        name, slash, wire = word.partition("/")
        if not word.startswith("+"):
            arms.append(word)
        elif name[1:] in SETS:
            arms += [arm + slash + wire for arm in SETS[name[1:]]]
        else:
            raise InputError("--arms", "", f"expected a set of {', '.join('+' + name for name in SETS)}, got {word!r}")
    return list(dict.fromkeys(arms))
