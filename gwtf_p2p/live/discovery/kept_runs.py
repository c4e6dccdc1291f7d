"""Run records on this disk, so that a run outlives its DHT: beside the checkpoints, and beside the identity.

A power cut ends every peer and with them every record. What a peer needs to bring the run back is the run record alone, as its
owner has signed it: it then publishes that, as data peers do all the time. It also says whose run this peer has joined. A file
that cannot be read, or is no run record, counts as none: it is said, and nobody is ended by it.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from gwtf_p2p.live.discovery.signing import OwnedRun, read_owned
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.codec import to_plain
from gwtf_p2p.protocol.wire.records import WIRE_VERSION
from gwtf_p2p.training.state.epochs import replace_file

logger = logging.getLogger(__name__)

FILE = "run.json"
SIGNED = "signed"
"""Beside the record's fields, which are for people: the bytes that are believed, in base64."""
MOST_BYTES = 1 << 16


class KeptRuns:
    """Of one peer. `checkpoint_folder` None: only what is beside the identity."""

    def __init__(self, identity: Identity, checkpoint_folder: Path | None) -> None:
        self._beside_identity = identity.path.with_suffix(".runs")
        self._checkpoint_folder = checkpoint_folder

    def read(self, run_id: RunId) -> OwnedRun | None:
        """The record of this run; None if it is not here."""
        found = (self._read(path) for path in self._paths(run_id))
        return next((run for run in found if run is not None and run.record.run_id == run_id), None)

    def keep(self, run: OwnedRun) -> None:
        """Write it to both places, where it is not there already."""
        for path in self._paths(run.record.run_id):
            if self._read(path) == run:
                continue
            draft = path.with_suffix(".new")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                plain = {**to_plain(run.record), SIGNED: base64.b64encode(run.signed).decode()}
                replace_file(path, json.dumps(plain, indent=1).encode(), draft)
            except (OSError, TypeError, ValueError) as error:
                logger.warning("%s: the run record is not kept here: %s", path, error)

    def _paths(self, run_id: RunId) -> Iterable[Path]:
        if self._checkpoint_folder is not None:
            yield self._checkpoint_folder / FILE
        yield self._beside_identity / f"{run_id}.json"

    def _read(self, path: Path) -> OwnedRun | None:
        try:
            with path.open("rb") as file:
                plain = json.loads(file.read(MOST_BYTES))
            if not isinstance(plain, dict) or plain.get("wire_version") != WIRE_VERSION:
                raise RemoteProtocolError(f"no run record of wire version {WIRE_VERSION}")
            run = read_owned(base64.b64decode(str(plain.pop(SIGNED, "")), validate=True))
            if plain != json.loads(json.dumps(to_plain(run.record))):
                raise RemoteProtocolError("its fields are not those that its owner has signed")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, binascii.Error, RemoteProtocolError) as error:
            logger.warning("%s is passed over: %s", path, error)
            return None
        return run
