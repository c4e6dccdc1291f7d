"""Two places whose line can be cut: two network namespaces with a cable between them, which needs root and Linux."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.1"
HERE, THERE = 0, 1


class NoTwoPlaces(Exception):
    """There can be none on this machine; the message says why."""


@dataclass
class Places:
    """`there`: the names of the friends who live in the second place; all others live in the first."""

    names: tuple[str, str]
    ips: tuple[str, str] = ("10.77.0.1", "10.77.0.2")
    there: set[str] = field(default_factory=set)

    def of(self, friend: str) -> int:
        """HERE or THERE."""
        return THERE if friend in self.there else HERE

    def ip(self, friend: str) -> str:
        """Of the place where this friend lives."""
        return self.ips[self.of(friend)]

    def typed(self, friend: str, command: Sequence[str]) -> list[str]:
        """The command as it is started where this friend lives, listening there."""
        listening = [
            word.replace(LOOPBACK, self.ip(friend)) if word.startswith(f"/ip4/{LOOPBACK}") else word for word in command
        ]
        return ["ip", "netns", "exec", self.names[self.of(friend)], *listening]

    def cut(self) -> None:
        """Nothing gets from one place to the other any more, and nobody is told."""
        _ip("-n", self.names[THERE], "link", "set", "line", "down")

    def mend(self) -> None:
        """The line is there again."""
        _ip("-n", self.names[THERE], "link", "set", "line", "up")


@contextmanager
def two_places() -> Iterator[Places]:
    """Raises NoTwoPlaces."""
    places = Places((f"friends{os.getpid()}-here", f"friends{os.getpid()}-there"))
    made = []
    try:
        for name in places.names:
            _ip("netns", "add", name)
            made.append(name)
        here, there = places.names
        _ip("link", "add", "line", "netns", here, "type", "veth", "peer", "name", "line", "netns", there)
        for name, ip in zip(places.names, places.ips, strict=True):
            _ip("-n", name, "addr", "add", f"{ip}/24", "dev", "line")
            for device in ("line", "lo"):
                _ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(made)
        raise NoTwoPlaces("network namespaces need root, Linux and iproute2") from error
    try:
        yield places
    finally:
        _remove(made)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        _ip("netns", "del", name)
