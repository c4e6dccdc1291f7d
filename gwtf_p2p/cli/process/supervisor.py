"""`--supervise`: a process that keeps torch loaded, and starts the peer again in a child when it has crashed.

Most of what a start takes is loading torch and transformers; a child that is forked from here has them. The child is an
ordinary peer: identity, run record and weights come from the disk of its last life.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent
from gwtf_p2p.protocol.core.backoff import Backoff
from gwtf_p2p.protocol.errors import InputError

FOR_GOOD = (0, 2, 4, 5, 130)
"""Exit codes of a peer that trying again does not change: it has left, or a flag, its identity or the run is not right."""

SOUND_S = 60.0
"""Who has lived for so long is started again at once."""

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0

WARM = ("gwtf_p2p.live.peer.process",)
"""What every peer loads, with all that it loads."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs `life` in one child after the other. `ended` hears how a life ended (in words), and in how many seconds the next
    one begins."""

    def __init__(self, life: Callable[[], int], ended: Callable[[str, float], object]) -> None:
        self._life, self._ended = life, ended
        self._backoff = Backoff(FIRST_PAUSE_S, MOST_PAUSE_S)
        self._child = 0
        self._told_to_end: int | None = None

    def run(self) -> int:
        """The exit code of the last life; 128 and the signal's number where it was killed after it had been told to leave."""
        before = {number: signal.getsignal(number) for number in PASSED_ON}
        passed_on = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as `nohup` has it
        for number in passed_on:
            signal.signal(number, self._pass_on)
        while True:
            began = time.monotonic()
            signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # none is lost between two processes
            self._child = self._forked({number: before[number] for number in passed_on})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
            code = self._exit_code()
            self._child = 0
            if self._told_to_end is not None or code in FOR_GOOD:
                return code if code >= 0 else 128 - code
            if not self._pauses(code, time.monotonic() - began):
                return 130 if self._told_to_end == signal.SIGINT else 0

    def _forked(self, handlers: Mapping[signal.Signals, Any]) -> int:
        """The child's pid. It has a process group of its own, so that Ctrl+C reaches it once, through here; signals do to it
        what they did before."""
        parent = os.getpid()
        child = os.fork()
        if child:
            with suppress(OSError):  # it has done so itself, or is gone already
                os.setpgid(child, child)
            return child
        code = 1
        try:
            os.setpgid(0, 0)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
            die_with_parent(parent)
            code = self._life()
        except BaseException:  # noqa: BLE001  the boundary of a process: our own bug, told as any other
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _exit_code(self) -> int:
        """Wait for it; less than 0: killed by that signal."""
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status)

    def _pauses(self, code: int, lived_s: float) -> bool:
        """Wait before the next life; False when it has been told to end meanwhile."""
        if lived_s >= SOUND_S:
            self._backoff.succeeded()
        pause_s = 0.0 if lived_s >= SOUND_S else self._backoff.failed(time.monotonic())
        how = f"signal {-code}: {signal.strsignal(-code) or 'unknown'}" if code < 0 else f"exit code {code}"
        self._ended(how, pause_s)
        until = time.monotonic() + pause_s
        while self._told_to_end is None and (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.1))  # a signal does not cut a sleep short
        return self._told_to_end is None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number in ENDING:
            self._told_to_end = number
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)


def supervised(life: Callable[[], int], *, said_by: str) -> int:
    """`life` in a child, and again when it crashes; `said_by`: who tells of that. Raises InputError where it cannot be done."""
    if not sys.platform.startswith("linux"):
        raise InputError("--supervise", sys.platform, "expected Linux: elsewhere let the system start the peer again")
    print(f"{said_by}: loads torch and transformers, once for all starts", file=sys.stderr, flush=True)
    for module in WARM:
        importlib.import_module(module)
    gc.freeze()

    def ended(how: str, pause_s: float) -> None:
        when = f"in {pause_s:.0f} s" if pause_s else "now"
        print(f"{said_by}: it has ended ({how}); it is started again {when}", file=sys.stderr, flush=True)

    return Supervisor(life, ended).run()
