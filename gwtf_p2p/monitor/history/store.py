"""The history of runs in one SQLite file: iterations and events. (Who has contributed what, the swarm itself knows.)

One monitor writes a file. A second one that is given the same file, while the first runs, works on a copy in memory: two would
write every event twice. A file that is not such a history is refused; a disk that is full ends nothing:
the write is lost, and `trouble` says so.

A swarm that goes back does iterations again, and a run id may be used for another run. So an iteration counts only while no
earlier one was seen later than it (by more than `LATE_S`: records of several data peers come one after the other); it is
replaced when it is done again.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gwtf_p2p.monitor.swarm_state import Change, Sample
from gwtf_p2p.protocol.errors import InputError

VERSION = 1
APPLICATION_ID = 0x67777466
"""'gwtf', in the file's header: whose file it is."""

LATE_S = 120.0
CHANGES_KEPT = 20_000
_LIVED = f"""
WITH seen AS (
    SELECT *, max(seen_at) OVER (ORDER BY iteration ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM iterations WHERE run = ?
), lived AS (SELECT * FROM seen WHERE before IS NULL OR seen_at >= before - {LATE_S})
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, first_seen REAL NOT NULL);
CREATE TABLE IF NOT EXISTS iterations (
    run TEXT NOT NULL, iteration INTEGER NOT NULL, loss REAL NOT NULL, held_out_loss REAL, seconds REAL NOT NULL,
    seen_at REAL NOT NULL, PRIMARY KEY (run, iteration)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, at REAL NOT NULL, text TEXT NOT NULL, kind TEXT NOT NULL, peer TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS changes_of_run ON changes (run, id);
"""


class History:
    """Made by `open_history`. All methods may be called from any thread."""

    def __init__(self, connection: sqlite3.Connection, lock_file: IO[bytes] | None, trouble: str = "") -> None:
        self.trouble = trouble
        self._connection = connection
        self._lock_file = lock_file
        self._lock = threading.Lock()

    def began(self, run: str, now: float) -> float:
        """When a monitor with this history first saw the run."""
        self._write("INSERT OR IGNORE INTO runs VALUES (?, ?)", [(run, now)])
        rows = self._read("SELECT first_seen FROM runs WHERE run = ?", (run,))
        return float(rows[0][0]) if rows else now

    def add(self, run: str, samples: Iterable[Sample], changes: Iterable[Change], now: float) -> None:
        """What one look has brought, in one transaction."""
        iterations = [(run, s.iteration, s.loss, s.held_out_loss, s.iteration_s, now) for s in samples]
        events = [(run, c.at, c.text, c.kind, c.peer) for c in changes]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO iterations VALUES (?, ?, ?, ?, ?, ?)", iterations)
            connection.executemany("INSERT INTO changes (run, at, text, kind, peer) VALUES (?, ?, ?, ?, ?)", events)
            if events:
                old = "DELETE FROM changes WHERE run = ? AND id <= (SELECT max(id) FROM changes) - ?"
                connection.execute(old, (run, CHANGES_KEPT))

    def newest_samples(self, run: str, version: int, most: int) -> list[Sample]:
        """The last iterations that `version` of the weights has behind it, oldest first."""
        what = f"""{_LIVED} SELECT iteration, loss, seconds, held_out_loss FROM lived
            WHERE iteration < ? ORDER BY iteration DESC LIMIT ?"""
        return [Sample(*row) for row in reversed(self._read(what, (run, version, most)))]

    def newest_changes(self, run: str, most: int) -> list[Change]:
        """The last events, oldest first."""
        what = "SELECT at, text, kind, peer FROM changes WHERE run = ? ORDER BY id DESC LIMIT ?"
        return [Change(*row) for row in reversed(self._read(what, (run, most)))]

    def span(self, run: str, version: int) -> tuple[int, int] | None:
        """First and last iteration that is known of those before `version`; None when none is."""
        what = f"{_LIVED} SELECT min(iteration), max(iteration) FROM lived WHERE iteration < ?"
        first, last = self._read(what, (run, version))[0]
        return None if first is None else (int(first), int(last))

    def series(self, run: str, first: int, last: int, points: int) -> list[tuple[Any, ...]]:
        """At most so many points between two iterations: (iteration, loss, lowest, highest, held-out loss, seconds).

        Each stands for the iterations of its bucket: the last one's number, means, and the extremes of the loss. Held-out loss
        and seconds are None where no iteration of the bucket has them.
        """
        width = max(1, -(-(last - first + 1) // points))
        what = f"""{_LIVED}
            SELECT max(iteration), avg(loss), min(loss), max(loss), avg(held_out_loss), avg(nullif(seconds, 0))
            FROM lived WHERE iteration BETWEEN ? AND ? GROUP BY (iteration - ?) / ? ORDER BY 1
        """
        return self._read(what, (run, first, last, first, width))

    def close(self) -> None:
        with self._lock:
            self._connection.close()
        if self._lock_file is not None:
            self._lock_file.close()

    # ---- SQL

    def _write(self, what: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._transaction() as connection:
            connection.executemany(what, rows)

    def _transaction(self) -> _Transaction:
        return _Transaction(self, self._connection, self._lock)

    def _read(self, what: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(what, values).fetchall()


class _Transaction:
    """One transaction under the lock. What the disk refuses is rolled back and told in `trouble`, not raised."""

    def __init__(self, history: History, connection: sqlite3.Connection, lock: threading.Lock) -> None:
        self._history, self._connection, self._lock = history, connection, lock

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        try:
            if error is None:
                self._connection.commit()
            else:
                self._connection.rollback()
        except sqlite3.Error as failed:
            error = failed
        finally:
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            self._history.trouble = f"the history is not written: {error}"
            return True
        return False


def open_history(path: Path | None) -> History:
    """The history in this file, made when there is none; None: in memory. Raises InputError for any other file."""
    if path is None:
        return History(_prepared(_memory()), None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.with_name(f"{path.name}.lock").open("ab")
    except OSError as error:
        raise InputError("--history", str(path), f"cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock_file.close()
        return History(_copy(path), None, "another monitor keeps this history; what this one sees is kept in memory only")
    try:
        return History(_prepared(_opened(path)), lock_file)
    except (sqlite3.Error, InputError) as error:
        lock_file.close()
        if isinstance(error, InputError):
            raise
        raise InputError("--history", str(path), f"is no history of this program: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, check_same_thread=False)


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)


def _copy(path: Path) -> sqlite3.Connection:
    copy = _memory()
    with suppress(sqlite3.Error):  # the other monitor may be making the file at this moment; then there is nothing to copy
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as source:
            source.backup(copy)
        source.close()
    return _prepared(copy)


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    """With its tables. Raises InputError for another program's file or version, sqlite3.Error for what is no database."""
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    has_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if has_tables and (owner, version) != (APPLICATION_ID, VERSION):
        connection.close()
        expected = f"expected a history of version {VERSION}"
        raise InputError("--history", f"application {owner:#x}, version {version}", expected)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.executescript(_TABLES)
    connection.commit()
    return connection
