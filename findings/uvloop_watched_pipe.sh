#!/usr/bin/env bash
# A multiprocessing pipe that uvloop has watched once loses messages; watched by asyncio's own loop it loses none.
#
# Versions:  uvloop 0.23.0 beside the asyncio of the same interpreter, Python 3.11.
# Behaviour: loop.add_reader(pipe) of uvloop makes the descriptor non-blocking, and remove_reader() does not undo it; asyncio's
#            loop leaves it as it was. A multiprocessing.Connection expects a blocking descriptor: when the other side reads
#            later than the pipe fills, send() waits under asyncio and raises BlockingIOError under uvloop, with a part of the
#            message already written, so that what is sent next cannot be told apart from it.
# Why:       libuv's uv_poll_init() sets the descriptor to non-blocking mode, and uvloop lets that stand.
# Source:    uvloop issue 712 and pull request 761 (both open when this was written; they speak of terminals, not of pipes):
#            https://github.com/MagicStack/uvloop/issues/712, https://github.com/MagicStack/uvloop/pull/761.
# Meets:     A worker process that is told to stop, and reports, through one Pipe(): it works until its parent is slow for once.
set -euo pipefail
sed -n '2,/^set /s/^# \{0,1\}//p' "$0"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"

install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }

cat >"$work/probe.py" <<'PY'
"""A hundred messages of 10 kB through a pipe whose reader begins late, after a loop has watched the sending end. Prints JSON."""
import asyncio
import json
import multiprocessing
import os
import threading
import time

import uvloop

MESSAGES, BYTES, LATE_S = 100, 10_000, 1.0


def seen(loop_factory) -> dict:
    reading, sending = multiprocessing.Pipe()

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sending.fileno(), lambda: None)
        loop.remove_reader(sending.fileno())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(watch())

    arrived = []

    def read() -> None:
        time.sleep(LATE_S)
        try:
            while True:
                arrived.append(reading.recv_bytes())
        except EOFError:
            pass
        except OSError:  # the end of the stream lies within a message
            pass

    reader = threading.Thread(target=read)
    reader.start()
    error = None
    blocking = os.get_blocking(sending.fileno())
    try:
        for _ in range(MESSAGES):
            sending.send_bytes(b"x" * BYTES)
    except OSError as problem:
        error = type(problem).__name__
    sending.close()
    reader.join()
    return {"blocking": blocking, "error": error, "all arrived": len(arrived) == MESSAGES}


print(json.dumps({"asyncio": seen(asyncio.new_event_loop), "uvloop": seen(uvloop.new_event_loop)}))
PY

"$python" -m venv "$work/env"
install uvloop==0.23.0
saw="$("$work/env/bin/python" "$work/probe.py")"
echo "Seen with uvloop 0.23.0: $saw"

expected='{"asyncio": {"blocking": true, "error": null, "all arrived": true}'
expected+=', "uvloop": {"blocking": false, "error": "BlockingIOError", "all arrived": false}}'
[[ "$saw" == "$expected" ]] || {
    echo "NO LONGER SO: the two loops do not differ as stated above." >&2
    exit 1
}
echo "As stated."
