"""What others get of a peer's records: statements that they ask for, and no more of anything than their share."""

from __future__ import annotations

from typing import Any

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.pace import Allowance
from gwtf_p2p.protocol.exchange.stated import OWNER_BYTES, short
from gwtf_p2p.protocol.exchange.table import RecordTable
from gwtf_p2p.protocol.exchange.wanted import MOST_FETCHED
from gwtf_p2p.protocol.ids import PeerId

MOST_REPLY_BYTES = 256 << 10


class Giving:
    """Of one peer. Who has a record in its table has an allowance; all others have one together."""

    def __init__(self, table: RecordTable) -> None:
        self._table = table
        self._calls = Allowance(most=60.0, per_s=12.0, of_all_others=10)
        self._bytes = Allowance(most=1 << 20, per_s=float(64 << 10), of_all_others=4)

    def count_call(self, sender: PeerId, now: float) -> None:
        """Raises RemoteProtocolError when it is one too many."""
        if self._calls.take(self._known(sender), 1.0, now) < 1.0:
            raise RemoteProtocolError("records: asked too often")

    def fetched_by(self, sender: PeerId, header: dict[str, Any], now: float) -> dict[str, Any]:
        """The statements that it asks for, as many as it may have now. Raises RemoteProtocolError."""
        self.count_call(sender, now)
        owners = header.get("owners")
        if not isinstance(owners, bytes) or len(owners) % OWNER_BYTES or len(owners) > MOST_FETCHED * OWNER_BYTES:
            raise RemoteProtocolError(f"records_of: owners: expected at most {MOST_FETCHED} of {OWNER_BYTES} bytes each")
        found: list[list[object]] = []
        left = MOST_REPLY_BYTES
        for start in range(0, len(owners), OWNER_BYTES):
            held = self._table.get(owners[start : start + OWNER_BYTES])
            if held is None:
                continue
            size = len(held.statement.signed)
            if size > left or self._bytes.take(self._known(sender), size, now) < size:
                break
            left -= size
            found.append([held.statement.signed, held.index, held.sign])
        return {"records": found}

    def _known(self, sender: PeerId) -> PeerId | None:
        return sender if self._table.get(short(sender)) is not None else None
