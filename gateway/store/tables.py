"""The tables, once for all databases: original column names to the database, the fields of `gateway.job` to Python.

`queue_jobs.c.status` is the column `statusid`. Rows come from plain SQL too, so every default is the server's.
How each database finds jobs without a sort, and without touching a finished one:

- ready: `readylane = 'run' | 'alone' | 'send:<connector>'`, in order of `readyorder, seq`; NULL unless ready
- due: `dueat <= now`; NULL unless Retrying or Scheduled; a row without `scheduledat` is due since 1970
- in order: an earlier row with `waitingkey` = this one's `orderingkey`; NULL once final or inactive
- claimed: `statusid = 2 AND claimedby = …`

and schedules: `wakeat <= now`; NULL once one has no more ticks, and long ago when its definition was changed.
"""

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Dialect,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
    true,
)
from sqlalchemy.sql.elements import ColumnElement

from gateway.store.columns import MYSQL, PerDatabase, Sequence, Time, digest, document, exact, long_text
from gateway.store.definition import EPOCH, wake_at

metadata = MetaData()

NOW = PerDatabase(
    sqlite="(strftime('%Y-%m-%d %H:%M:%f000', 'now'))",
    postgresql="(now() AT TIME ZONE 'utc')",
    mysql="(utc_timestamp(6))",
)
# MySQL knows no other function here, and takes it in the session's time zone; the gateway's own sessions are in UTC.
CHANGED = PerDatabase(
    sqlite=NOW.texts["sqlite"],
    postgresql=NOW.texts["postgresql"],
    mysql="(utc_timestamp(6)) ON UPDATE CURRENT_TIMESTAMP(6)",
)

_LANE = """CASE WHEN active AND statusid IN (0, 1) THEN CASE
 WHEN handler = 'gateway.publish' THEN {send}
 WHEN crashcount >= 2 THEN 'alone' ELSE 'run' END END"""
_READY_LANE = PerDatabase(
    sqlite=_LANE.format(
        send="'send:' || substr(coalesce(CASE WHEN json_valid(metadata)"
        " THEN json_extract(metadata, '$.connector') END, ''), 1, 250)"
    ),
    postgresql=_LANE.format(send="'send:' || substr(coalesce(metadata ->> 'connector', ''), 1, 250)"),
    mysql=_LANE.format(
        send="concat('send:', substr(coalesce(nullif(json_unquote(json_extract(metadata, '$.connector')), 'null'),"
        " ''), 1, 250))"
    ),
)
_DUE = "CASE WHEN active AND statusid IN (5, 7) THEN coalesce(scheduledat, {epoch}) END"
_DUE_AT = PerDatabase(**{name: _DUE.format(epoch=epoch) for name, epoch in EPOCH.items()})
_WAKE_AT = PerDatabase(**{name: wake_at(name) for name in EPOCH})
_READY_ORDER = "CASE WHEN active AND statusid IN (0, 1) THEN -priority END"
_WAITING_KEY = "CASE WHEN active AND statusid NOT IN (3, 4, 6) THEN orderingkey END"

_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_unicode_ci"}


def _mysql(*_: Any, dialect: Dialect, **__: Any) -> bool:
    return dialect.name in MYSQL


def _not_mysql(*_: Any, dialect: Dialect, **__: Any) -> bool:
    return dialect.name not in MYSQL


def _server(*_: Any, dialect: Dialect, **__: Any) -> bool:
    return dialect.name != "sqlite"


def _number(name: str, key: str | None = None, *, default: int = 0) -> Column[int]:
    return Column(name, Integer, key=key or name, nullable=False, server_default=text(str(default)))


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean(create_constraint=False), nullable=False, server_default=true())


def _generated(name: str, key: str, kind: Any, expression: ColumnElement[Any] | str) -> Column[Any]:
    return Column(name, kind, Computed(expression, persisted=True), key=key)


def _audit() -> list[Column[Any]]:
    return [
        _flag("active"),
        Column("referenceid", String(255), key="reference_id"),
        Column("createdby", String(255), key="created_by"),
        Column("createdon", Time, key="created_at", nullable=False, server_default=NOW),
        Column("modifiedby", String(255), key="modified_by"),
        Column("modifiedon", Time, key="modified_at", nullable=False, server_default=CHANGED),
        _number("rowversionstamp", "row_version", default=1),
    ]


def _readable(*names: str) -> list[CheckConstraint]:
    """SQLite takes any text for a time; one that does not sort like the others would never come due."""
    return [
        CheckConstraint(text(f"{name} GLOB '????-??-?? ??:??:??*'"), name=f"{name}_is_like_2030-12-31 23:59:59").ddl_if(
            dialect="sqlite"
        )
        for name in names
    ]


def _where(name: str, *columns: str, condition: str) -> list[Index]:
    """Return an index that is partial where the database knows such."""
    where = text(condition)
    return [
        Index(name, *columns, postgresql_where=where, sqlite_where=where).ddl_if(callable_=_not_mysql),
        Index(name, *columns).ddl_if(callable_=_mysql),
    ]


queue_jobs = Table(
    "queue_jobs",
    metadata,
    Column("seq", Sequence, key="sequence", nullable=False, autoincrement=False),
    Column("id", exact(255), nullable=False),
    _number("typeid", "type"),
    Column("method", String(100)),
    Column("protocol", String(50)),
    Column("direction", String(20)),
    Column("handler", exact(255), nullable=False),
    Column("metadata", document()),
    Column("payload", long_text()),
    Column("payloadencoding", String(10), key="payload_encoding"),
    Column("result", long_text()),
    _number("statusid", "status"),
    _number("priority"),
    _number("maxretries", "max_retries", default=3),
    _number("retrycount", "retry_count"),
    Column("scheduledat", Time, key="scheduled_at"),
    Column("startedat", Time, key="started_at"),
    Column("completedat", Time, key="completed_at"),
    Column("lasterror", Text, key="last_error"),
    Column("parentjobid", exact(255), key="parent_id"),
    *_audit(),
    Column("claimtoken", exact(36), key="claim_token"),
    Column("claimedby", exact(255), key="claimed_by"),
    _number("crashcount", "crash_count"),
    Column("orderingkey", exact(255), key="ordering_key"),
    Column("progress", Text),
    Column("timeout", Integer),
    _generated("readylane", "ready_lane", exact(255), _READY_LANE),
    _generated("readyorder", "ready_order", BigInteger, _READY_ORDER),
    _generated("dueat", "due_at", Time, _DUE_AT),
    _generated("waitingkey", "waiting_key", exact(255), _WAITING_KEY),
    PrimaryKeyConstraint("id").ddl_if(callable_=_server),
    UniqueConstraint("id", name="uq_queue_jobs_id").ddl_if(dialect="sqlite"),
    UniqueConstraint("sequence", name="uq_queue_jobs_seq").ddl_if(callable_=_server),
    *_readable("scheduledat"),
    *_where("ix_queue_jobs_ready", "ready_lane", "ready_order", "sequence", condition="readylane IS NOT NULL"),
    *_where("ix_queue_jobs_due", "due_at", condition="dueat IS NOT NULL"),
    *_where("ix_queue_jobs_ordering", "waiting_key", "sequence", condition="waitingkey IS NOT NULL"),
    *_where("ix_queue_jobs_completed", "completed_at", condition="completedat IS NOT NULL"),
    *_where("ix_queue_jobs_parent", "parent_id", condition="parentjobid IS NOT NULL"),
    Index(
        "ix_queue_jobs_claimed", "claimed_by", postgresql_where=text("statusid = 2"), sqlite_where=text("statusid = 2")
    ).ddl_if(callable_=_not_mysql),
    Index("ix_queue_jobs_claimed", "status", "claimed_by").ddl_if(callable_=_mysql),
    # Every job is rewritten twice; free space beside it halves the write-ahead log.
    postgresql_with={"fillfactor": 50},
    **_INNODB,
)

job_histories = Table(
    "job_histories",
    metadata,
    Column("id", exact(255), nullable=False),
    Column("jobid", exact(255), key="job_id", nullable=False),
    Column("executionid", exact(255), key="execution_id", nullable=False),
    Column("statusid", Integer, key="status", nullable=False),
    Column("startedat", Time, key="started_at", nullable=False),
    Column("completedat", Time, key="completed_at"),
    Column("duration", BigInteger),
    Column("result", long_text()),
    Column("errormessage", Text, key="error"),
    _number("retryattempt", "retry_attempt"),
    Column("executedby", String(255), key="executed_by"),
    Column("inputdata", long_text(), key="input_data"),
    Column("outputdata", long_text(), key="output_data"),
    Column("metadata", document()),
    *_audit(),
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["job_id"], ["queue_jobs.id"], name="fk_job_histories_jobid", ondelete="CASCADE"),
    Index("ix_job_histories_jobid", "job_id"),
    Index("ix_job_histories_startedat", "started_at"),
    **_INNODB,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", exact(255), nullable=False),
    Column("name", exact(255), nullable=False),
    Column("description", Text),
    _number("typeid", "type"),
    Column("handler", exact(255), nullable=False),
    Column("cronexpression", String(100), key="cron"),
    Column("intervalseconds", Integer, key="interval"),
    Column("startat", Time, key="start_at"),
    Column("endat", Time, key="end_at"),
    _number("maxexecutions", "max_executions"),
    _number("executioncount", "execution_count"),
    _flag("enabled"),
    Column("condition", Text),
    _number("priority"),
    _number("maxretries", "max_retries", default=3),
    _number("timeout", default=300),
    Column("metadata", document()),
    Column("lastrunat", Time, key="last_run_at"),
    Column("nextrunat", Time, key="next_run_at"),
    *_audit(),
    Column("timezone", String(64), key="time_zone"),
    Column("gap", String(20)),
    Column("overlap", String(20)),
    Column("misfire", String(20)),
    Column("misfirelimit", Integer, key="misfire_limit"),
    Column("lasterror", Text, key="last_error"),
    Column("configured", exact(64)),
    Column("planned", exact(500)),
    _generated("wakeat", "wake_at", Time, _WAKE_AT),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("name", name="uq_jobs_name"),
    *_readable("startat", "endat", "nextrunat"),
    *_where("ix_jobs_wakeat", "wake_at", condition="wakeat IS NOT NULL"),
    **_INNODB,
)

schedule_ticks = Table(
    "schedule_ticks",
    metadata,
    Column("scheduleid", exact(255), key="schedule_id", nullable=False),
    Column("tick", Time, nullable=False),
    Column("jobid", exact(255), key="job_id", nullable=False),
    PrimaryKeyConstraint("schedule_id", "tick"),
    Index("ix_schedule_ticks_tick", "tick"),
    **_INNODB,
)

gateway_instances = Table(
    "gateway_instances",
    metadata,
    Column("id", exact(255), nullable=False),
    Column("name", exact(255), nullable=False),
    Column("version", String(50), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("startedat", Time, key="started_at", nullable=False, server_default=NOW),
    Column("heartbeatat", Time, key="heartbeat_at", nullable=False, server_default=NOW),
    Column("sessionlock", Boolean(create_constraint=False), key="session_lock", nullable=False),
    Column("reportedat", Time, key="reported_at"),
    Column("running", Integer),
    Column("workers", Integer),
    Column("connectors", document()),
    Column("handlers", document()),
    PrimaryKeyConstraint("id"),
    **_INNODB,
)

source_positions = Table(
    "source_positions",
    metadata,
    Column("connector", exact(255), nullable=False),
    Column("cluster", exact(100), nullable=False),
    Column("topic", exact(255), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("topicid", exact(64), key="topic_id", nullable=False),
    Column("nextoffset", BigInteger, key="next_offset", nullable=False),
    Column("state", Text),
    Column("updatedat", Time, key="updated_at", nullable=False, server_default=NOW),
    PrimaryKeyConstraint("connector", "cluster", "topic", "partition"),
    **_INNODB,
)

inbound_dedupe = Table(
    "inbound_dedupe",
    metadata,
    Column("connector", exact(255), nullable=False),
    Column("keyhash", digest(), key="key_hash", nullable=False),
    Column("jobid", exact(255), key="job_id", nullable=False),
    Column("bodyhash", digest(), key="body_hash", nullable=False),
    Column("expiresat", Time, key="expires_at", nullable=False),
    PrimaryKeyConstraint("connector", "key_hash"),
    Index("ix_inbound_dedupe_expiresat", "expires_at"),
    **_INNODB,
)

gateway_locks = Table(
    "gateway_locks",
    metadata,
    Column("name", exact(255), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("jobid", exact(255), key="job_id"),
    Column("claimtoken", exact(36), key="claim_token"),
    Column("expiresat", Time, key="expires_at"),
    PrimaryKeyConstraint("name"),
    **_INNODB,
)

gateway_settings = Table(
    "gateway_settings",
    metadata,
    Column("name", exact(100), nullable=False),
    Column("value", String(255), nullable=False),
    PrimaryKeyConstraint("name"),
    **_INNODB,
)

_FUNCTION = """CREATE OR REPLACE FUNCTION update_modifiedon_column() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.modifiedon := now() AT TIME ZONE 'utc'; RETURN NEW; END $$"""
_TRIGGERS = {
    "postgresql": "CREATE TRIGGER update_{table}_modifiedon BEFORE UPDATE ON {table} FOR EACH ROW"
    " WHEN (NEW.modifiedon IS NOT DISTINCT FROM OLD.modifiedon) EXECUTE FUNCTION update_modifiedon_column()",
    "sqlite": "CREATE TRIGGER update_{table}_modifiedon AFTER UPDATE ON {table} FOR EACH ROW"
    " WHEN NEW.modifiedon IS OLD.modifiedon BEGIN UPDATE {table}"
    " SET modifiedon = strftime('%Y-%m-%d %H:%M:%f000', 'now') WHERE rowid = NEW.rowid; END",
}


def _ddl(statement: str, dialect: str) -> Any:
    return DDL(statement.replace("%", "%%")).execute_if(dialect=dialect)  # type: ignore[no-untyped-call]


event.listen(metadata, "before_create", _ddl(_FUNCTION, "postgresql"))
for _table in (queue_jobs, job_histories, jobs):
    for _dialect, _trigger in _TRIGGERS.items():
        event.listen(_table, "after_create", _ddl(_trigger.format(table=_table.name), _dialect))
