"""The script of `gwtf demo --churn`: faults and joins as data.

    "kill peer stage=2 at=backward_received iter=3; freeze peer stage=1 index=1 at=averaging iter=5; join stage=2 iter=6"
    "kill data index=1 at=forward_received iter=2; restart data index=1 iter=4; kill bootstrap iter=5"
    "rate crash=0.1 rejoin=0.5"

Steps are separated by semicolons; iterations count from 1, as the demo prints them. `index` chooses a peer of the stage or a
data peer (default 0); `index=any` is whoever gets to the moment first. `restart` starts a killed peer again, with its identity
and its files, when that iteration begins. Every step must come about: one that does not is told at the end, with exit code 1.

`rate` is what the scenario files have: in every iteration each stage peer crashes with probability `crash`, at a moment that is
uniform in the iteration, and each crashed one starts again with probability `rejoin`. The last living stage peer of a stage is
spared, so that the training goes on. The seed is the run's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec

WHERE = "--churn"
VERBS = ("kill", "freeze", "restart", "join")
AT_A_MOMENT = ("kill", "freeze")
ROLES = ("stage", "data", "bootstrap")
ANY = -1


@dataclass(frozen=True, slots=True)
class ChurnStep:
    """`iteration` counts from 0 here. `moment` is empty for what is done from outside, when the iteration begins.

    `index` may be ANY where there is a moment.
    """

    verb: str
    role: str
    stage: int
    index: int
    moment: str
    iteration: int

    @property
    def target(self) -> str:
        """The demo's name of the peer that the step is about."""
        index = "*" if self.index == ANY else str(self.index)
        return {"stage": f"stage{self.stage}.{index}", "data": f"data{index}"}.get(self.role, self.role)

    def is_about(self, name: str) -> bool:
        """Can it be this peer's?"""
        return fnmatch(name, self.target)

    def __str__(self) -> str:
        when = f" at {self.moment}" if self.moment else ""
        return f"{self.verb} {self.target}{when} in step {self.iteration + 1}"


@dataclass(frozen=True, slots=True)
class ChurnScript:
    steps: tuple[ChurnStep, ...] = ()
    rates: ChurnSpec = field(default_factory=ChurnSpec)


def parse_churn(script: str, moments: tuple[str, ...]) -> ChurnScript:
    """Raises InputError that names the step and the word."""
    texts = [text.strip() for text in script.split(";") if text.strip()]
    rates = [text for text in texts if text.split()[0] == "rate"]
    if len(rates) > 1:
        raise InputError(WHERE, rates[1], "expected rate once")
    steps = tuple(_parse_step(text.split(), text, moments) for text in texts if text not in rates)
    return ChurnScript(steps, _parse_rates(rates[0]) if rates else ChurnSpec())


def _parse_rates(text: str) -> ChurnSpec:
    values = {}
    for word in text.split()[1:]:
        name, _, value = word.partition("=")
        if name not in ("crash", "rejoin"):
            raise InputError(WHERE, text, f"expected crash= or rejoin=, got {word!r}")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = -1.0
        if not 0 <= values[name] <= 1:
            raise InputError(WHERE, text, f"{name}: expected 0 to 1, got {value!r}")
    return ChurnSpec(values.get("crash", 0.0), values.get("rejoin", 0.0))


def _parse_step(words: list[str], text: str, moments: tuple[str, ...]) -> ChurnStep:
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise InputError(WHERE, text, f"expected {', '.join(VERBS)} or rate, got {verb!r}")
    role = rest.pop(0) if rest and "=" not in rest[0] else "stage"
    role = "stage" if role in ("peer", "relay") else role
    if role not in ROLES or (verb == "join" and role != "stage"):
        raise InputError(WHERE, text, f"expected {'peer' if verb == 'join' else 'peer, data, bootstrap'}, got {role!r}")
    values: dict[str, str] = {}
    for word in rest:
        name, equals, value = word.partition("=")
        if not equals or name not in ("stage", "index", "at", "iter"):
            raise InputError(WHERE, text, f"expected stage=, index=, at= or iter=, got {word!r}")
        values[name] = value
    inside = verb in AT_A_MOMENT and role != "bootstrap"
    moment = values.get("at", "forward_received" if inside else "")
    if moment and not inside:
        raise InputError(WHERE, text, "at: this happens when the iteration begins")
    if inside and moment not in moments:
        raise InputError(WHERE, text, f"at: expected one of {', '.join(moments)}, got {moment!r}")
    if inside and values.get("index") == "any":
        values["index"] = ""
    stage = _number(values.get("stage", "1"), "stage", text)
    index = ANY if values.get("index") == "" else _number(values.get("index", "0"), "index", text)
    iteration = _number(values.get("iter", "1"), "iter", text)
    if iteration < 1:
        raise InputError(WHERE, text, "iter: expected 1 or more")
    return ChurnStep(verb, role, stage, index, moment, iteration - 1)


def _number(value: str, name: str, text: str) -> int:
    if not value.isdigit():
        raise InputError(WHERE, text, f"{name}: expected a whole number, got {value!r}")
    return int(value)
