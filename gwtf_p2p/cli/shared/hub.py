"""Whether the Hugging Face hub answers, asked once and for seconds, before libraries ask it again and again for minutes.

A machine without it takes what it has in its cache: the libraries read HF_HUB_OFFLINE when they are imported.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from gwtf_p2p.cli.shared.json_lines import note
from gwtf_p2p.protocol.wire.records import RunRecord

CONNECT_S = 5.0
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
DEFAULT_ENDPOINT = "https://huggingface.co"


def hub_names(run: RunRecord, model: object, known_models: Sequence[str]) -> list[str]:
    """What of a run is neither built in nor on this disk, and so is looked for on the hub."""
    from gwtf_p2p.training.data.local_files import is_here, named_by

    models = [model] if isinstance(model, str) and model not in known_models and not model.endswith(".json") else []
    named = [*models, *(each.name for each in named_by(run) if not each.is_local)]
    return list(dict.fromkeys(name for name in named if not is_here(name)))


def settle_hub(names: Sequence[str], connect: Callable[..., Any] = socket.create_connection) -> None:
    """When the hub does not answer, say so and let the libraries do without it."""
    if not names or os.environ.get(OFFLINE[0], "").upper() in ("1", "ON", "YES", "TRUE"):
        return
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    address = urlsplit(getproxies().get("https") or endpoint)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    note(f"asking {endpoint} for {', '.join(names)}")
    try:
        connect((host, port), CONNECT_S).close()
    except OSError as error:
        note(f"{host} does not answer ({error.strerror or error}): only what is in this machine's cache is looked at")
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
