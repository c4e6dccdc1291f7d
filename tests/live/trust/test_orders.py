"""The owner's word reaches every peer: who is not on the list does not get in, and who is banned is out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from tests.live.peer.test_life import DEADLINE_S, RUN, expect

pytestmark = pytest.mark.live


def test_a_listed_run_takes_whom_its_owner_allows_and_ends_whom_its_owner_bans(
    swarm: LocalSwarm, start: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    peer = create_identity(swarm.folder / "peer.key").peer_id
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("data", "data", there, new_run=replace(RUN, admission="listed", total_iterations=0))
    expect(swarm, "data", "online")

    def ordered(*words: str, by: str = "data") -> str:
        code = main(
            [*words, "--run_id", RUN.run_id, "--initial_peers", there, "--identity_path", str(swarm.folder / f"{by}.key")]
        )
        printed = capsys.readouterr()
        assert len(printed.out.splitlines() + printed.err.splitlines()) == 1, printed.err
        return f"{code} {printed.out}{printed.err}"

    def is_refused(why: str) -> None:
        assert expect(swarm, "peer", "failed")["code"] == 5
        swarm.peers["peer"].process.join(DEADLINE_S)
        last = (swarm.folder / "peer.log").read_text().splitlines()[-1]
        assert peer in last and why in last, last

    start("peer", "peer", there)
    is_refused("not on the list of the run's owner")
    assert ordered("allow", peer, by="peer").startswith("5 gwtf allow: run"), "only the owner and admins have a say"
    assert ordered("allow", peer) == f"0 {peer}: may take part\n"
    start("peer", "peer", there)
    while expect(swarm, "peer", "stepped")["iteration"] < 2:
        pass
    assert ordered("ban", peer) == f"0 {peer}: banned by the run's owner\n"
    is_refused("banned by the run's owner")
    assert expect(swarm, "data", "peer_banned")["peer"] == peer
    assert ordered("ban", "--list") == f"0 {peer}: banned by the run's owner\n"
