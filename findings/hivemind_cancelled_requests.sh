#!/usr/bin/env bash
# hivemind 1.1.12 keeps a task for every unary request that its caller has cancelled, until the process ends.
#
# Versions:  hivemind 1.1.12 (with its p2pd), torch 2.13.0, numpy 2.4.6. Python 3.11, Linux on x86-64.
# Behaviour: ControlClient notes each incoming unary request with the task that handles it, and strikes it out as the last thing
#            that this task does. When the caller cancels (which a search of the DHT does with the requests that it needs no
#            more, and every time-out), the daemon says so and the task is cancelled before it gets there: the entry stays, with
#            the request and what its handler refers to. Twenty requests that are answered leave none, twenty that are
#            cancelled leave twenty.
# Why:       The entry is removed by a statement at the end of the handler's task, not by a callback of the task.
# Source:    hivemind/p2p/p2p_daemon_bindings/control.py of the wheel, _handle_persistent_request, which came with
#            https://github.com/learning-at-home/hivemind/pull/328. No thread about this was found.
# Meets:     Peers that run for weeks and answer requests which are often cancelled.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""Two daemons on loopback: one asks the other twenty times and waits, and twenty times and does not."""
import asyncio
import sys

from hivemind.p2p import P2P

CALLS = 20


async def answer(data: bytes, caller) -> bytes:
    return data


async def main() -> bool:
    callee = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    caller = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=await callee.get_visible_maddrs())
    begun, ended = asyncio.Queue(), asyncio.Queue()

    async def think(data: bytes, asker) -> bytes:
        begun.put_nowait(data)
        try:
            await asyncio.sleep(60)
        finally:
            ended.put_nowait(data)
        return data

    try:
        control = callee._client.control
        await control.add_unary_handler("answers", answer)
        await control.add_unary_handler("thinks", think)
        for _ in range(CALLS):
            await caller._client.call_unary_handler(callee.peer_id, "answers", b"?")
        after_answers = len(control._handler_tasks)
        for _ in range(CALLS):
            call = asyncio.ensure_future(caller._client.call_unary_handler(callee.peer_id, "thinks", b"?"))
            await begun.get()
            call.cancel()
            await ended.get()
        await asyncio.sleep(0.5)
        kept = list(control._handler_tasks.values())
        print(f"Seen: {after_answers} requests noted after {CALLS} answers; after {CALLS} cancelled ones {len(kept)}, of which")
        print(f"    {sum(task.done() for task in kept)} belong to tasks that have ended.")
        return after_answers == 0 and len(kept) == CALLS and all(task.cancelled() for task in kept)
    finally:
        await caller.shutdown()
        await callee.shutdown()


ok = asyncio.run(main())
print("As stated." if ok else "NO LONGER SO: what is kept is not as stated above.")
sys.exit(not ok)
PY

"$python" -m venv "$work/env"
install hivemind==1.1.12 torch==2.13.0 numpy==2.4.6
timeout 120 "$work/env/bin/python" "$work/probe.py"
