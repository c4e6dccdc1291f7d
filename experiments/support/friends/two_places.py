"""Two places whose line can be cut, each with as many friends as one likes: a topology of the lab (`experiments.lab`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiments.lab.lab import Lab, why_unavailable
from experiments.lab.processes import inside_command
from experiments.lab.topology import load_topology

LOOPBACK = "127.0.0.1"
HERE, THERE = "here", "there"


class NoTwoPlaces(Exception):
    """There can be none on this machine; the message says why."""


@dataclass
class Places:
    """`there`: the names of the friends who live in the second place; all others live in the first."""

    lab: Lab
    there: set[str] = field(default_factory=set)

    def of(self, friend: str) -> str:
        """HERE or THERE."""
        return THERE if friend in self.there else HERE

    def ip(self, friend: str) -> str:
        """Of the place where this friend lives."""
        return self.lab.public_address(self.of(friend))

    def typed(self, friend: str, command: Sequence[str]) -> list[str]:
        """The command as it is started where this friend lives, listening there."""
        ip = self.ip(friend)
        words = [word.replace(LOOPBACK, ip) if word.startswith(f"/ip4/{LOOPBACK}") else word for word in command]
        return inside_command(self.lab.namespace(self.of(friend)), words)

    def cut(self) -> None:
        """Nothing gets from one place to the other any more, and nobody is told."""
        self.lab.set_up(THERE, False)

    def mend(self) -> None:
        """The line is there again."""
        self.lab.set_up(THERE, True)


@contextmanager
def two_places() -> Iterator[Places]:
    """Raises NoTwoPlaces."""
    why = why_unavailable()
    if why:
        raise NoTwoPlaces(why)
    with Lab(load_topology("two_places")) as lab:
        yield Places(lab)
