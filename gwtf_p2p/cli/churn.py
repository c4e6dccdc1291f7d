"""The script of `gwtf demo --churn`: faults and joins as data.

    "kill relay stage=2 at=backward_received iter=3; freeze relay stage=1 index=1 at=averaging iter=5; join stage=2 iter=6"

Steps are separated by semicolons; iterations count from 1, as the demo prints them. `index` chooses a relay of the stage
(default 0). Every step must come about: one that does not is told at the end, with exit code 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.errors import InputError

WHERE = "--churn"
VERBS = ("kill", "freeze", "join")


@dataclass(frozen=True, slots=True)
class ChurnStep:
    """`iteration` counts from 0 here. `moment` is empty for a join."""

    verb: str
    role: str
    stage: int
    index: int
    moment: str
    iteration: int

    @property
    def target(self) -> str:
        """The demo's name of the peer that the step is about."""
        return f"relay{self.stage}.{self.index}" if self.role == "relay" else f"data{self.index}"

    def __str__(self) -> str:
        when = f" at {self.moment}" if self.moment else ""
        return f"{self.verb} {self.target}{when} in step {self.iteration + 1}"


def parse_churn(script: str, moments: tuple[str, ...]) -> list[ChurnStep]:
    """Raises InputError that names the step and the word."""
    return [_parse_step(text.split(), text.strip(), moments) for text in script.split(";") if text.strip()]


def _parse_step(words: list[str], text: str, moments: tuple[str, ...]) -> ChurnStep:
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise InputError(WHERE, text, f"expected {', '.join(VERBS)}, got {verb!r}")
    role = rest.pop(0) if rest and "=" not in rest[0] else "relay"
    if role not in ("relay", "data"):
        raise InputError(WHERE, text, f"expected relay or data, got {role!r}")
    values: dict[str, str] = {}
    for word in rest:
        name, equals, value = word.partition("=")
        if not equals or name not in ("stage", "index", "at", "iter"):
            raise InputError(WHERE, text, f"expected stage=, index=, at= or iter=, got {word!r}")
        values[name] = value
    moment = values.get("at", "" if verb == "join" else "forward_received")
    if verb != "join" and moment not in moments:
        raise InputError(WHERE, text, f"at: expected one of {', '.join(moments)}, got {moment!r}")
    numbers = {name: _number(values.get(name, "1" if name == "stage" else "0"), name, text) for name in ("stage", "index")}
    iteration = _number(values.get("iter", "1"), "iter", text)
    if iteration < 1:
        raise InputError(WHERE, text, "iter: expected 1 or more")
    return ChurnStep(verb, role, numbers["stage"], numbers["index"], moment, iteration - 1)


def _number(value: str, name: str, text: str) -> int:
    if not value.isdigit():
        raise InputError(WHERE, text, f"{name}: expected a whole number, got {value!r}")
    return int(value)
