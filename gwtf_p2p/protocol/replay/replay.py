"""A log through the machine once more: same effects, or the first difference.

Nothing is simulated: what the network, the device and the clock did is in the events. So a difference means that this program
decides differently from the one that wrote the log, that the log was changed, or that a decision hangs on something that is
not an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gwtf_p2p.protocol.core.context import SignedBy, nobodys
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.factory import compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.replay.log import Happened, LogReader, Opening, effect_to_plain


@dataclass(frozen=True, slots=True)
class Difference:
    """In `line` of the log, where the event was fed: what it says came back, and what has come back now."""

    line: int
    event: str
    now: float
    expected: list[dict[str, Any]]
    got: list[dict[str, Any]]
    expected_raised: str = ""
    got_raised: str = ""

    @property
    def first(self) -> int:
        """The place of the first effect that differs."""
        pairs = zip(self.expected, self.got, strict=False)
        return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(self.expected), len(self.got)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """`events` gave the same effects. `torn`: the last line is not whole, as after a crash, and was left out."""

    events: int
    machines: int
    difference: Difference | None = None
    torn: bool = False


def replay(
    lines: Iterable[str],
    where: str,
    verify: Callable[[RunId, str, str, str], bool] | None = None,
    verifier: Callable[[RunId], SignedBy] = lambda run_id: nobodys,
) -> Replayed:
    """Up to the first difference. `verify` and `verifier`: how the peers of live runs looked at signatures.

    Raises InputError that names the line when it is none of a log."""
    reader = LogReader()
    machine: StagePeer | DataPeer | None = None
    events = machines = 0
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return Replayed(events, machines, torn=True)
        try:
            told = reader.read(line)
        except RemoteProtocolError as error:
            raise InputError(f"{where}:{number}", "", str(error)) from error
        if isinstance(told, Opening):
            run = told.run
            of_run = partial(verify, run.run_id) if verify is not None and run is not None else None
            machine = compose(told.settings, verify=of_run, signed_by=verifier(run.run_id) if run is not None else nobodys)
            machine.measured(told.measured)
            machines += 1
            continue
        if machine is None:
            raise InputError(f"{where}:{number}", "", "expected the settings of a peer before its first event")
        difference = _repeat(machine, told, number)
        if difference is not None:
            return Replayed(events, machines, difference)
        events += 1
    if not machines:
        raise InputError(where, "", "expected an event log, got an empty file")
    return Replayed(events, machines)


def _repeat(machine: StagePeer | DataPeer, told: Happened, line: int) -> Difference | None:
    got: list[dict[str, Any]] = []
    raised = ""
    try:
        got = [effect_to_plain(effect) for effect in machine.handle(told.event, told.now)]
    except Exception as error:  # noqa: BLE001  our own bug, of whatever kind: the log may tell of the same
        raised = repr(error)
    if got == told.effects and raised == told.raised:
        return None
    return Difference(line, type(told.event).__name__, told.now, told.effects, got, told.raised, raised)
