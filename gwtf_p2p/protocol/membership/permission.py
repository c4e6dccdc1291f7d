"""May a peer work now? What its owner has said (quiet hours, quotas, only when the machine is idle, pause), judged at a moment.

A peer that may not drains, hands over what it holds, and leaves; when it may again it comes back as any newcomer does. The
first reason that holds is told: what a person has just said, and then what lasts longest, comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

MINUTES_OF_A_DAY = 24 * 60
IDLE_AFTER_S = 300.0
"""So long nobody may have used the machine: a pause in typing is no absence, and each return costs a download."""

OTHERS_SHARE = 0.25
"""Of all processors, taken by other programs: above that the machine is in use."""

Ranges = tuple[tuple[int, int], ...]
"""Minutes of the local day, from (included) and to (excluded); one that ends before it begins goes over midnight."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the owner has said. 0 bytes: no quota."""

    quiet: Ranges = ()
    day_bytes: int = 0
    month_bytes: int = 0
    only_when_idle: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """Local time: the minute of the day, and names of the day and the month that no other day or month has."""

    minute: int
    day: str
    month: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that have passed in the day and the month that are named."""

    day: str = ""
    day_bytes: int = 0
    month: str = ""
    month_bytes: int = 0

    def more(self, size: int, moment: Moment) -> Usage:
        """So many bytes later; a new day, or month, begins with them."""
        now = self
        if now.day != moment.day:
            now = replace(now, day=moment.day, day_bytes=0)
        if now.month != moment.month:
            now = replace(now, month=moment.month, month_bytes=0)
        return replace(now, day_bytes=now.day_bytes + size, month_bytes=now.month_bytes + size)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` and `text` say why not, and until when; both are empty where the peer may work."""

    code: str = ""
    text: str = ""

    @property
    def may_work(self) -> bool:
        return not self.code


MAY_WORK = Verdict()


def verdict(wishes: Wishes, moment: Moment, usage: Usage, paused: bool, in_use: str) -> Verdict:
    """`usage` up to this moment, `paused` by hand, `in_use`: why the machine is not idle ('' if it is)."""
    if paused:
        return Verdict("hand", "paused by hand, until `gwtf resume`")
    used = usage.more(0, moment)
    if 0 < wishes.month_bytes <= used.month_bytes:
        return Verdict("quota_month", f"the month's quota of {wishes.month_bytes / 1e9:g} GB is used up, until the next month")
    if 0 < wishes.day_bytes <= used.day_bytes:
        return Verdict("quota_day", f"the day's quota of {wishes.day_bytes / 1e9:g} GB is used up, until midnight")
    quiet = quiet_range(wishes.quiet, moment.minute)
    if quiet is not None:
        return Verdict("quiet", f"quiet hours, until {quiet[1] // 60 % 24:02}:{quiet[1] % 60:02}")
    if wishes.only_when_idle and in_use:
        return Verdict("in_use", f"the machine is in use ({in_use}), until it has been idle for {IDLE_AFTER_S / 60:g} minutes")
    return MAY_WORK


def left_bytes(wishes: Wishes, moment: Moment, usage: Usage) -> float:
    """Until the first quota is used up; infinite where there is none."""
    used = usage.more(0, moment)
    quotas = ((wishes.day_bytes, used.day_bytes), (wishes.month_bytes, used.month_bytes))
    return min((max(0, quota - passed) for quota, passed in quotas if quota), default=inf)


def quiet_range(ranges: Ranges, minute: int) -> tuple[int, int] | None:
    """The range that this minute of the day is in."""
    for begin, end in ranges:
        if begin <= minute < end or (end <= begin and (minute >= begin or minute < end)):
            return begin, end
    return None


class IdleWatch:
    """Has nobody used the machine for a while?"""

    def __init__(self) -> None:
        self._used_at: float | None = None
        self._why = ""

    def look(self, now: float, input_ago_s: float | None, seat_is_used: bool, others_share: float) -> str:
        """Why it is in use; '' if it is idle. `now` in seconds; `input_ago_s`: since somebody typed at a terminal (None:
        nobody does); `seat_is_used`: the desktop says so; `others_share`: of all processors, taken by other programs."""
        why, used_at = "", now
        if input_ago_s is not None and input_ago_s < IDLE_AFTER_S:
            why, used_at = "somebody types at a terminal", now - input_ago_s
        elif seat_is_used:
            why = "somebody is at the desktop"
        elif others_share > OTHERS_SHARE:
            why = f"other programs take {others_share:.0%} of the processors"
        if why:
            self._why, self._used_at = why, max(used_at, self._used_at or used_at)
        if self._used_at is not None and now - self._used_at < IDLE_AFTER_S:
            return self._why
        return ""
