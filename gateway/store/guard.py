"""What a handler may not do in its job's transaction, and what has gone wrong in it.

Every statement passes here through SQLAlchemy's events, whether it came from the session, its sync twin or the
connection. What would leave the transaction is refused before it reaches the server. A database error poisons the
transaction even if the handler swallows it: after one, PostgreSQL commits nothing and says so to nobody, MySQL and
SQLite commit the first half. Only a savepoint that is rolled back takes the error with it.
"""

import asyncio
import re
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from gateway.errors import StoreError, StoreUnavailable, TransactionPoisoned, TransactionRefused
from gateway.store.wire import Fault, Wire, original, translate

OPTION = "gateway_guard"
"""The execution option under which a job's connection carries its guard."""

_BLANK = re.compile(r"(?:[\s;(]|--[^\n]*|#[^\n]*|/\*(?!M?!).*?\*/)*", re.DOTALL)
_WORDS = re.compile(r"(/\*M?!|[A-Za-z]+)\s*([A-Za-z]+|@@?)?")
_ENDS = frozenset({"COMMIT", "ROLLBACK", "BEGIN", "START", "END", "ABORT", "SAVEPOINT", "RELEASE", "XA", "/*!", "/*M!"})
_CHANGES = frozenset(
    re.findall(
        r"\w+",
        "CREATE ALTER DROP TRUNCATE RENAME GRANT REVOKE COMMENT REASSIGN SECURITY IMPORT "
        "INSTALL UNINSTALL VACUUM REINDEX CLUSTER REFRESH ANALYZE OPTIMIZE REPAIR CHECKPOINT FLUSH "
        "KILL SHUTDOWN RESET DISCARD LISTEN UNLISTEN UNLOCK USE ATTACH DETACH ",
    )
)
_LOOKS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list"})
_PRAGMA = re.compile(r"PRAGMA\s+(?:\w+\.)?(\w+)", re.IGNORECASE)


@lru_cache(maxsize=2048)
def refusal(statement: str) -> str | None:
    """Say why a statement may not run inside a job's transaction; None if it may."""
    start = _BLANK.match(statement)
    words = _WORDS.match(statement, start.end() if start else 0)
    if words is None:
        return None
    first, second = words[1].upper(), (words[2] or "").upper()
    if first in _ENDS or (first, second) == ("PREPARE", "TRANSACTION"):
        return f"{first} would leave the job's transaction, which the gateway ends; use savepoint() to undo a part"
    if (first, second) == ("LOCK", "TABLES") or first in _CHANGES:
        return f"{first} cannot be part of a job's transaction: some databases commit at it, or keep it afterwards"
    if first == "SET" and second not in ("LOCAL", "CONSTRAINTS", "@"):
        return "SET would outlive the job's transaction; PostgreSQL's SET LOCAL ends with it"
    if first == "PRAGMA":
        pragma = _PRAGMA.search(statement)
        if pragma is None or pragma[1].lower() not in _LOOKS:
            return "PRAGMA would outlive the job's transaction"
    return None


class Guard:
    """What has happened in one job's transaction."""

    def __init__(self, wire: Wire) -> None:
        self.ended = False
        self.outage: StoreError | None = None
        self.running = False
        """Whether a statement is with the server right now."""
        self._wire = wire
        self._refused: TransactionRefused | None = None
        self._fatal: BaseException | None = None
        self._errors: list[tuple[int, BaseException]] = []
        self._savepoints: list[str] = []

    def refuse(self, reason: str) -> TransactionRefused:
        """Return the error to raise; it also stands against the commit, in case it is swallowed."""
        error = TransactionRefused(reason)
        if not self.ended:
            self._refused = self._refused or error
        return error

    def verify(self) -> None:
        """Raise if the transaction may not be committed."""
        if self._refused is not None:
            raise TransactionRefused(str(self._refused)) from self._refused
        if self.outage is not None:
            raise StoreUnavailable(str(self.outage)) from self.outage
        cause = self._fatal or (self._errors[0][1] if self._errors else None)
        if cause is not None:
            raise TransactionPoisoned(
                f"a database error happened in the job's transaction ({type(cause).__name__}: {cause}); "
                "only savepoint() can survive one"
            ) from cause

    def check(self, statement: str, context: Any) -> None:
        """Raise if this statement may not run. A refused one stands against the commit."""
        if self.ended:
            raise TransactionRefused("the job's transaction is over")
        if self._refused is not None:
            raise TransactionRefused(str(self._refused))
        if self._fatal is not None:  # the database is outside of the transaction: what follows would commit alone
            self.verify()
        if _savepoint(context) is None:
            reason = refusal(statement)
            if reason is not None:
                raise self.refuse(reason)
        self.running = True

    def failed(self, error: BaseException) -> None:
        """Note an error of a statement."""
        self.running = False
        cause = original(error)
        fault = self._wire.fault(error)
        if isinstance(cause, asyncio.CancelledError) or self._wire.ends(cause):
            self._fatal = self._fatal or cause
        elif fault is Fault.UNAVAILABLE:
            self.outage = self.outage or translate(fault, cause)
        else:
            self._errors.append((len(self._savepoints), cause))

    def done(self, context: Any) -> None:
        """Note that a statement succeeded. A savepoint rolled back takes the errors inside it along."""
        self.running = False
        clause = _savepoint(context)
        if isinstance(clause, SavepointClause):
            self._savepoints.append(str(clause.ident))
        elif clause is not None and str(clause.ident) in self._savepoints:
            depth = self._savepoints.index(str(clause.ident))
            del self._savepoints[depth:]
            undone = isinstance(clause, RollbackToSavepointClause)
            kept = [(min(at, depth), error) for at, error in self._errors if at <= depth or not undone]
            self._errors = kept


_Savepoint = SavepointClause | RollbackToSavepointClause | ReleaseSavepointClause


def _savepoint(context: Any) -> _Savepoint | None:
    """Return SQLAlchemy's own savepoint statement, if this is one."""
    construct = getattr(getattr(context, "compiled", None), "statement", None)
    return construct if isinstance(construct, _Savepoint) else None


def _guard(connection: Connection | None) -> Guard | None:
    return None if connection is None else connection.get_execution_options().get(OPTION)


def watch(engine: Engine) -> None:
    """Make every connection of an engine that carries a guard obey it."""

    @event.listens_for(engine, "before_cursor_execute")
    def _(connection: Connection, _c: Any, statement: str, _p: Any, context: Any, _m: bool) -> None:
        if guard := _guard(connection):
            guard.check(statement, context)

    @event.listens_for(engine, "after_cursor_execute")
    def _(connection: Connection, _c: Any, _s: str, _p: Any, context: Any, _m: bool) -> None:
        if guard := _guard(connection):
            guard.done(context)

    @event.listens_for(engine, "handle_error")
    def _(context: ExceptionContext) -> None:
        if (guard := _guard(context.connection)) and context.execution_context is not None:
            guard.failed(context.original_exception)
            # The transaction drops its connection itself, on the loop; SQLAlchemy would in a plain handler's thread.
            context.is_disconnect = False

    _watch_ends(engine)


def _watch_ends(engine: Engine) -> None:
    @event.listens_for(engine, "commit")
    def _(connection: Connection) -> None:
        if (guard := _guard(connection)) and not guard.ended:
            raise guard.refuse("the gateway commits the job's transaction, together with its outcome")

    @event.listens_for(engine, "rollback")
    def _(connection: Connection) -> None:
        # not raised here: a failed flush rolls back too, and its own error must reach the handler
        if (guard := _guard(connection)) and not guard.ended:
            guard.refuse("the job's transaction was rolled back; use savepoint() to survive an error")


def watch_text(engine: Engine) -> None:
    """Refuse, on the gateway's own connections, a deferred write that would leave the shared transaction."""

    @event.listens_for(engine, "before_cursor_execute")
    def _(_n: Connection, _c: Any, statement: str, _p: Any, _x: Any, _m: bool) -> None:
        reason = refusal(statement)
        if reason is not None:
            raise TransactionRefused(reason)
