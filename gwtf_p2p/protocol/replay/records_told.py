"""How an event log tells of records: a new one whole, a known one by what has changed in it.

Most of a record are its links, whose ages change each time that it is published; in a log of a large swarm whole records would
be nearly all of it. Of links that the record before had, therefore, their places there are told, and what has changed: `3` is
the fourth of them as it was, `[3, {"age_s": 5.0}]` the same at another age. A link to another peer is told whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.records import StageRecord

Plain = dict[str, Any]

_LINKS = "links"


def changes(before: StageRecord, now: StageRecord) -> Plain:
    """What of a peer's record is not as in the one before, and whose it is."""
    old, new = _plain(before), _plain(now)
    changed = {name: value for name, value in new.items() if value != old[name]}
    if _LINKS in changed:
        known = {link["to"]: (place, link) for place, link in enumerate(old[_LINKS])}
        changed[_LINKS] = [_link(link, known.get(link["to"])) for link in new[_LINKS]]
    return {**changed, "peer": now.peer}


def changed_record(before: Mapping[PeerId, StageRecord], changed: Any) -> StageRecord:
    """The record that differs from the one before by these changes. Raises RemoteProtocolError."""
    told: Plain = from_plain(dict, changed, "changed")
    former = before.get(PeerId(str(told.get("peer"))))
    if former is None:
        raise RemoteProtocolError(f"changed.peer: expected one of whom there is a record, got {told.get('peer')!r:.80}")
    old = _plain(former)
    if _LINKS in told:
        told[_LINKS] = [_whole(link, old[_LINKS]) for link in from_plain(list, told[_LINKS], "changed.links")]
    record: StageRecord = from_plain(StageRecord, {**old, **told}, "changed")
    return record


def _plain(record: StageRecord) -> Plain:
    plain: Plain = to_plain(record)
    return plain


def _link(link: Plain, known: tuple[int, Plain] | None) -> int | list[Any] | Plain:
    if known is None:
        return link
    place, former = known
    changed = {name: value for name, value in link.items() if value != former[name]}
    return [place, changed] if changed else place


def _whole(told: Any, former: list[Plain]) -> Plain:
    """Raises RemoteProtocolError."""
    if isinstance(told, dict):
        return told
    place, changed = told if isinstance(told, list) and len(told) == 2 else (told, {})
    if type(place) is not int or not 0 <= place < len(former) or not isinstance(changed, dict):
        raise RemoteProtocolError(f"changed.links: expected a link, or which of the {len(former)} before, got {told!r:.80}")
    return {**former[place], **changed}
