"""Which DHT records a peer stores, passes on and believes.

Three validators of hivemind, asked in this order by every peer before it stores or believes a record:
1. `RSASignatureValidator`: it is signed by the key that its subkey names, over key, subkey, value and expiry.
2. `RecordBounds`: it has such a subkey, its value is bytes, at most 8 KiB (and what sealing adds), and it does not outlive an
   hour. Without it anybody could fill the swarm's memory for good.
3. `SchemaValidator`: under the keys of our run, it is a map from owner to bytes.

The bytes are the msgpack of a record (`protocol/wire/records`), decoded and checked by its reader (`dht`): a peer passes on
records of versions that it cannot read itself.

Trap: hivemind drops *all* records of a key when one of them fails a validator of the reader. So the schema, which bootstrap
peers do not have (they serve any run), must refuse nothing that the first two let through; else one bad record that a bootstrap
peer has stored would hide everybody else's.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pydantic.v1 as pydantic
from cryptography.hazmat.primitives.asymmetric import rsa
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.routing import DHTID
from hivemind.dht.schema import BytesWithPublicKey, SchemaValidator
from hivemind.dht.validation import CompositeValidator, DHTRecord, RecordValidatorBase
from hivemind.utils.crypto import RSAPrivateKey
from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.newest import MOST_OWNERS, NewestByOwner
from gwtf_p2p.live.libp2p.identity import key_bytes, peer_id_of_key
from gwtf_p2p.live.libp2p.run_secret import SEAL_BYTES
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import MAX_RECORD_BYTES
from gwtf_p2p.protocol.wire.signed import keys_of_run

MAX_LIFETIME_S = 3600.0
_OWNER_KEY_BYTES = 1024  # 388 with RSA-2048
_OWNER = re.compile(RSASignatureValidator.PUBLIC_KEY_REGEX)


def make_validator(key: rsa.RSAPrivateKey, run_id: RunId | None) -> tuple[RecordValidatorBase, bytes]:
    """The validators of a peer, and the subkey under which it publishes.

    Without a run (a bootstrap peer) every run's records pass if they are owned, small and signed. Raises InputError for a run
    id that pydantic would not take as a field name.
    """
    signatures = RSASignatureValidator(_signing(key))
    validators: list[RecordValidatorBase] = [signatures, RecordBounds()]
    if run_id is not None:
        validators.append(RunSchema(run_id))
    return Remembering(validators), signatures.local_public_key


def _signing(key: rsa.RSAPrivateKey) -> RSAPrivateKey:
    """The key as hivemind wants it: its class has no constructor from bytes, but it unpickles from them."""
    signing = RSAPrivateKey.__new__(RSAPrivateKey)
    signing.__setstate__({"_private_key": key_bytes(key)})
    return signing


class Remembering(CompositeValidator):  # type: ignore[misc]  # hivemind has no types
    """Asks the validators once for each record: a peer reads the same ones every few seconds, from every holder of a key, and
    a signature and a schema cost a millisecond (a quarter of an idle peer's CPU, experiments/bench/profile.py).

    Only what was valid is remembered, the newest record of each owner under each key, with its expiry: that stays valid.
    """

    def __init__(self, validators: list[RecordValidatorBase]) -> None:
        super().__init__(validators)
        self._known: NewestByOwner[tuple[bytes, bytes], float] = NewestByOwner()

    def validate(self, record: DHTRecord) -> bool:
        owner = record.key, record.subkey
        if self._known.get(owner, record.value) == record.expiration_time:
            return True
        valid = bool(super().validate(record))
        if valid:
            self._known.put(owner, record.value, record.expiration_time)
        return valid


class RecordBounds(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """See the module, rule 2."""

    def validate(self, record: DHTRecord) -> bool:
        return (
            len(record.subkey) <= _OWNER_KEY_BYTES
            and _is_owner(_bytes_in(record.subkey))
            and record.expiration_time <= get_dht_time() + MAX_LIFETIME_S
            and (value := _bytes_in(record.value)) is not None
            and len(value) <= MAX_RECORD_BYTES + SEAL_BYTES
        )

    @property
    def priority(self) -> int:
        return 5  # after the signature (10), which is cut off the value by then; before the schema (0)


def peer_of_owner(subkey: Any) -> PeerId:
    """The peer whose public key a subkey names. Raises RemoteProtocolError when it names none."""
    match = _OWNER.fullmatch(subkey) if isinstance(subkey, bytes) else None
    if match is None:
        raise RemoteProtocolError("owner: the subkey is no public key")
    try:
        return _peer_of_key(match[1])
    except ValueError as error:
        raise RemoteProtocolError(f"owner: {error}") from error


@lru_cache(maxsize=MOST_OWNERS)
def _peer_of_key(public_key: bytes) -> PeerId:
    """Raises ValueError."""
    return peer_id_of_key(public_key)


def _is_owner(subkey: bytes | None) -> bool:
    """One public key, and nothing around it: else one key could own any number of records, which every reader looks at."""
    return subkey is not None and _OWNER.fullmatch(subkey) is not None and subkey.count(b"[owner:") == 1


def _bytes_in(packed: bytes) -> bytes | None:
    """The byte string that `packed` is in msgpack (bin 8 or bin 16), None when it is anything else."""
    for mark, head in ((b"\xc4", 2), (b"\xc5", 3)):
        if packed[:1] == mark and int.from_bytes(packed[1:head]) == len(packed) - head:
            return packed[head:]
    return None


class RunSchema(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """See the module, rule 3: a `SchemaValidator` for each key. One for all of them makes pydantic walk through 130 fields for
    every record: 2 ms, most of what a record costs.

    Raises InputError for a run id that pydantic would not take as a field name.
    """

    def __init__(self, run_id: RunId) -> None:
        if run_id.startswith("_"):
            raise InputError("run_id", run_id, "expected a first character other than _")
        self._keys = {DHTID.generate(source=key).to_bytes(): key for key in keys_of_run(run_id)}
        self._schemas: dict[str, SchemaValidator] = {}

    def validate(self, record: DHTRecord) -> bool:
        key = self._keys.get(record.key)
        if key is None:
            return True
        if key not in self._schemas:
            self._schemas[key] = SchemaValidator(_schema_of(key))
        return bool(self._schemas[key].validate(record))


class _OwnConfig(pydantic.BaseModel):
    """SchemaValidator writes into `Config`; without one of our own that would be pydantic's, for every model of the process."""

    class Config(pydantic.BaseConfig):
        pass


def _schema_of(key: str) -> type[pydantic.BaseModel]:
    owned = dict[BytesWithPublicKey, pydantic.conbytes(max_length=MAX_RECORD_BYTES + SEAL_BYTES, strict=True)]  # type: ignore[misc, valid-type]
    fields: dict[str, Any] = {key: (owned, None)}
    return pydantic.create_model("RunRecords", __base__=_OwnConfig, **fields)
