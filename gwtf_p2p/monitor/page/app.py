"""What the monitor's web server answers: the page, the JSON API, server-sent events, metrics. Read-only, no cookies.

Everything is answered from what the observer has seen; a request never reaches the swarm. Browsers are told to load nothing
from elsewhere and to run no script that is not one of ours.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gwtf_p2p.drawing.axes import FILE
from gwtf_p2p.monitor.page.join_line import qr_code
from gwtf_p2p.monitor.page.watched_runs import MOST_POINTS, POINTS, WatchedRun, WatchedRuns
from gwtf_p2p.version import VERSION

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
MOST_ITERATION = 1 << 53


class _SafeHeaders:
    """Puts `HEADERS` on every answer, errors and files too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, with_headers)


def make_app(runs: WatchedRuns) -> Starlette:
    """The ASGI application."""
    pages = _Pages(runs)
    api = "/api/v1/runs/{run_id}"
    routes = [
        Route("/", pages.front),
        Route("/runs/{run_id}", pages.run),
        Route("/runs/{run_id}/join.svg", pages.join_code),
        Route("/api/v1/state", pages.first_state),
        Route("/api/v1/runs", pages.all_runs),
        Route("/api/v1/schema.json", pages.schema),
        Route(f"{api}/state", pages.state),
        Route(f"{api}/events", pages.events),
        Route(f"{api}/history", pages.history),
        Route(f"{api}/work", pages.work),
        Route(f"{api}/plan", pages.plan),
        Route(f"{api}/peers/{{peer}}", pages.peer),
        Route("/metrics", pages.metrics),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    middleware = [Middleware(_SafeHeaders), Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)]
    handlers: dict[Any, Callable[[Request, Exception], Response | Awaitable[Response]]] = {HTTPException: _refuse}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _refuse(request: Request, error: Exception) -> Response:
    """Errors in one line of plain text."""
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, {"Cache-Control": "no-store"})


class _Pages:
    """The endpoints."""

    def __init__(self, runs: WatchedRuns) -> None:
        self.runs = runs
        self.templates = Jinja2Templates(directory=HERE / "templates")

    async def front(self, request: Request) -> Response:
        """The run, or the list of runs where there are several."""
        if len(self.runs.by_id) == 1:
            return RedirectResponse(f"runs/{next(iter(self.runs.by_id))}", 307, {"Cache-Control": "no-store"})
        return self._html(request, "runs.html", {"runs": self._list()})

    async def run(self, request: Request) -> Response:
        run = self._run(request)
        document = run.feed.document
        told = {"run": document, "others": self._list(), "public": self.runs.options.public, "axes": FILE.read_text()}
        return self._html(request, "run.html", told)

    async def join_code(self, request: Request) -> Response:
        line = self.runs.options.join.of(self._run(request).state.run.run_id)
        if line is None:
            raise HTTPException(404, "this monitor names no address to join at")
        return Response(qr_code(line), media_type="image/svg+xml", headers={"Cache-Control": "max-age=3600"})

    async def all_runs(self, request: Request) -> Response:
        return _json({"runs": self._list()})

    async def first_state(self, request: Request) -> Response:
        """Of the only run, or the first of several: the address that scripts of older versions ask."""
        run = next(iter(self.runs.by_id.values()), None)
        return self._state(run)

    async def state(self, request: Request) -> Response:
        return self._state(self._run(request))

    async def schema(self, request: Request) -> Response:
        return FileResponse(HERE / "static" / "schema.json", media_type="application/schema+json")

    async def events(self, request: Request) -> Response:
        run = self._run(request)
        after = request.headers.get("last-event-id") or request.query_params.get("after") or run.feed.newest
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(run.feed.follow(after[:64]), media_type="text/event-stream", headers=headers)

    async def history(self, request: Request) -> Response:
        run, first, last = self._run(request), _number(request, "first", None), _number(request, "last", None)
        points = _number(request, "points", POINTS)
        assert points is not None
        return _json(await run_in_threadpool(self.runs.series, run, first, last, min(max(points, 2), MOST_POINTS)))

    async def work(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self.runs.board, self._run(request)))

    async def plan(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self.runs.gantt, self._run(request)))

    async def peer(self, request: Request) -> Response:
        details = await run_in_threadpool(self.runs.peer, self._run(request), request.path_params["peer"])
        if details is None:
            raise HTTPException(404, "no such peer is known of this run")
        return _json(details)

    async def metrics(self, request: Request) -> Response:
        if not self.runs.by_id:
            raise HTTPException(503, "nothing seen of the run yet")
        text = await run_in_threadpool(self.runs.metrics)
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(text, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    # ----

    def _run(self, request: Request) -> WatchedRun:
        run = self.runs.by_id.get(request.path_params["run_id"])
        if run is None:
            raise HTTPException(404, "this monitor does not watch such a run, or has seen nothing of it yet")
        return run

    def _list(self) -> list[dict[str, Any]]:
        wanted = ("run_id", "model", "iterations", "total_iterations", "loss", "tokens_per_second", "peers_online", "findings")
        documents = [run.feed.document for run in self.runs.by_id.values()]
        return [{key: document[key] for key in wanted} for document in documents if document is not None]

    def _state(self, run: WatchedRun | None) -> Response:
        packed = run.feed.packed() if run is not None else None
        if packed is None:
            raise HTTPException(503, "nothing seen of the run yet")
        return Response(packed, media_type="application/json", headers={"Cache-Control": "no-store"})

    def _html(self, request: Request, name: str, context: dict[str, Any]) -> Response:
        headers = {"Cache-Control": "no-store"}
        return self.templates.TemplateResponse(request, name, {"version": VERSION, **context}, headers=headers)


def _json(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _number(request: Request, name: str, otherwise: int | None) -> int | None:
    """A whole number of the query. Raises HTTPException."""
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not (text.isdecimal() and text.isascii() and int(text[:17]) < MOST_ITERATION and len(text) < 17):
        raise HTTPException(400, f"{name}: expected a whole number, got {json.dumps(text[:40])}")
    return int(text)
