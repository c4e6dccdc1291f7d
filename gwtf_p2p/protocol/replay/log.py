"""The lines of an event log: JSON objects, one for each event that a machine was fed, with what came back.

- The first line of a machine is an `Opening`: its settings, what it had measured before it was up, and, for whoever reads the
  log, the run and the version of the program. A log may hold several machines one after the other, as a peer that moves to
  another stage or starts again has one each.
- Every other line names the event, its fields, when it was (`now`, seconds of the peer's clock), and the `effects`.
- A view is told by what has changed since the one before: the records of peers that are new, what has changed in those of the
  others (`records_told`), and the peers that are gone.
- Where the machine failed, `raised` says with what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args, get_type_hints

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.factory import PeerSettings, RouterChoice
from gwtf_p2p.protocol.replay.records_told import changed_record, changes
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.messages import from_header, to_header
from gwtf_p2p.protocol.wire.records import RunRecord, StageRecord

FORMAT = 2
READABLE = (1, FORMAT)
"""In format 1 all records of a view that had changed were told whole."""

OPENING = "Composed"
"""What the first line of a machine has instead of an event's name."""

_EVENTS: dict[str, Any] = {kind.__name__: kind for kind in get_args(ev.Event)}


@dataclass(frozen=True, slots=True)
class Opening:
    """`measured`: seconds of one microbatch by work, timed before the first event. `version` is the program's."""

    settings: PeerSettings
    measured: Mapping[ev.Work, float]
    version: str
    run: RunRecord | None = None
    shard: int = -1


@dataclass(frozen=True, slots=True)
class Happened:
    """One event, and what came back: effects in plain form, and the failure of the machine, if it was one."""

    event: ev.Event
    now: float
    effects: list[dict[str, Any]] = field(default_factory=list)
    raised: str = ""


class LogWriter:
    """Makes lines. It knows the view that was told last."""

    def __init__(self) -> None:
        self._view: NetworkView | None = None

    def opening(self, opening: Opening) -> str:
        """The first line of a machine."""
        self._view = None
        return _line({"event": OPENING, "format": FORMAT, **to_plain(opening), "measured": _measured(opening)})

    def happened(self, event: ev.Event, now: float, effects: Sequence[ef.Effect], raised: str = "") -> str:
        """The line of one event."""
        plain: dict[str, Any] = {"now": now, "event": type(event).__name__}
        if isinstance(event, ev.ViewChanged):
            plain["view"] = self._news(event.view)
        else:
            plain |= _with_message(event)
        plain["effects"] = [effect_to_plain(effect) for effect in effects]
        return _line({**plain, "raised": raised} if raised else plain)

    def _news(self, view: NetworkView) -> dict[str, Any]:
        former, self._view = self._view, view
        if view is former:
            return {"same": True}
        before = former.records if former is not None else {}
        return {
            "stages": view.stages,
            "microbatch_bytes": view.microbatch_bytes,
            "gradient_bytes": view.gradient_bytes,
            "end_bytes": view.end_bytes,
            "records": [to_plain(record) for peer, record in view.records.items() if peer not in before],
            "changed": [changes(before[p], r) for p, r in view.records.items() if p in before and before[p] != r],
            "gone": [peer for peer in before if peer not in view.records],
        }


class LogReader:
    """Reads lines, one after the other. Raises RemoteProtocolError for what is no line of a log."""

    def __init__(self) -> None:
        self._view: NetworkView | None = None

    def read(self, line: str) -> Opening | Happened:
        plain = _object(line)
        if plain.get("event") == OPENING:
            self._view = None
            return _opening_of(plain)
        name, now, effects = plain.pop("event", None), plain.pop("now", None), plain.pop("effects", None)
        kind = _EVENTS.get(str(name))
        if kind is None:
            raise RemoteProtocolError(f"event: expected one of {OPENING}, {', '.join(_EVENTS)}, got {name!r:.80}")
        if not isinstance(effects, list) or not all(isinstance(effect, dict) for effect in effects):
            raise RemoteProtocolError(f"effects: expected a list of effects, got {effects!r:.80}")
        at: float = from_plain(float, now, "now")
        event: ev.Event = self._event(kind, plain)
        return Happened(event, at, effects, str(plain.get("raised", "")))

    def _event(self, kind: Any, plain: Mapping[str, Any]) -> Any:
        found: dict[str, Any] = {}
        for name, hint in _hints(kind).items():
            if name not in plain:
                continue
            value = plain[name]
            if name == "view":
                found[name] = self._next_view(value)
            elif name == "message":
                found[name] = from_header(from_plain(dict, value, name))
            elif name == "loss" and isinstance(value, float):
                found[name] = value  # also one that is not finite: training that fails is told as it was
            else:
                found[name] = from_plain(hint, value, name)
        try:
            return kind(**found)
        except TypeError as error:
            raise RemoteProtocolError(f"{kind.__name__}: {error}") from error

    def _next_view(self, plain: Any) -> NetworkView:
        told: dict[str, Any] = from_plain(dict, plain, "view")
        if told.get("same") and self._view is not None:
            return self._view
        gone = set(from_plain(tuple[PeerId, ...], told.get("gone"), "view.gone"))
        fresh = from_plain(tuple[StageRecord, ...], told.get("records"), "view.records")
        before = self._view.records if self._view is not None else {}
        fresh += tuple(changed_record(before, each) for each in from_plain(list, told.get("changed", []), "view.changed"))
        changed = gone | {record.peer for record in fresh}
        kept = [record for peer, record in before.items() if peer not in changed]
        sizes = ("stages", "microbatch_bytes", "gradient_bytes")
        stages, forth, back = (from_plain(int, told.get(name), f"view.{name}") for name in sizes)
        end: int | None = from_plain(int | None, told.get("end_bytes"), "view.end_bytes")
        self._view = NetworkView.of([*kept, *fresh], stages, forth, self._view, back, end)
        return self._view


def effect_to_plain(effect: ef.Effect) -> dict[str, Any]:
    """As it is after JSON, so that what was read can be compared with what has come anew."""
    plain: dict[str, Any] = json.loads(json.dumps({"effect": type(effect).__name__, **_with_message(effect)}, default=_text))
    return plain


def _with_message(what: ev.Event | ef.Effect) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(what)
    if isinstance(what, ev.Offered | ev.Delivered | ev.DeliveryBroken | ev.Received | ev.SendFailed | ef.Push | ef.Send):
        plain["message"] = to_header(what.message)
    return plain


def _opening_of(plain: dict[str, Any]) -> Opening:
    if plain.get("format") not in READABLE:
        raise RemoteProtocolError(f"format: this program reads formats to {FORMAT}, the log says {plain.get('format')!r:.40}")
    settings: dict[str, Any] = from_plain(dict, plain.get("settings"), "settings")
    router: dict[str, Any] = from_plain(dict, settings.get("router"), "settings.router")
    try:
        name: str = from_plain(str, router.get("name"), "settings.router.name")
        own = from_plain(type(default_config(name)), router.get("settings"), "settings.router.settings")
        choice = RouterChoice(name, own, from_plain(int, router.get("seed"), "settings.router.seed"))
        composed: PeerSettings = from_plain(PeerSettings, {**settings, "router": None}, "settings")
    except ValueError as error:
        raise RemoteProtocolError(f"settings: {error}") from error
    measured: dict[str, float] = from_plain(Mapping[str, float], plain.get("measured"), "measured")
    return Opening(
        settings=replace(composed, router=choice),
        measured={from_plain(ev.Work, work, "measured"): seconds for work, seconds in measured.items()},
        version=from_plain(str, plain.get("version"), "version"),
        run=from_plain(RunRecord | None, plain.get("run"), "run"),
        shard=from_plain(int, plain.get("shard"), "shard"),
    )


def _measured(opening: Opening) -> dict[str, float]:
    return {work.value: seconds for work, seconds in opening.measured.items()}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _object(line: str) -> dict[str, Any]:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise RemoteProtocolError(f"expected a JSON object ({error})") from error
    if not isinstance(plain, dict):
        raise RemoteProtocolError(f"expected a JSON object, got {line!r:.80}")
    return plain


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, default=_text) + "\n"


def _text(value: object) -> object:
    """Of what a report may hold besides plain values."""
    return sorted(map(str, value)) if isinstance(value, AbstractSet) else str(value)
