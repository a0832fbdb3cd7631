"""Everything the gateway raises, and what a handler may raise to steer its job.

GatewayError
├── ConfigError            the configuration has mistakes; carries all of them
├── PluginNotFound         no connector, handler or coordinator of that name is installed
├── Disconnected           a connector lost its broker; the supervisor runs it again
│   └── NotConnected       there is no connection to send through: nothing was sent
├── DeliveryError          a broker did not take a message
├── StoreError
│   ├── StoreUnavailable   the database cannot be reached or refuses for now; try again later
│   ├── DataRefused        the database will never take these values; bisect to find them
│   ├── CommitUnknown      the connection was lost during COMMIT; read back before deciding
│   ├── PositionLost       another consumer moved the source's position; nothing of the batch was written
│   ├── LockLost           another job took a lock of this one after its ttl; nothing of the attempt was kept
│   ├── LeaseLost          the job is no longer held by this claim; nothing of it was written
│   ├── TransactionRefused a handler tried to end or break its job's transaction
│   ├── TransactionPoisoned a database error was swallowed; the commit is refused
│   └── MigrationError     the schema has another version, or cannot be migrated
├── ExpressionError        an entry's expression has no value for a message
├── PayloadError           a body, result or parameter cannot be encoded or decoded
├── LockBusy               a lock was not free in time
├── HandlerTimeout         a handler took longer than its timeout
└── raised by handlers
    ├── Retry              run this job again later
    ├── Discard            this job can never succeed: Failed, without more attempts
    └── Cancel             this job is no longer wanted: Cancelled
"""

from collections.abc import Sequence


class GatewayError(Exception):
    """Base of every error the gateway raises on purpose."""


class ConfigError(GatewayError):
    """The configuration has mistakes. `mistakes` holds each as one readable line with file and line number."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class PluginNotFound(GatewayError):  # noqa: N818 - reads as what happened
    """No plug-in of that name is installed. The text suggests the nearest name or the extra to install."""


class Disconnected(GatewayError):  # noqa: N818 - reads as what happened
    """A connector lost its broker, or could not reach it. Its supervisor runs it again after a pause."""


class NotConnected(Disconnected):
    """A message was not sent, as there is no connection to its broker right now. Says nothing about the message."""


class DeliveryError(GatewayError):
    """A broker did not confirm a message.

    `permanent` says that trying again cannot help; `retry_after` (seconds) is the receiver's own wish;
    `response` is what it answered, already capped, kept in the job's history.
    """

    def __init__(
        self,
        text: str,
        *,
        permanent: bool = False,
        retry_after: float | None = None,
        response: str | None = None,
    ) -> None:
        super().__init__(text)
        self.permanent = permanent
        self.retry_after = retry_after
        self.response = response


class StoreError(GatewayError):
    """Something about the database. Its subclasses say whether trying again can help."""


class StoreUnavailable(StoreError):  # noqa: N818 - reads as what happened
    """The database cannot be reached, is overloaded, or refuses for now. Nothing was committed."""


class DataRefused(StoreError):  # noqa: N818 - reads as what happened
    """The data itself was refused (encoding, length, constraint, …); nothing was committed. Bisect to find it."""


class CommitUnknown(StoreError):  # noqa: N818 - reads as what happened
    """The answer to COMMIT was lost: the transaction may or may not have been committed."""


class PositionLost(StoreError):  # noqa: N818 - reads as what happened
    """Another consumer has moved a source's position meanwhile: the whole batch was rolled back."""


class LeaseLost(StoreError):  # noqa: N818 - reads as what happened
    """Another claim holds the job by now, or it is finished or cancelled. The transaction was rolled back."""


class LockLost(StoreError):  # noqa: N818 - reads as what happened
    """A lock's ttl was over and another job took it. The attempt was rolled back, and fails with this."""


class TransactionRefused(StoreError):  # noqa: N818 - reads as what happened
    """A handler tried to commit, roll back, run DDL or otherwise leave its job's transaction."""


class TransactionPoisoned(StoreError):  # noqa: N818 - reads as what happened
    """A database error happened in the job's transaction and was swallowed; only `savepoint()` may survive one."""


class MigrationError(StoreError):
    """The schema is missing, older or newer than this program, or its migration failed."""


class ExpressionError(GatewayError):
    """An entry's expression has no value for a message: it compares, adds or reads what it cannot."""


class PayloadError(GatewayError):
    """A body, result or parameter cannot be encoded or decoded. Permanent: trying again gives the same."""


class LockBusy(GatewayError):  # noqa: N818 - reads as what happened
    """Another job held the lock for too long. Raised on, it costs no attempt: the job is run again in its turn."""


class HandlerTimeout(GatewayError):  # noqa: N818 - reads as what happened
    """A handler took longer than its timeout. Its writes were rolled back."""


class Retry(GatewayError):  # noqa: N818 - an instruction, not an error
    """Raised by a handler: roll back and run this job again, after `delay` seconds (None: the usual back-off).

    Uses one attempt, as any failure does.
    """

    def __init__(self, reason: str = "the handler asked for a retry", *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.delay = delay


class Discard(GatewayError):  # noqa: N818 - an instruction, not an error
    """Raised by a handler: roll back; the job ends as Failed with this reason, without more attempts."""

    def __init__(self, reason: str = "discarded by the handler") -> None:
        super().__init__(reason)


class Cancel(GatewayError):  # noqa: N818 - an instruction, not an error
    """Raised by a handler: roll back; the job ends as Cancelled with this reason."""

    def __init__(self, reason: str = "cancelled by the handler") -> None:
        super().__init__(reason)
