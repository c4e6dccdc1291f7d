"""The observer's web server: a page, /api/v1/state and /metrics; standard library only, read-only, no cookies, no scripts from
elsewhere. It answers from what the observer saw last; a request never reaches the swarm.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gwtf_p2p.protocol.errors import InputError

REFRESH_S = 3

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}"><title>gwtf {run}</title>
<style>body {{ font-family: system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1000px; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} .off {{ color: #a33 }}</style></head><body>
<h1>{run}</h1>
<p>router {router}, iteration {iterations}{of}, loss {loss}, {tokens} tokens/s</p>
{chart}
<table><tr><th>peer</th><th>role</th><th>stage</th><th>state</th><th>iteration</th><th>held</th><th>forward</th><th>backward</th>
<th>microbatches</th></tr>{rows}</table>
<h2>What happened</h2><ul>{changes}</ul>
<p><a href="/api/v1/state">/api/v1/state</a> &middot; <a href="/metrics">/metrics</a></p>
</body></html>
"""


def page(state: dict[str, Any]) -> str:
    """The state as HTML; it reloads itself."""
    rows = "".join(_row(peer) for peer in state["peers"])
    changes = "".join(f"<li>{escape(change['text'])}</li>" for change in reversed(state["changes"][-12:]))
    loss = f"{state['loss']:.4f}" if state["loss"] is not None else "unknown"
    of = f" of {state['total_iterations']}" if state["total_iterations"] else ""
    return PAGE.format(
        refresh=REFRESH_S, run=escape(state["run_id"]), router=escape(state["router"]), iterations=state["iterations"], of=of,
        loss=loss, tokens=f"{state['tokens_per_second']:.0f}", chart=_chart(state["losses"]), rows=rows,
        changes=changes or "<li>nothing yet</li>",
    )  # fmt: skip


def _row(peer: dict[str, Any]) -> str:
    kind = "" if peer["state"] == "ONLINE" else ' class="off"'
    cells = (
        peer["peer"][-6:], peer["role"], peer["stage"], peer["state"], peer["weights_version"],
        f"{peer['occupancy']}/{peer['capacity']}", f"{1000 * peer['forward_s']:.0f} ms", f"{1000 * peer['backward_s']:.0f} ms",
        f"{peer['progress'].get('microbatches', 0):.0f}",
    )  # fmt: skip
    return f"<tr{kind}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _chart(losses: list[list[float]]) -> str:
    """The loss over the iterations seen, as a line."""
    if len(losses) < 2:
        return ""
    width, height = 900, 120
    first, last = losses[0][0], losses[-1][0]
    low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
    points = " ".join(
        f"{(i - first) / (last - first) * width:.1f},{height - (loss - low) / ((high - low) or 1.0) * height:.1f}"
        for i, loss in losses
    )
    line = f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
    return f'<svg viewBox="-4 -4 {width + 8} {height + 8}" width="100%">{line}</svg>'


State = Callable[[], dict[str, Any] | None]


class WebServer:
    """Serves until `stop`. `state` and `metrics` give what was seen last; None while nothing was."""

    def __init__(self, host: str, port: int, state: State, metrics: Callable[[], str | None]) -> None:
        """Raises InputError when the port cannot be had."""

        class Handler(BaseHTTPRequestHandler):
            server_version, sys_version = "gwtf", ""

            def do_GET(self) -> None:
                _answer(self, state(), metrics)

            def log_message(self, *_: object) -> None:
                """Requests are not logged: stdout and stderr are the terminal view's."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError("--port", str(port), f"cannot be listened on at {host} ({error})") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(request: BaseHTTPRequestHandler, state: dict[str, Any] | None, metrics: Callable[[], str | None]) -> None:
    path = request.path.partition("?")[0]
    status, kind, text = HTTPStatus.OK, "text/html; charset=utf-8", ""
    if path not in ("/", "/api/v1/state", "/metrics"):
        status, kind, text = HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", "there are /, /api/v1/state and /metrics\n"
    elif state is None:
        status, kind, text = HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", "nothing seen of the run yet\n"
    elif path == "/":
        text = page(state)
    elif path == "/metrics":
        kind, text = "text/plain; version=0.0.4; charset=utf-8", metrics() or ""
    else:
        kind, text = "application/json", json.dumps(state)
    body = text.encode()
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Cache-Control", "no-store")
    request.end_headers()
    request.wfile.write(body)
