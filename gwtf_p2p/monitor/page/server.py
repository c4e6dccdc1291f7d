"""Runs the page's application in a thread of its own, so that a busy page does not hold up the observer."""

from __future__ import annotations

import socket
import threading

import uvicorn

from gwtf_p2p.monitor.page.app import make_app
from gwtf_p2p.monitor.page.watched_runs import WatchedRuns
from gwtf_p2p.protocol.errors import InputError

MOST_CONNECTIONS = 600
"""Requests at once, each browser that follows being one; more are answered 503."""

GRACE_S = 2
JOIN_S = 20.0


class PageServer:
    """Listens from the start; serves from `start` to `stop`."""

    def __init__(self, host: str, port: int, runs: WatchedRuns) -> None:
        """Raises InputError when the port cannot be had."""
        self._runs = runs
        self._socket = _listen(host, port)
        config = uvicorn.Config(
            make_app(runs),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="gwtf-page", daemon=True
        )

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends all connections; may be called once, after `start`."""
        self._server.should_exit = True
        self._runs.close()
        self._thread.join(JOIN_S)
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise InputError("--port", str(port), f"cannot be listened on at {host} ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError("--port", str(port), f"cannot be listened on at {host} ({error})") from error
    return listener
