"""Records in the DHT: publish ours, read the others', believe only what its owner signed.

hivemind's `DHTNode` runs in the peer's own event loop, on the peer's own p2pd: hivemind's `DHT` would fork a second process of
315 MB for it (measured). Records live for three periods; a peer publishes once per period.

A record is dropped, and counted in `dropped`, when its subkey is no public key (`owner`), when the peer id inside is not the
hash of that key (`forged`), when it belongs to another run or stage than its key says (`misplaced`), when it speaks another
wire version (`version`) or is no record at all (`format`). Signatures and sizes were checked before (`dht_schema`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from hivemind.dht import DHTNode
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.dht_validation import make_validator, peer_of_owner
from gwtf_p2p.live.discovery.entry import dht_id_of, is_let_in
from gwtf_p2p.live.discovery.holders import Holders
from gwtf_p2p.live.discovery.newest import NewestByOwner
from gwtf_p2p.live.discovery.order_book import KnownOrders, SignedOrder
from gwtf_p2p.live.discovery.run_trust import ANYBODY, NotSecret, TokenNeeded, Trusted, believed, foreign_runs
from gwtf_p2p.live.discovery.signing import OwnedRun, read_owned
from gwtf_p2p.live.discovery.unbroken import Unbroken
from gwtf_p2p.live.libp2p.daemon import Daemon, NetworkUnreachable
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.run_secret import RunSecret, is_sealed
from gwtf_p2p.protocol.errors import OtherWireVersion, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.trust.record_quota import RecordQuota
from gwtf_p2p.protocol.wire.contribution_record import ContributionRecord, decode_contributions
from gwtf_p2p.protocol.wire.receipts import MOST_PAGES, contributions_key
from gwtf_p2p.protocol.wire.records import MOST_DATA_PEERS, StageRecord, decode_stage, encode
from gwtf_p2p.protocol.wire.signed import (
    RUNS_KEY,
    EntryTerms,
    RunNotice,
    decode_notice,
    notice_of,
    orders_key,
    run_key,
    stage_key,
)

logger = logging.getLogger(__name__)

LIFETIME_PERIODS = 3
REPLICAS = 5
"""Peers that keep a record; a reader asks as many. Asking all that are known (hivemind's default, up to 20) costs most of what
the DHT costs a peer. A record that was read counts until it expires, so a holder that is missed now and then hides nobody."""
_STORE_BEAM = REPLICAS + 1
_ANSWER_S = 3.0
_SHUTDOWN_S = 2.0

MOST_RUNS = 1000
"""Of a list of runs, so many are read: anybody can add to it."""

R = TypeVar("R", OwnedRun, StageRecord, RunNotice, SignedOrder, ContributionRecord)


@dataclass(frozen=True, slots=True)
class DhtOptions:
    """`run_id` None: a bootstrap peer, which keeps the records of all runs. `client_mode`: nobody can ask this peer for keys,
    as it must be behind a NAT (records on peers that cannot be reached are lost). `secret`: the run's records are sealed, and
    others are not believed."""

    run_id: RunId | None = None
    period_s: float = 15.0
    client_mode: bool = False
    secret: RunSecret | None = None


class Records(Protocol):
    """What a peer needs to publish itself and see the others: the real `Dht`, or one whose lookups take as long as in an
    emulated network (`emulation.EmulatedDht`)."""

    async def publish_run(self, run: OwnedRun) -> bool:
        """Store the run record, as its owner has signed it, under this peer's key; False when no peer kept it."""

    async def publish_stage(self, record: StageRecord) -> bool:
        """Store this peer's stage record; False when no peer kept it."""

    async def publish_contributions(self, pages: Sequence[ContributionRecord]) -> bool:
        """Store what this data peer says of contributions; False when no peer kept some page of it."""

    async def read_stages(self, run_id: RunId, stages: Iterable[Stage]) -> list[StageRecord]:
        """The newest record of each peer of these stages."""

    async def publish_order(self, order: SignedOrder) -> bool:
        """Pass an order of the owner or an admin on; False when no peer kept it."""

    async def read_orders(self, terms: EntryTerms) -> list[SignedOrder]:
        """The newest order of each who has a say in this run."""


class Dht:
    """The DHT as one peer sees it. Made by `start_dht`. `record_bytes`: of all records published and read so far."""

    def __init__(self, node: DHTNode, identity: Identity, owner: bytes, options: DhtOptions) -> None:
        self.peer_id = identity.peer_id
        self.options = options
        self.dropped: Counter[str] = Counter()
        self.record_bytes = 0
        self._node = node
        self._unbroken = Unbroken()
        self._holders = Holders(node, REPLICAS, get_dht_time)
        self._owner = owner
        self._newest: NewestByOwner[PeerId, StageRecord] = NewestByOwner()
        self._orders, self._quota = KnownOrders(), RecordQuota()
        self._read_before: dict[tuple[str, PeerId], tuple[StageRecord, float]] = {}

    async def publish_run(self, run: OwnedRun) -> bool:
        """Store the run record, as its owner has signed it, and its line in the list of runs, under this peer's key; False when
        no peer kept it."""
        await self._publish(RUNS_KEY, encode(notice_of(run.record)))
        return await self._publish(run_key(run.record.run_id), run.signed)

    async def publish_order(self, order: SignedOrder, lifetime_s: float | None = None) -> bool:
        """Pass an order on, as its issuer has signed it; False when no peer kept it. `lifetime_s` None: as long as records."""
        of = order.order
        return await self._publish(orders_key(of.run_id, of.issuer), order.signed, lifetime_s)

    async def read_orders(self, terms: EntryTerms) -> list[SignedOrder]:
        """The newest order of each who has a say in this run; those that they have not signed are dropped."""
        keys = {orders_key(terms.run_id, issuer): issuer for issuer in terms.issuers}
        entries = await self._read(list(keys))
        newest: dict[PeerId, SignedOrder] = {}
        for key, issuer in keys.items():
            for _, read, _ in self._decoded(key, entries[key], partial(self._orders.read, issuer)):
                held = newest.get(issuer)
                is_newer = held is None or read.order.sequence_number > held.order.sequence_number
                if read.order.issuer == issuer and read.order.run_id == terms.run_id and is_newer:
                    newest[issuer] = read
        return [newest[issuer] for issuer in sorted(newest)]

    async def publish_stage(self, record: StageRecord) -> bool:
        """Store this peer's stage record; False when no peer kept it. Raises ValueError above 8 KiB."""
        assert record.peer == self.peer_id, "others would drop a record that does not name its signer"
        return await self._publish(stage_key(record.run_id, record.stage), encode(record))

    async def publish_contributions(self, pages: Sequence[ContributionRecord]) -> bool:
        """Store every page; False when no peer kept some of it. Raises ValueError above 8 KiB."""
        kept = [await self._publish(contributions_key(page.run_id, page.page), encode(page)) for page in pages]
        return all(kept)

    async def read_contributions(self, run_id: RunId, data_peers: Collection[PeerId]) -> list[ContributionRecord]:
        """All pages that these publish of what the peers have contributed; whom of them to believe, the reader decides."""
        found: list[ContributionRecord] = []
        decode, pages = _of_anybody(decode_contributions), 1
        for page in range(MOST_PAGES):
            if page == pages:
                break
            key = contributions_key(run_id, page)
            entries = (await self._read([key]))[key]
            read = self._decoded(key, entries, decode, of=data_peers)
            for peer, record, _ in islice(read, MOST_DATA_PEERS):
                if record.peer != peer:
                    self._drop("forged", peer, f"names {record.peer}")
                elif record.run_id != run_id or record.page != page:
                    self._drop("misplaced", peer, f"is page {record.page} of run {record.run_id}, under {key}")
                else:
                    found.append(record)
                    pages = max(pages, record.pages)
        return found

    async def read_run(self, run_id: RunId, trusted: Trusted = ANYBODY) -> OwnedRun | None:
        """The run record of the owner that is to be believed (`protocol/trust/owners`), None when there is none at all.

        Many peers publish a record that one has signed, so that it outlives its owner. Raises RunConflict; OtherWireVersion
        when there is a record and none that this version can read. Whatever it raises, strangers may have brought about.
        """
        key = run_key(run_id)
        entries = (await self._read([key]))[key]
        foreign: dict[PeerId, OtherWireVersion] = {}
        found = _by_owner(run_id, self._decoded(key, entries, _of_anybody(read_owned), foreign))
        if not found:
            self._refuse_sealed(run_id, entries, trusted)
        if not found and (counting := foreign_runs(foreign, trusted)):
            raise counting[0]
        return believed(run_id, found, trusted)

    def _refuse_sealed(self, run_id: RunId, entries: Any, trusted: Trusted) -> None:
        """No record of the run can be read. Raises NotSecret when some could be without a token, TokenNeeded when some are
        sealed otherwise."""
        if self.options.secret is not None:
            owners = _by_owner(run_id, self._decoded(run_key(run_id), entries, _of_anybody(read_owned), sealed=False))
            if owners and trusted.named in (None, *owners):
                raise NotSecret(run_id)
        if _any_sealed(entries):
            why = (
                "its token is another one" if self.options.secret is not None else "it is secret: expected its token (--token)"
            )
            raise TokenNeeded(run_id, why)

    async def read_runs(self) -> list[RunNotice]:
        """The runs whose data peers publish on this DHT, by id; of several with one id, one."""
        entries = (await self._read([RUNS_KEY]))[RUNS_KEY]
        found = {
            notice.run_id: notice
            for _, notice, _ in islice(self._decoded(RUNS_KEY, entries, _of_anybody(decode_notice)), MOST_RUNS)
        }
        return [found[run_id] for run_id in sorted(found)]

    async def read_stages(self, run_id: RunId, stages: Iterable[Stage]) -> list[StageRecord]:
        """All living records of these stages, by stage and peer. A peer that moved can be in two of them for a while."""
        keys = {stage_key(run_id, stage): stage for stage in stages}
        entries = await self._read(list(keys))
        for key, stage in keys.items():
            for peer, record, expires_at in self._decoded(key, entries[key], self._decode_stage):
                if record.peer != peer:
                    self._drop("forged", peer, f"names {record.peer}")
                elif record.run_id != run_id or record.stage != stage:
                    self._drop("misplaced", peer, f"is of run {record.run_id}, stage {record.stage}, under {key}")
                elif expires_at >= self._read_before.get((key, peer), (None, 0.0))[1]:
                    self._read_before[key, peer] = record, expires_at
        now = get_dht_time()
        self._read_before = {at: read for at, read in self._read_before.items() if read[1] > now}
        records = [record for (key, _), (record, _) in self._read_before.items() if key in keys]
        return sorted(records, key=lambda record: (record.stage, record.peer))

    async def time_of(self, peer: PeerId, deadline_s: float = _ANSWER_S) -> float:
        """The clock of another peer, in seconds since the epoch. Raises RemoteProtocolError when it does not answer.

        It is hivemind's DHT ping, which every DHT peer answers, bootstrap peers of other programs too.
        """
        request = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(), validate=False)
        stub = self._node.protocol.get_stub(PeerID.from_base58(peer))
        try:
            response = await stub.rpc_ping(request, timeout=deadline_s)
        except Exception as error:  # hivemind raises whatever the other end's p2pd or the serialiser brings up
            raise RemoteProtocolError(f"{peer[-6:]} does not tell its time: {error!r}") from error
        return float(response.dht_time)

    async def greet(self, peer: PeerId) -> bool:
        """Have a DHT peer in the routing table if it answers, and forget that it did not answer before."""
        peer_id = PeerID.from_base58(peer)
        if await self._node.protocol.call_ping(peer_id, validate=False, strict=False) is None:
            return False
        self._node.blacklist.register_success(peer_id)
        return True

    async def stop(self) -> None:
        """Leave the DHT. Our records stay until they expire."""
        await self._unbroken.ended(_SHUTDOWN_S)
        self._node.is_alive = False
        if self._node.cache_refresh_task is not None:
            self._node.cache_refresh_task.cancel()
        with suppress(TimeoutError):  # hivemind waits for its own p2pd without end, even when that is gone
            async with asyncio.timeout(_SHUTDOWN_S):
                await self._node.shutdown()

    async def _publish(self, key: str, value: bytes, lifetime_s: float | None = None) -> bool:
        if self.options.secret is not None and key != RUNS_KEY:
            value = self.options.secret.seal(value, key, self.peer_id)
        self.record_bytes += len(value)
        expiry = get_dht_time() + (lifetime_s or LIFETIME_PERIODS * self.options.period_s)
        stored = await self._unbroken(self._holders.store(key, value, expiry, self._owner))
        if stored or await self._unbroken(self._node.store(key, value, expiry, subkey=self._owner, beam_size=_STORE_BEAM)):
            return True
        # hivemind tells the answer of the last machine alone, and one that another has given this record meanwhile refuses it.
        entries = (await self._read([key]))[key]
        return isinstance(entries, dict) and self._owner in entries and entries[self._owner].expiration_time >= expiry

    async def _read(self, keys: list[str]) -> dict[str, Any]:
        asking = self._node.get_many(keys, sufficient_expiration_time=float("inf"), beam_size=REPLICAS)
        found: dict[str, Any] = await self._unbroken(asking)
        return {key: entry.value if entry is not None else {} for key, entry in found.items()}

    def _decoded(
        self,
        key: str,
        entries: Any,
        decode: Callable[[PeerId, bytes], R],
        foreign: dict[PeerId, OtherWireVersion] | None = None,
        *,
        of: Collection[PeerId] | None = None,
        sealed: bool = True,
    ) -> Iterator[tuple[PeerId, R, float]]:
        """Owner, record and expiry (hivemind's DHT time) of each entry that can be read; `foreign` takes those that cannot.
        `of`: only of these owners. `sealed` False: as anybody reads them, who has no token."""
        if not isinstance(entries, dict):
            self._drop("format", None, "a plain value where a map of owners is due")
            return
        chosen = self._quota.chosen(key, entries) if of is None else list(entries.items())
        if len(chosen) < len(entries):
            self.dropped["too many"] += len(entries) - len(chosen)
        for subkey, (value, expires_at) in chosen:
            try:
                peer = peer_of_owner(subkey)
            except RemoteProtocolError as error:
                self._drop("owner", None, str(error))
                continue
            if of is not None and peer not in of:
                continue
            try:
                self.record_bytes += len(value)
                yield peer, decode(peer, self._unsealed(key, peer, value) if sealed else value), expires_at
            except RemoteProtocolError as error:
                if isinstance(error, OtherWireVersion):
                    self._drop("version", peer, str(error))
                    if foreign is not None:
                        foreign[peer] = error
                else:
                    self._drop("format", peer, str(error))

    def _unsealed(self, key: str, publisher: PeerId, value: bytes) -> bytes:
        """Raises RemoteProtocolError for what is sealed otherwise than this run's records are."""
        if self.options.secret is None or key == RUNS_KEY:
            return value
        record = self.options.secret.unseal(value, key, publisher)
        if record is None:
            raise RemoteProtocolError("not sealed with the token of this run")
        return record

    def _decode_stage(self, owner: PeerId, data: bytes) -> StageRecord:
        """Most of what is read was read two seconds ago as well. Raises RemoteProtocolError."""
        known = self._newest.get(owner, data)
        if known is None:
            known = decode_stage(data)
            self._newest.put(owner, data, known)
        return known

    def _drop(self, reason: str, peer: PeerId | None, detail: str) -> None:
        self.dropped[reason] += 1
        logger.debug("dropped the record of %s: %s: %s", peer, reason, detail)


async def start_dht(daemon: Daemon, identity: Identity, options: DhtOptions) -> Dht:
    """Join the DHT through the daemon's initial peers; without any, be its first peer.

    Raises NetworkUnreachable when none of the initial peers answers as a DHT peer does, InputError for a bad run id.
    """
    assert daemon.peer_id == identity.peer_id, "records are signed by the key that libp2p runs with"
    validator, owner = make_validator(identity.key, options.run_id)
    initial = daemon.options.initial_peers
    node = await DHTNode.create(
        daemon.p2p,
        node_id=dht_id_of(identity.peer_id),
        client_mode=options.client_mode,
        record_validator=validator,
        wait_timeout=_ANSWER_S,
        num_replicas=REPLICAS,
        cache_locally=False,  # records change every period: an old one must not answer for a new one
        cache_nearest=0,
    )
    if initial and not await is_let_in(node, {peer.peer for peer in initial}, _ANSWER_S):
        await node.shutdown()
        raise NetworkUnreachable([(peer.text, "is reached, but answers no DHT ping") for peer in initial])
    return Dht(node, identity, owner, options)


def _of_anybody(decode: Callable[[bytes], R]) -> Callable[[PeerId, bytes], R]:
    """For records that are read too seldom to remember."""
    return lambda owner, data: decode(data)


def _by_owner(run_id: RunId, found: Iterable[tuple[PeerId, OwnedRun, float]]) -> dict[PeerId, list[OwnedRun]]:
    """Of the run records that were read, those of this run."""
    owned: dict[PeerId, list[OwnedRun]] = {}
    for _, run, _ in found:
        if run.record.run_id == run_id:
            owned.setdefault(run.owner, []).append(run)
    return owned


def _any_sealed(entries: Any) -> bool:
    """Some are records of a secret run."""
    return isinstance(entries, dict) and any(is_sealed(value) for value, _ in entries.values())
