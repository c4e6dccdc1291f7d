#!/usr/bin/env bash
# hivemind 1.1.12's libp2p daemon refuses the binary form of an address that hivemind 1.1.12 itself makes.
#
# Versions:  hivemind 1.1.12 (with its p2pd), multiaddr 0.2.0, py-cid 0.5.0, torch 2.13.0, numpy 2.4.6. Linux on x86-64.
# Behaviour: hivemind carries a multiaddr module of its own. Its to_bytes() writes the peer id of /p2p/12D3... as a CID of
#            version 1, in 40 bytes; the public multiaddr package writes the bare multihash, in 38, as the specification has
#            it. Asked to connect to such an address as a running peer gave it, the daemon answers "Connect failed"; without
#            the /p2p part it connects. As a string, the same address is taken everywhere.
# Why:       The textual form of a peer id may be a CID; the binary form is a multihash, and Go's multiaddr takes no other.
# Source:    libp2p's specification of peer ids, and multiformats/go-multiaddr pull request 130 (CIDs are read as text only):
#            https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md,
#            https://github.com/multiformats/go-multiaddr/pull/130. No thread about hivemind's module was found.
# Meets:     Whoever keeps addresses as bytes, or connects through the daemon's own client.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Start two daemons on loopback, and have one connect to the other by its whole address and by the part before /p2p."""
import asyncio
import sys

import base58
import multiaddr
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure


async def connects(caller, callee, address) -> bool:
    try:
        await caller._client.connect(callee.peer_id, [address])
    except ControlFailure as refusal:
        print(f"    {address}: {refusal}")
        return False
    print(f"    {address}: connected")
    return True


async def main() -> bool:
    callee = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    caller = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    try:
        whole = (await callee.get_visible_maddrs())[0]
        peer = str(callee.peer_id)
        multihash = base58.b58decode(peer)
        theirs, public = whole.to_bytes(), multiaddr.Multiaddr(str(whole)).to_bytes()
        print(f"Seen: the address of a running peer, {whole}")
        print(f"    hivemind's module:  {theirs.hex()}")
        print(f"    public multiaddr:   {public.hex()}")
        specified = bytes([len(multihash)]) + multihash
        forms = public.endswith(specified) and theirs.endswith(bytes([len(multihash) + 2, 0x01, 0x72]) + multihash)
        refused = not await connects(caller, callee, whole)
        bare = await connects(caller, callee, whole.decapsulate(f"/p2p/{peer}"))
        return forms and refused and bare
    finally:
        await caller.shutdown()
        await callee.shutdown()


ok = asyncio.run(main())
print("As stated." if ok else "NO LONGER SO: the forms or the daemon's answers are not as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install hivemind==1.1.12 torch==2.13.0 numpy==2.4.6 multiaddr==0.2.0 py-cid==0.5.0 py-multihash==3.0.0 base58==2.1.1
timeout 120 "$work/env/bin/python" "$work/probe.py"
