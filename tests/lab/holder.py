"""A process that holds a lab until it is ended: prints the run, its janitor, and a program inside that left its session."""

from __future__ import annotations

import signal
import sys

from experiments.lab.lab import Lab
from experiments.lab.topology import load_topology

with Lab(load_topology("nat_two_homes")) as lab:
    program = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    deserter = lab.start("alice", [sys.executable, "-c", program])
    deserter.wait(30)
    while not deserter.read_log().endswith("\n"):
        pass
    print(lab.run_name, lab.janitor_pid, deserter.read_log().strip(), flush=True)
    signal.pause()
