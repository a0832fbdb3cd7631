"""SQL is written once; what differs per database is filled in."""

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, insert, text, update

from gateway.job import JobStatus, NewJob
from gateway.store import Deferred, Lane, mysql, postgresql, sqlite
from gateway.store.deferred import merge
from gateway.store.dialect import Dialect
from gateway.store.rows import JOB_COLUMNS, encode_payload, history_from_row, job_from_row
from gateway.store.spread import spread
from gateway.store.statement import compose

DIALECTS = [sqlite.DIALECT, postgresql.DIALECT, mysql.DIALECT]
table = Table("t", MetaData(), Column("a", Integer), Column("b", Integer))


def test_parameters_may_repeat_and_come_in_any_order() -> None:
    template = "SELECT $2, $1, $2"

    assert compose(postgresql.DIALECT, template)("a", "b").args == ["a", "b"]
    for dialect in (sqlite.DIALECT, mysql.DIALECT):
        sql = compose(dialect, template)("a", "b")
        assert list(sql.args) == ["b", "a", "b"]
        assert sql.text == "SELECT {0}, {0}, {0}".format(dialect.placeholder(1))


def test_a_collection_is_one_parameter() -> None:
    template, values = "x {any $1}", ["a", 'b"']

    sent = {dialect.name: compose(dialect, template)(values) for dialect in DIALECTS}

    assert (sent["postgresql"].text, sent["postgresql"].args) == ("x = ANY($1::text[])", [values])
    assert (sent["mysql"].text, sent["mysql"].args) == ("x IN %s", [("a", 'b"')])
    assert sent["sqlite"].args == ['["a", "b\\""]']
    assert compose(mysql.DIALECT, template)([]).args == [(None,)]


def test_what_is_equal_in_all_rows_goes_once() -> None:
    fields = (("id", "text"), ("x", "integer"), ("y", "integer"))

    source, arguments = spread(fields, [("a", 1, 2), ("b", 1, 3)], frozenset({"id"}))

    assert arguments == [("a", "b"), 1, (2, 3)]
    assert source == ("(SELECT id, y, $2::integer AS x FROM unnest($1::text[], $3::integer[]) AS a(id, y))")


def test_a_single_row_has_no_array() -> None:
    source, arguments = spread((("id", "text"), ("x", "integer")), [("a", 1)], frozenset({"id"}))

    assert (source, arguments) == ("(SELECT $1::text AS id, $2::integer AS x)", ["a", 1])


def test_equal_rows_are_still_as_many() -> None:
    source, arguments = spread((("x", "integer"), ("y", "integer")), [(1, 2), (1, 2)], frozenset())

    assert arguments == [[1, 1], 2]
    assert "unnest($1::integer[])" in source


def write(a: int, *, times: int = 1) -> Deferred:
    return Deferred(insert(table), [{"a": a, "b": times}])


def test_equal_statements_become_one_batch() -> None:
    merged = merge([[write(1)], [], [write(2), write(3)]])

    assert [list(one.parameters) for one in merged] == [[{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 1}]]


def test_no_job_sees_its_own_writes_change_places() -> None:
    def change(a: int) -> Deferred:
        return Deferred(update(table).where(table.c.a == bindparam("x")).values(b=1), [{"x": a}])

    merged = merge([[write(1), change(1)], [change(2), write(2)], [write(3), change(3)]])

    assert [[next(iter(p.values())) for p in one.parameters] for one in merged] == [[1, 3], [1, 2, 3], [2]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Deferred(insert(table).values(a=1), []), Deferred(insert(table).values(a=1), [])),
        (Deferred(text("SELECT 1"), [{}]), Deferred(text("SELECT 1"), [{}])),
        (Deferred(insert(table), [{"a": 1}]), Deferred(insert(table), [{"b": 1}])),
        (
            Deferred(update(table).where(table.c.a == 1), [{"b": 1}]),
            Deferred(update(table).where(table.c.a == 2), [{"b": 1}]),
        ),
    ],
)
def test_what_only_looks_equal_is_not_joined(first: Deferred, second: Deferred) -> None:
    assert len(merge([[first], [second]])) == 2


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("junk", [None, "junk", b"\xff", -1, 1.5, "2030-13-45", "[1]", '{"a": 1}', 2**70])
def test_whatever_stands_in_a_row_a_job_comes_of_it(dialect: Dialect, junk: object) -> None:
    job = job_from_row(dialect, [junk] * len(JOB_COLUMNS.split(", ")))

    assert isinstance(job.metadata, dict)
    assert isinstance(job.status, JobStatus)
    assert isinstance(job.priority, int)
    assert job.message.topic == ""
    assert history_from_row(dialect, [junk] * 14).started_at.tzinfo is not None


def test_payloads_stay_text_where_they_are() -> None:
    assert encode_payload(b"{}") == ("{}", None)
    assert encode_payload(b"") == ("", None)
    assert encode_payload(None) == (None, None)
    assert encode_payload(b"\x00") == ("AA==", "base64")


def test_a_job_stands_in_its_lane() -> None:
    assert Lane.of(NewJob(handler="h")) == "run"
    assert Lane.of(NewJob(handler="gateway.publish", metadata={"connector": "x" * 300})) == "send:" + "x" * 250
    assert Lane.of(NewJob(handler="gateway.publish")) == "send:"
