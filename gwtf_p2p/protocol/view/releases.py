"""Which release of this package the others run. It decides nothing: peers of one wire version train together all the same.

Releases are compared number by number, as far as they have numbers. One that is no release (a stranger may write anything) is
as if none were said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gwtf_p2p.protocol.wire.records import StageRecord

_RELEASE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})")


def numbers(release: str) -> tuple[int, ...]:
    """(1, 2, 0) of "1.2.0" and of "1.2.0rc1"; empty for what does not begin with a number."""
    found = _RELEASE.match(release)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def newer_release(own: str, records: Iterable[StageRecord]) -> tuple[str, int]:
    """The newest release that is newer than this peer's own, and how many peers run one that is; ("", 0) where none does."""
    newer = [record.release for record in records if numbers(record.release) > numbers(own)]
    return (max(newer, key=numbers), len(newer)) if newer else ("", 0)
