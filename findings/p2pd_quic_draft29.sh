#!/usr/bin/env bash
# The libp2p daemon in hivemind 1.1.12 takes a /quic address beside others, and says nothing about not listening on it.
#
# Versions:  the p2pd that the wheel of hivemind 1.1.12 carries. Linux on x86-64.
# Behaviour: Told to listen on /ip4/127.0.0.1/tcp/0 and /ip4/127.0.0.1/udp/0/quic, it starts, names its TCP address alone, holds
#            no UDP socket, and prints nothing about the second address. With /quic-v1 in the place of /quic it listens on both.
#            With /quic as its only address it ends with "no transport for protocol".
# Why:       /quic is QUIC's draft 29, /quic-v1 is RFC 9000. go-libp2p dropped the draft, and a host starts as long as one of its
#            addresses can be had.
# Source:    go-libp2p issue 2369 and pull request 2487: https://github.com/libp2p/go-libp2p/issues/2369,
#            https://github.com/libp2p/go-libp2p/pull/2487; RFC 9000.
# Meets:     A listen address copied from an older guide: the peer runs, over TCP only, and NATs that QUIC would have passed
#            stay shut.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Start the daemon on some addresses; print what it says, and how many UDP sockets it holds."""
import re
import subprocess
import sys
import time
from pathlib import Path

daemon, folder = Path(sys.argv[1]), Path(sys.argv[2])
TCP, DRAFT, RFC = (f"/ip4/127.0.0.1/{end}" for end in ("tcp/0", "udp/0/quic", "udp/0/quic-v1"))


def udp_sockets(pid: int) -> int:
    """Count the sockets among a process's descriptors that the kernel lists as UDP."""
    listed = {row.split()[9] for kind in ("udp", "udp6") for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]}
    held = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return sum(f"socket:[{inode}]" in held for inode in listed)


def start(*addresses: str) -> tuple[int | None, str, int]:
    """Exit code (None if it ran), output, and UDP sockets of a daemon that was told to listen on some addresses."""
    control, log = folder / "control", folder / "log"
    control.unlink(missing_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            [daemon, "-listen", f"/unix{control}", "-hostAddrs", ",".join(addresses)], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        limit = time.monotonic() + 30
        while process.poll() is None and "/tcp/" not in log.read_text() and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(1)  # anything that it has to say about the other address comes in this second
        return process.poll(), log.read_text(), 0 if process.poll() is not None else udp_sockets(process.pid)
    finally:
        process.terminate()
        process.wait()


ok = True
for addresses, runs, sockets, says_quic in (((TCP, DRAFT), True, False, False), ((TCP, RFC), True, True, True), ((DRAFT,), False, False, False)):
    code, said, udp = start(*addresses)
    words = [line for line in said.splitlines() if not line.startswith(("Control socket", "Peer ID", "Peer Addrs"))]
    print(f"Seen with {', '.join(addresses)}: {'runs' if code is None else f'exit code {code}'}, UDP sockets: {udp}, it says {words}")
    ok &= (code is None) == runs and (udp > 0) == sockets and bool(re.search("quic", said)) == says_quic
    ok &= runs or "no transport for protocol" in said
print("As stated." if ok else "NO LONGER SO: the daemon does not answer as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install --no-deps hivemind==1.1.12
daemon="$(find "$work/env" -path '*/hivemind_cli/p2pd' -type f)"
"$python" "$work/probe.py" "$daemon" "$work"
