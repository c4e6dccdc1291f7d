"""Start and stop the one p2pd of a peer, and say in time why it cannot join.

p2pd alone says only "failed to connect to bootstrap peers", for any reason, after up to 15 s and with TCP addresses that drop
packets later still. So each initial peer is tried by TCP first (5 s, all at once); when none is left the peer stops there, else
p2pd gets the ones that answered (and those that cannot be tried, over QUIC). If it still fails, a p2pd without initial peers
dials them one by one and its reasons are reported. All of it ends within 30 s.

hivemind's `P2P` is used as it is, except that one method and one class attribute, which it reads from its class, are given by
a subclass: the directory of the sockets (`p2p_lifetime`) and flags that have no parameter. One of them turns noise off, which
p2pd would otherwise prefer to TLS: TLS costs about half the CPU (measured), and every p2pd of hivemind speaks it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from gwtf_p2p.live.libp2p.daemon_lifetime import (
    KeptProcess,
    SocketDir,
    commands_no_more,
    keep_reading,
    make_socket_dir,
    socket_base,
    sweep,
    take_socket_dir,
)
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.identity import Identity, IdentityInUse
from gwtf_p2p.live.libp2p.listening import check_listens, check_ports
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

_PROBE_S = 5.0
_DIAL_S = 6.0
_IDENTITY_CHECK_S = 6.0
_SHUTDOWN_S = 5.0
_HOLD_S = 2.0
_FORK_LOOK_S = 0.01

# What p2pd prints as its last words (go-libp2p-daemon of hivemind 1.1.12).
_NOT_JOINED = "failed to connect to bootstrap peers"
_NO_LISTEN = "failed to listen on any addresses"


OWN_GROUP = (sys.executable, "-I", "-S", "-c", "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])")
"""Before a command: it runs in a process group of its own. A signal to the peer's group (Ctrl+C, systemd, timeout) is then the
peer's to answer, with a p2pd that lives while it leaves."""


class DaemonFailed(Exception):
    """p2pd does not run on this machine, or not in time. Exit code 6."""

    exit_code = 6


class DaemonEnded(Exception):
    """p2pd has ended under a running peer, which can start again with another one."""


class NetworkUnreachable(Exception):
    """No initial peer could be joined. Exit code 3. `reasons` has one line for each address."""

    exit_code = 3

    def __init__(self, reasons: Sequence[tuple[str, str]]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("no initial peer can be reached: " + "; ".join(f"{text}: {why}" for text, why in reasons))


class Daemon:
    """A running p2pd, commanded by this process alone. Made by `start_daemon`; ended by `stop` or by this process's end."""

    def __init__(self, p2p: P2P, sockets: SocketDir, options: P2POptions) -> None:
        self.p2p = p2p
        self.options = options
        self.peer_id = PeerId(str(p2p.peer_id))
        self.control_path = str(p2p.daemon_listen_maddr["unix"])
        self.listen_path = str(p2p._client_listen_maddr["unix"])
        self._sockets = sockets
        keep_reading(p2p._client.control)

    @property
    def pid(self) -> int:
        """Process id of p2pd."""
        return int(self.p2p._child.pid)

    async def maddrs(self) -> tuple[str, ...]:
        """Addresses under which others can reach this peer, peer id included: what goes into `--initial_peers`. None of them
        where p2pd names none, which hivemind's own method takes for a mistake."""
        _, visible = await self.p2p._client.identify()
        return tuple(f"{maddr}/p2p/{self.peer_id}" for maddr in visible)

    async def hold(self) -> socket.socket:
        """A connection of which one is enough for p2pd to live on: whoever has it, in whatever process, keeps it alive."""
        holding = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await asyncio.to_thread(_hold, holding, self.control_path)
        except BaseException:
            holding.close()
            raise
        return holding

    async def wait_ended(self) -> None:
        """Return when p2pd has ended, for whatever reason, or can be commanded no more."""
        ends = {asyncio.ensure_future(end) for end in (self.p2p._child.wait(), commands_no_more(self.p2p._client.control))}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def stop(self) -> None:
        """End p2pd and remove its sockets. May be called twice."""
        ending = asyncio.ensure_future(self.p2p.shutdown())
        gone = asyncio.ensure_future(_gone(self.pid))
        try:
            await asyncio.wait({ending, gone}, timeout=_SHUTDOWN_S, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done() and not gone.done():
                with suppress(ProcessLookupError):
                    self.p2p._child.kill()
        finally:
            ending.cancel()
            gone.cancel()
            await self._end_tasks()
            self._sockets.remove()

    async def _end_tasks(self) -> None:
        """Of hivemind's connection to p2pd: `shutdown` only cancels them, and one that failed when p2pd died tells so at the
        next garbage collection, wherever that is.
        """
        control = self.p2p._client.control
        tasks = [task for task in (control._read_task, control._write_task) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


def _hold(holding: socket.socket, control_path: str) -> None:
    """Raises OSError, or TimeoutError where p2pd does not answer."""
    holding.settimeout(_HOLD_S)
    holding.connect(control_path)
    request = p2pd_pb2.Request(type=p2pd_pb2.Request.PERSISTENT_CONN_UPGRADE).SerializeToString()
    holding.sendall(bytes((len(request),)) + request)
    if not holding.recv(1 << 10):
        raise ConnectionError("p2pd takes no more connections")


async def _gone(pid: int) -> None:
    """Return when a process has ended, as the kernel tells it (Linux).

    asyncio tells it only when the process's pipes are at their end too, and hivemind stops reading them: it never hears.
    """
    if not hasattr(os, "pidfd_open"):
        await asyncio.Event().wait()
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@asynccontextmanager
async def running_daemon(options: P2POptions, identity: Identity | None = None) -> AsyncIterator[Daemon]:
    """`start_daemon`, and `stop` on every way out."""
    daemon = await start_daemon(options, identity)
    try:
        yield daemon
    finally:
        await asyncio.shield(daemon.stop())


async def start_daemon(options: P2POptions, identity: Identity | None = None) -> Daemon:
    """Start p2pd and join the initial peers; without an identity the peer id is a fresh one.

    Raises NetworkUnreachable (exit code 3), IdentityInUse (4), DaemonFailed (6), InputError for an address that is taken or
    that p2pd does not listen on. Cancelled, it leaves no p2pd behind.
    """
    check_ports(options.host_maddrs)
    reasons = await probe(options.initial_peers)
    reachable = tuple(peer for peer in options.initial_peers if peer.text not in reasons)
    if options.initial_peers and not reachable:
        raise NetworkUnreachable(list(reasons.items()))  # whoever tries again, or gives up, tells why
    for text, why in reasons.items():
        logger.warning("initial peer %s: %s", text, why)
    joining = replace(options, initial_peers=reachable)
    if identity is not None and reachable and options.check_identity:
        await _check_identity(joining, identity)
    try:
        daemon = await _launch(joining, identity)
    except P2PDaemonError as error:
        if _NOT_JOINED in str(error):
            dialled = await _dial_each(reachable)
            raise NetworkUnreachable([*reasons.items(), *((peer.text, dialled[peer.text]) for peer in reachable)]) from error
        if _NO_LISTEN in str(error):
            why = str(error).partition(_NO_LISTEN)[2].strip(": []")
            raise InputError("--host_maddrs", ",".join(options.host_maddrs), f"cannot listen there: {why}") from error
        raise DaemonFailed(f"p2pd does not start: {error}") from error
    async with AsyncExitStack() as on_failure:
        on_failure.push_async_callback(daemon.stop)
        check_listens(options.host_maddrs, await daemon.maddrs(), announces=bool(options.announce_maddrs))
        on_failure.pop_all()
    return daemon


async def probe(peers: Sequence[InitialPeer], limit_s: float = _PROBE_S) -> dict[str, str]:
    """The TCP addresses that do not answer, each with the reason. QUIC addresses cannot be tried from here and pass."""
    texts = [peer.text for peer in peers if peer.transport == "tcp"]
    whys = await asyncio.gather(*(_probe_tcp(peer, limit_s) for peer in peers if peer.transport == "tcp"))
    return {text: why for text, why in zip(texts, whys, strict=True) if why}


async def _probe_tcp(peer: InitialPeer, limit_s: float) -> str:
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(peer.host, peer.port)
    except TimeoutError:
        return f"no answer from {peer.host} port {peer.port} within {limit_s:.0f} s"
    except OSError as error:
        return f"{peer.host} port {peer.port}: {error.strerror or error}"
    writer.transport.abort()
    return ""


async def _launch(options: P2POptions, identity: Identity | None) -> Daemon:
    base = socket_base(os.environ)
    sweep(base)
    sockets = make_socket_dir(base)
    async with AsyncExitStack() as on_failure:
        on_failure.callback(sockets.remove)
        p2p_class = _daemon_class(sockets.path, options)
        on_failure.push_async_callback(_end_unfinished, p2p_class.made)
        creating = p2p_class.create(
            initial_peers=[peer.text for peer in options.initial_peers],
            host_maddrs=options.host_maddrs or None,
            no_listen=not options.host_maddrs,
            announce_maddrs=options.announce_maddrs or None,
            identity_path=str(identity.path) if identity else None,
            check_if_identity_free=False,  # checked before, where the reason can be told
            dht_mode="off" if options.is_quiet else options.dht_mode,
            use_relay=options.use_relay,
            use_auto_relay=options.use_auto_relay,
            auto_nat=options.auto_nat,
            nat_port_map=options.nat_port_map,
            force_reachability="public" if options.is_public else "private" if options.is_quiet else None,
            persistent_conn_max_msg_size=DEFAULT_MAX_MSG_SIZE,  # unequal limits make callers hang (measured)
            startup_timeout=options.start_timeout_s,
        )
        p2p = await _with_a_child(creating, p2p_class.made)
        p2p_class.made.clear()
        on_failure.pop_all()
    return Daemon(p2p, sockets, options)


async def replicated(control_path: str, options: P2POptions, process: KeptProcess) -> Daemon:
    """A p2pd that another process has started with these options, commanded by this one from now on.

    Raises OSError, TimeoutError or IncompleteReadError when it serves no more.
    """
    sockets = take_socket_dir(Path(control_path).parent)
    with ExitStack() as on_failure:
        on_failure.callback(sockets.remove)
        p2p = await _daemon_class(sockets.path, options).replicate(Multiaddr(f"/unix{control_path}"))
        on_failure.pop_all()
    p2p._client.control.persistent_conn_max_msg_size = DEFAULT_MAX_MSG_SIZE
    p2p._child = process
    return Daemon(p2p, sockets, options)


async def _with_a_child(creating: Coroutine[Any, Any, P2P], made: Sequence[P2P]) -> P2P:
    """What is being made. Cancelled, it goes on until its process is known: one that is cancelled while it forks leaves a
    process that nobody can end, and whose end nobody hears."""
    task = asyncio.ensure_future(creating)
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done() and not any(p2p._child is not None for p2p in made):
            await asyncio.wait({task}, timeout=_FORK_LOOK_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _end_unfinished(made: Sequence[P2P]) -> None:
    """Wait for the end of a p2pd whose start has failed or was cancelled; its pipes would stay open otherwise."""
    for p2p in made:
        p2p._terminate()
        if p2p._child is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SHUTDOWN_S):
                    await p2p._child.communicate()


def _daemon_class(socket_dir: Path, options: P2POptions) -> type[P2P]:
    class GwtfP2P(P2P):  # type: ignore[misc]  # hivemind has no types
        made: ClassVar[list[P2P]] = []
        """The one that is being made: `create` hands out none when it is cancelled, and its p2pd has to end all the same."""

        def __init__(self) -> None:
            super().__init__()
            self.made.append(self)

        _UNIX_SOCKET_PREFIX = f"/unix{socket_dir}/"
        DHT_MODE_MAPPING = {**P2P.DHT_MODE_MAPPING, "off": {}}  # noqa: RUF012 (hivemind's own attribute)

        @staticmethod
        def _make_process_args(*args: object, **kwargs: object) -> list[str]:
            lends = options.lending.flags if options.lending is not None else ()
            command = [*P2P._make_process_args(*args, **kwargs), f"-noise={int(options.noise)}", *lends, *options.relay_flags]
            # With one thread p2pd's race between its two circuit relay services nearly always ends well (`public_relay`).
            settings = ["GOMAXPROCS=1"] * options.is_public + ["GOLOG_FILE=/dev/null"] * options.outlives
            return [*OWN_GROUP, *(["env", *settings] if settings else []), *command]

    return GwtfP2P


async def until(stop: asyncio.Event, daemon: Daemon, *others: asyncio.Future[None]) -> None:
    """Return when `stop` is set. Raises what one of the others raises, or DaemonEnded."""
    stopping = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(daemon.wait_ended())
    waiting: set[asyncio.Future[Any]] = {stopping, ended, *others}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in others:
            if future in done:
                future.result()
        if ended in done and stopping not in done:
            raise DaemonEnded("p2pd ended under the running peer")
    finally:
        stopping.cancel()
        ended.cancel()


@asynccontextmanager
async def asking_daemon(initial_peers: tuple[InitialPeer, ...] = ()) -> AsyncIterator[Daemon]:
    """A p2pd without identity or address, for a question that the peer's own cannot ask. Raises P2PDaemonError."""
    options = P2POptions(initial_peers, host_maddrs=(), dht_mode="client", auto_nat=False, nat_port_map=False)
    daemon = await _launch(options, None)
    try:
        yield daemon
    finally:
        await daemon.stop()


async def _check_identity(options: P2POptions, identity: Identity) -> None:
    """Is a peer with this id in the swarm already? Raises IdentityInUse."""
    try:
        async with asking_daemon(options.initial_peers) as daemon:
            taken = not await connect(daemon.control_path, identity.peer_id, (), _IDENTITY_CHECK_S)
    except P2PDaemonError:
        return  # the same will happen to the real one, where it is reported
    if taken:
        raise IdentityInUse(identity.path, f"another peer of this swarm ({identity.peer_id})")


async def _dial_each(peers: Sequence[InitialPeer]) -> dict[str, str]:
    """Why p2pd cannot join each of these."""
    async with asking_daemon() as daemon:
        whys = await asyncio.gather(*(connect(daemon.control_path, peer.peer, [peer.text], _DIAL_S) for peer in peers))
    return {peer.text: why or "answers now, but did not when p2pd started" for peer, why in zip(peers, whys, strict=True)}
