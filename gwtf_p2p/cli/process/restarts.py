"""How long a supervised peer waits before it is started again: the more often it has crashed for the time that it has lived.

Crashes are paid for out of credit. There is some to begin with, a crash takes 1 of it, and one within `SOON_S` of the start
takes `SOON_COST`; a life of `CREDIT_S` earns 1 back. While there is credit the next life begins at once. Below zero it waits:
`FIRST_PAUSE_S`, and twice as long for each 1 that it is deeper, at most `MOST_PAUSE_S`. The debt has a bound, so one that runs
well for half an hour is like new, and one that crashes for ever does so once a minute at most.
"""

from __future__ import annotations

from dataclasses import dataclass

SOON_S = 10.0
SOON_COST = 3.0
MOST_CREDIT = 5.0
MOST_DEBT = 7.0
CREDIT_S = 120.0
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Before the next life: `seconds`, 0 for none; `crashes` in `lived_s` of life since there was last full credit."""

    seconds: float
    crashes: int
    lived_s: float


class RestartPace:
    """Of one supervisor. No clock: it is told how long each life was."""

    def __init__(self) -> None:
        self._credit = MOST_CREDIT
        self._crashes, self._lived_s = 0, 0.0

    def crashed(self, lived_s: float) -> Pause:
        """A life has ended in a crash after so many seconds: when does the next one begin?"""
        earned = self._credit + lived_s / CREDIT_S
        if earned >= MOST_CREDIT:
            earned, self._crashes, self._lived_s = MOST_CREDIT, 0, 0.0
        self._credit = max(-MOST_DEBT, earned - (SOON_COST if lived_s < SOON_S else 1.0))
        self._crashes, self._lived_s = self._crashes + 1, self._lived_s + lived_s
        seconds = 0.0 if self._credit >= 0 else min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (-self._credit - 1))
        return Pause(seconds, self._crashes, self._lived_s)
