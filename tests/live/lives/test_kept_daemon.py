"""A p2pd goes on when the life that has started it is killed, and the next life is the same peer to the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.live.libp2p.identity import create_identity
from tests.live.conftest import DEADLINE_S, daemons_in, ends

pytestmark = pytest.mark.live

LIVES = """
import asyncio, json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.dialling import StreamRefused, connections, open_stream
from gwtf_p2p.live.libp2p.identity import load_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.lives.handover import Handover
from gwtf_p2p.live.lives.kept_daemon import KeptDaemon, leave_daemon, take_over

OPTIONS, PROTOCOL = replace(P2POptions.on_this_machine(), outlives=True), "gwtf/test"
SAID, handover, identity = Path(sys.argv[1] + ".said"), Handover(), load_identity(Path(sys.argv[1]))

def said(by):
    async def says(info, reader, writer):
        writer.write(by.encode())
        writer.close()
    return says

async def first_life():
    daemon = await start_daemon(OPTIONS, identity)
    await daemon.p2p.add_binary_stream_handler(PROTOCOL, said("first"))
    await leave_daemon(handover, daemon, [PROTOCOL])
    if sys.argv[2] == "dead":
        os.kill(daemon.pid, signal.SIGKILL)
        await daemon.wait_ended()
    maddrs = [] if sys.argv[2] == "dead" else await daemon.maddrs()
    SAID.write_text(json.dumps([daemon.pid, *maddrs]))
    os.kill(os.getpid(), signal.SIGKILL)

async def asked(other):
    try:
        reader, writer = await open_stream(other.control_path, identity.peer_id, PROTOCOL)
        return (await reader.read()).decode()
    except (StreamRefused, OSError) as error:
        return ""

async def second_life(first, *maddrs):
    other = await start_daemon(P2POptions.on_this_machine(*maddrs)) if maddrs else None
    told = {"between": await asked(other)} if other else {}
    daemon = await take_over(handover, identity.peer_id)
    told |= {"first": first, "pid": daemon.pid if daemon else 0}
    if daemon:
        told["before"] = await asked(other)
        await daemon.p2p.add_binary_stream_handler(PROTOCOL, said("second"))
        told["after"], told["there"] = await asked(other), other.peer_id in await connections(daemon.control_path)
        if sys.argv[2] == "stops":
            await daemon.stop()
            told["stopped"] = daemon.p2p._child.returncode is not None
    if other:
        await other.stop()
    print(json.dumps(told), flush=True)
    os._exit(0)

child = os.fork()
if not child:
    asyncio.run(first_life())
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGKILL
handover.receive()
asyncio.run(second_life(*json.loads(SAID.read_text())))
"""


def two_lives(folder: Path, how: str) -> dict[str, Any]:
    """What the second one says."""
    identity = create_identity(folder / "a.key")
    command = [sys.executable, "-c", LIVES, str(identity.path), how]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=4 * DEADLINE_S)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("how", ["stops", "goes"])
def test_a_killed_life_leaves_its_p2pd_to_the_next(how: str, tmp_path: Path, runtime_dir: Path) -> None:
    told = two_lives(tmp_path, how)
    assert told["pid"] == told["first"], "it is the same p2pd"
    assert told["between"] == told["before"] == "", "whoever asks while nobody is there is refused, and waits for nobody"
    assert told["after"] == "second" and told["there"]
    assert told.get("stopped", how == "goes")
    assert ends(told["first"], DEADLINE_S) and not daemons_in(runtime_dir), "it ends with the last who wants it"


def test_a_p2pd_that_is_dead_is_not_taken_over(tmp_path: Path) -> None:
    assert two_lives(tmp_path, "dead")["pid"] == 0
