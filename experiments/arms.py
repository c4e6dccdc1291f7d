"""How an arm of a comparison is written, and the sets of arms that comparisons use.

    NAME[:FIELD=VALUE...][@limited|@strict|@recomputed|@unlimited]

NAME is a router, the fields are its settings (`gwtf_p2p/protocol/routers/factory`), and what follows @ is what relays do with
activations (`gwtf_p2p/simulation/build`). `swarm:gamma=0.1:in_flight=4@recomputed`. A set is written +NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.routers.factory import configure
from gwtf_p2p.simulation.build import Arm, Memory

OFFICIAL = "gamma=0.1:bias_corrected=true:backward_charge=2.5"


def _swarm_sweep() -> list[str]:
    """Start value, smoothing and requests in flight; the paper's and the official code's settings are among them."""
    smoothing: tuple[str, ...] = ("gamma=0.8", "gamma=0.3", OFFICIAL)
    starts: tuple[str, ...] = ("0.05", "0.5")
    return [
        f"swarm:initial_s={start}:{gamma}:in_flight={limit}"
        for start in starts
        for gamma in smoothing
        for limit in (0, 2, 4, 6)
    ]


SETS = {"swarm_sweep": _swarm_sweep()}


def expand(words: Sequence[str]) -> list[str]:
    """Arms with the sets written out. Raises InputError for a set that does not exist."""
    arms: list[str] = []
    for word in words:
        if not word.startswith("+"):
            arms.append(word)
        elif word[1:] in SETS:
            arms += SETS[word[1:]]
        else:
            raise InputError("--arms", "", f"expected a set of {', '.join('+' + name for name in SETS)}, got {word!r}")
    return list(dict.fromkeys(arms))


def parse_arm(text: str, recovery: str = "exact") -> Arm:
    """Raises InputError for an unknown router, setting or memory."""
    words, at, memory = text.partition("@")
    router, *settings = words.split(":")
    pairs = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
    known = {choice.value for choice in Memory}
    if at and memory not in known:
        raise InputError("--arms", "", f"expected @ and one of {', '.join(sorted(known))}, got {text!r}")
    return Arm(router, configure(router, pairs), recovery, Memory(memory) if at else Memory.LIMITED)
