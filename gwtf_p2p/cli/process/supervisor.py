"""`--supervise`: a process that keeps torch loaded, and starts the peer again in a child when it has crashed.

Most of what a start takes is loading torch and transformers; a child that is forked from here has them. What else a life can
leave to the next (its p2pd, its place in the run, what it has measured) comes over a `Handover`. Apart from that the child is
an ordinary peer: identity, run record and weights come from the disk of its last life.

One that crashes now and then is started again at once. One that crashes often for the time that it lives waits (`restarts`),
and has nothing of the lives before: it may be what was left that is wrong.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from types import FrameType
from typing import Any

from gwtf_p2p.cli.process.restarts import Pause, RestartPace
from gwtf_p2p.live.libp2p.daemon_lifetime import adopt_orphans, die_with_parent
from gwtf_p2p.live.lives.handover import Handover, LoadedModules
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.stall.rules import duration

FOR_GOOD = (0, 2, 4, 5, 130)
"""Exit codes of a peer that trying again does not change: it has left, or a flag, its identity or the run is not right."""

WARM = ("gwtf_p2p.live.peer.process", "gwtf_p2p.live.peer.running_peer")
"""What every peer loads, with all that it loads."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Life = Callable[[Handover], int]


class Supervisor:
    """Runs `life` in one child after the other. `ended` hears how a life ended (in words), and when the next one begins."""

    def __init__(self, life: Life, ended: Callable[[str, Pause], object]) -> None:
        self._life, self._ended = life, ended
        self._handover = Handover()
        self._pace = RestartPace()
        self._child = 0
        self._told_to_end: int | None = None

    def run(self) -> int:
        """The exit code of the last life; 128 and the signal's number where it was killed after it had been told to leave."""
        before = {number: signal.getsignal(number) for number in PASSED_ON}
        passed_on = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as `nohup` has it
        for number in passed_on:
            signal.signal(number, self._pass_on)
        adopt_orphans()
        with closing(self._handover):
            return self._lives({number: before[number] for number in passed_on})

    def _lives(self, handlers: Mapping[signal.Signals, Any]) -> int:
        """One after the other; `handlers` are those of a process that nobody supervises."""
        while True:
            began = time.monotonic()
            signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # none is lost between two processes
            self._child = self._forked(handlers)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
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
            code = self._life(self._handover)
        except BaseException:  # noqa: BLE001  the boundary of a process: our own bug, told as any other
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _exit_code(self) -> int:
        """Wait for its end, and take what it leaves until then; less than 0: killed by that signal."""
        process = os.pidfd_open(self._child)
        try:
            while True:
                ready, _, _ = select.select([self._handover.fileno(), process], [], [])
                self._handover.receive()
                if process in ready:
                    return _reaped(self._child)
                load(self._handover.left(LoadedModules))
        finally:
            os.close(process)

    def _pauses(self, code: int, lived_s: float) -> bool:
        """Wait before the next life; False when it has been told to end meanwhile."""
        pause = self._pace.crashed(lived_s)
        if pause.seconds:
            self._handover.forget()
        how = f"signal {-code}: {signal.strsignal(-code) or 'unknown'}" if code < 0 else f"exit code {code}"
        self._ended(how, pause)
        until = time.monotonic() + pause.seconds
        while self._told_to_end is None and (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.1))  # a signal does not cut a sleep short
        return self._told_to_end is None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number in ENDING:
            self._told_to_end = number
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)


def load(modules: LoadedModules | None) -> None:
    """What a life has loaded in its time the next ones have from the start."""
    for name in modules.names if modules is not None else ():
        if name not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(name)
    gc.freeze()


def _reaped(child: int) -> int:
    """The exit code of this child, which has ended. Orphans of lives before that have ended are let go, too."""
    _, status = os.waitpid(child, 0)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return os.waitstatus_to_exitcode(status)


def told(how: str, pause: Pause) -> str:
    """The line about a life that has ended."""
    if not pause.seconds:
        return f"it has ended ({how}); it is started again now"
    often = f"crash {pause.crashes} in {duration(pause.lived_s)} of work"
    return f"it has ended ({how}), {often}: it is started again in {duration(pause.seconds)}"


def supervised(life: Life, *, said_by: str) -> int:
    """`life` in a child, and again when it crashes; `said_by`: who tells of that. Raises InputError where it cannot be done."""
    if not sys.platform.startswith("linux"):
        raise InputError("--supervise", sys.platform, "expected Linux: elsewhere let the system start the peer again")
    print(f"{said_by}: loads torch and transformers, once for all starts", file=sys.stderr, flush=True)
    for module in WARM:
        importlib.import_module(module)
    gc.freeze()

    def ended(how: str, pause: Pause) -> None:
        print(f"{said_by}: {told(how, pause)}", file=sys.stderr, flush=True)

    return Supervisor(life, ended).run()
