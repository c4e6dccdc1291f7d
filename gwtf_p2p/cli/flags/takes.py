"""What a flag takes, judged while the command line is read: before a file is touched, torch is loaded, or anybody is asked.

Each is given to argparse as a flag's `type`, whose refusal is one line that names the flag as it was typed.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.ids import PEER_ID, PeerId
from gwtf_p2p.protocol.limits import MOST_MICROBATCHES, MOST_STAGES
from gwtf_p2p.protocol.membership.permission import MINUTES_OF_A_DAY, quiet_range

TORCH_DTYPES = ("float32", "bfloat16")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MOST_PORT = 65535
LEAST_DATA_PORT = 1024
"""Others connect to no lower one: services that a machine has for other reasons are there."""
MOST_NAME = 40
MOST_S = 1e9
"""More seconds than anybody waits; what is beyond may not fit into the clock's arithmetic."""

LEAST_GB, MOST_GB = 1e-6, 1e9
"""A kilobyte, and more than any machine has."""

LEAST_MBPS, MOST_MBPS = 1e-3, 1e9


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from `least` to `most`, both included."""
    expected = f"expected a whole number from {least}" + ("" if most is None else f" to {most}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r:.40}")
        return value

    return parse


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A finite number from `least` (`above`: more than that) to `most`."""
    expected = f"expected a number {'above' if above else 'from'} {least:g}" + ("" if most == math.inf else f", up to {most:g}")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most) or (above and value == least):
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r:.40}")
        return value

    return parse


def gigabytes(text: str) -> float:
    """A size that is a limit: 0 for none, else from `LEAST_GB` (less would be rounded to none) to `MOST_GB`."""
    return _limit(text, LEAST_GB, MOST_GB)


def megabits(text: str) -> float:
    """A speed that is a limit, per second: 0 for none, else from `LEAST_MBPS` to `MOST_MBPS`."""
    return _limit(text, LEAST_MBPS, MOST_MBPS)


def _limit(text: str, least: float, most: float) -> float:
    """0, or a number of this range."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value != 0 and not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected 0 (no limit) or a number from {least:g} to {most:g}, got {text!r:.40}")
    return value


def public_name(text: str) -> str:
    """A name for people."""
    if not text.isprintable() or not 1 <= len(text.strip()) <= MOST_NAME:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_NAME} printable characters, got {text!r:.60}")
    return text.strip()


port = whole(0, MOST_PORT)


def data_port(text: str) -> int | None:
    """A port, 0 for any; None for `off`."""
    if text == "off":
        return None
    value = int(text) if text.isdecimal() else LEAST_DATA_PORT - 1
    if value and not LEAST_DATA_PORT <= value <= MOST_PORT:
        raise argparse.ArgumentTypeError(f"expected 0, {LEAST_DATA_PORT} to {MOST_PORT}, or off, got {text!r:.40}")
    return value


stage = whole(1, MOST_STAGES)
capacity = whole(1, MOST_MICROBATCHES)
seconds = number(0, MOST_S)


def quiet_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Ranges of the local day, `22:00-07:00,12:00-13:30`, in minutes."""
    found = []
    for each in text.split(","):
        match = re.fullmatch(r"\s*(\d\d?):(\d\d)-(\d\d?):(\d\d)\s*", each, re.ASCII)
        hours = [int(word) for word in match.groups()] if match else []
        ends = [60 * hours[at] + hours[at + 1] for at in range(0, len(hours), 2)]
        if (
            not match
            or max(hours[1::2]) > 59
            or ends[0] >= MINUTES_OF_A_DAY
            or ends[1] > MINUTES_OF_A_DAY
            or ends[0] == ends[1]
        ):
            raise argparse.ArgumentTypeError(f"expected hours as 22:00-07:00, several with commas, got {text!r:.40}")
        found.append((ends[0], ends[1]))
    if all(quiet_range(tuple(found), minute) for minute in range(MINUTES_OF_A_DAY)):
        raise argparse.ArgumentTypeError(f"expected hours that leave some of the day to work in, got {text!r:.60}")
    return tuple(found)


def one_of(*names: str) -> Callable[[str], str]:
    """One of these words, in small or capital letters as they are written here."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r:.40}")
        return text

    return parse


torch_dtype = one_of(*TORCH_DTYPES)


def device(text: str) -> str:
    """A device's name; whether this machine has it is found out with torch (`resolve_device`)."""
    kind, colon, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and colon) or (colon and not (index.isascii() and index.isdigit())):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r:.40}")
    return text


def log_level(text: str) -> str:
    """In either case; the name in capitals is returned."""
    return one_of(*LOG_LEVELS)(text.upper())


def run_id(text: str) -> str:
    """As a run file may have it."""
    from gwtf_p2p.protocol.wire.ranges import described_fields, holds
    from gwtf_p2p.protocol.wire.records import RUN_ID, RunRecord

    if not all(holds(bound, text) for bound in described_fields(RunRecord)["run_id"].bounds):
        raise argparse.ArgumentTypeError(f"expected up to 64 characters {RUN_ID.meaning}, got {text!r:.80}")
    return text


def peer_id(text: str) -> PeerId:
    """As `gwtf id` prints it."""
    if not re.fullmatch(PEER_ID, text):
        raise argparse.ArgumentTypeError(f"expected a peer id, Qm... or 12D3..., got {text!r:.80}")
    return PeerId(text)


def token(text: str) -> str:
    """The token of a secret run, or @FILE: what the file holds, without blanks around it."""
    from gwtf_p2p.live.libp2p.run_secret import LEAST_CHARACTERS, MOST_CHARACTERS

    if text.startswith("@"):
        try:
            with Path(text[1:]).open(encoding="utf-8") as file:
                text = file.read(MOST_CHARACTERS + 2).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{text[1:]} cannot be read: {error}") from error
    if not LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
        raise argparse.ArgumentTypeError(f"expected {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters, got {len(text)}")
    return text


def ip_address(text: str) -> str:
    """IPv4 or IPv6."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected an IP address, got {text!r:.40}") from error


def folder(text: str) -> Path:
    """A folder that can be written to, or made."""
    return _writable(Path(text), text, is_folder=True)


def file(text: str) -> Path:
    """A file that can be written, there already or not; its folder is made if need be."""
    return _writable(Path(text), text, is_folder=False)


def _writable(path: Path, text: str, *, is_folder: bool) -> Path:
    what = "a folder" if is_folder else "a file"
    if not text:
        raise argparse.ArgumentTypeError(f"expected the path of {what}, got ''")
    if path.exists() and path.is_dir() != is_folder:
        raise argparse.ArgumentTypeError(f"expected {what}, but {text!r} is {'a file' if is_folder else 'a folder'}")
    there = path.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if there != path.absolute() and not there.is_dir():
        raise argparse.ArgumentTypeError(f"expected {what}, but {str(there)!r} in {text!r} is no folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected {what} that can be written, but {str(there)!r} cannot")
    return path


class OnOff(argparse.Action):
    """`--name` and `--no_name`: argparse's own action has a dash in the latter, which is read as an underscore here."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        both = [word for option in option_strings for word in (option, f"--no_{option.removeprefix('--')}")]
        super().__init__(both, dest, nargs=0, **kwargs)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, _: object, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, not (option or "").startswith("--no_"))

    def format_usage(self) -> str:
        return " | ".join(self.option_strings)
