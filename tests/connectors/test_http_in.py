import asyncio
import gzip
import json
import zlib
from functools import partial

import pytest

from gateway.connector import Receipt
from gateway.errors import Disconnected
from gateway.testing.connectors import Recorder, until
from tests.connectors.http_tools import OTHER, TOKEN, entry, serving

packed = partial(gzip.compress, mtime=0)  # the same bytes in every test process


async def test_the_answer_is_202_with_the_job():
    async with serving() as client:
        answer = await client.post("/messages/hello", b"\x00\xff")
    assert (answer.status, answer.json) == (202, {"job_id": "job-1"})
    assert answer.headers["Content-Type"] == "application/json"
    assert "Idempotent-Replayed" not in answer.headers
    message = client.inbox.stored[0]
    assert (message.topic, message.body, message.parameters) == ("/messages/hello", b"\x00\xff", {"topic": "hello"})


async def test_paths_and_captures_are_decoded():
    async with serving() as client:
        raw = await client.raw(b"POST /messages/a%2Fb%20%C3%A9 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        assert b"202 Accepted" in await raw.answer()
        await raw.close()
    message = client.inbox.stored[0]
    assert (message.topic, message.parameters["topic"]) == ("/messages/a/b é", "a/b é")


async def test_the_route_with_the_fewest_captures_wins_and_methods_are_kept_apart():
    seen = []

    class Seeing(Recorder):
        async def receive(self, messages, of):
            seen.append((of.path, of.methods[0]))
            return await super().receive(messages, of)

    entries = [entry("/{a}/{b}"), entry("/x/{b}"), entry("/x/y"), entry("/x/y", methods=["PUT"])]
    async with serving(Seeing(), entries) as client:
        for path, method in [("/x/y", "POST"), ("/x/y", "PUT"), ("/x/z", "POST"), ("/w/z", "POST")]:
            assert (await client.post(path, method=method)).status == 202
    assert seen == [("/x/y", "POST"), ("/x/y", "PUT"), ("/x/{b}", "POST"), ("/{a}/{b}", "POST")]


async def test_named_query_parameters_are_kept_and_no_others():
    async with serving(entries=[entry("/hook", query=["shop"])]) as client:
        await client.post("/hook?shop=%C3%BC&api_key=no")
        await client.post("/hook")
    assert [m.parameters for m in client.inbox.stored] == [{"shop": "ü"}, {}]


async def test_headers_are_kept_without_those_of_the_connection_and_those_that_let_anybody_in():
    request = (
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Type: text/plain\r\nX-Name: caf\xe9\r\n"
        b"X-Twice: 1\r\nX-Twice: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: x\r\nCookie: c\r\n"
        b"Authorization: Basic x\r\nX-API-Key: k\r\nX-Hub-Signature-256: s\r\nwebhook-signature: s\r\n\r\nx"
    )
    async with serving() as client:
        raw = await client.raw(request)
        assert b"202 Accepted" in await raw.answer()
        await raw.close()
    message = client.inbox.stored[0]
    assert message.headers == (("X-Name", "café".encode()), ("X-Twice", b"1"), ("X-Twice", b"2"))
    assert message.content_type == "text/plain"
    assert json.loads(json.dumps(message.to_metadata()))["headers"][0] == ["X-Name", "café"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/", 404, "not_found"),
        ("POST", "/messages", 404, "not_found"),
        ("POST", "/messages/", 404, "not_found"),
        ("POST", "/messages/a/b", 404, "not_found"),
        ("GET", "/messages/a", 405, "method_not_allowed"),
        ("OPTIONS", "/messages/a", 405, "method_not_allowed"),
    ],
)
async def test_unknown_paths_and_methods_are_refused_as_json(method, path, status, code):
    async with serving() as client:
        answer = await client.post(path, method=method)
    assert (answer.status, answer.code) == (status, code)
    assert status != 405 or answer.headers["Allow"] == "POST"


# Idempotency


async def test_the_same_key_and_body_replay_the_first_answer():
    async with serving() as client:
        first = await client.post("/messages/a", b"1", headers={"Idempotency-Key": "k"})
        again = await client.post("/messages/a", b"1", headers={"Idempotency-Key": "k"})
    assert (again.status, again.json, again.headers["Idempotent-Replayed"]) == (202, first.json, "true")
    assert len(client.inbox.stored) == 1


async def test_the_same_key_with_another_body_is_422():
    async with serving() as client:
        await client.post("/messages/a", b"1", headers={"Idempotency-Key": "k"})
        answer = await client.post("/messages/a", b"2", headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (422, "idempotency_conflict")


async def test_a_key_counts_per_path_and_per_principal():
    auth = {"type": "bearer", "token": [TOKEN, OTHER]}
    async with serving(entries=[entry(auth=auth)]) as client:
        for path, token in [("/messages/a", TOKEN), ("/messages/b", TOKEN), ("/messages/a", OTHER)]:
            headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {token}"}
            assert "Idempotent-Replayed" not in (await client.post(path, headers=headers)).headers
    assert len(client.inbox.stored) == 3


@pytest.mark.parametrize("key", ["", " ", "two words", "ü", "x" * 256, "tab\there"])
async def test_a_key_that_is_none_is_400(key):
    async with serving() as client:
        answer = await client.post("/messages/a", headers={"Idempotency-Key": key})
        assert (answer.status, answer.code) == (400, "bad_idempotency_key")
        assert (await client.post("/messages/a", headers={"Idempotency-Key": "x" * 255})).status == 202
        doubled = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
        assert (await client.post("/messages/a", headers=doubled)).status == 400


async def test_what_the_entry_does_not_want_is_accepted_without_a_job():
    class Unwanted(Recorder):
        async def receive(self, messages, entry):
            return [Receipt("", filtered=True) for _ in messages]

    async with serving(Unwanted()) as client:
        answer = await client.post("/messages/a")
    assert (answer.status, answer.json) == (202, {"job_id": None, "filtered": True})


# Bodies


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", packed),
        ("x-gzip", packed),
        ("GZIP", lambda body: gzip.compress(body[:3]) + gzip.compress(body[3:])),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("identity", lambda body: body),
    ],
)
async def test_bodies_are_unpacked(encoding, pack):
    async with serving() as client:
        headers = {"Content-Encoding": encoding}
        assert (await client.post("/messages/a", pack(b"hello world"), headers=headers)).status == 202
    assert client.inbox.stored[0].body == b"hello world"
    assert client.inbox.stored[0].header("Content-Encoding") is None


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", packed(packed(b"x")), 415),
        ("gzip", b"not gzip", 400),
        ("gzip", packed(b"x" * 100)[:-9], 400),
        ("gzip", packed(b"x") + b"rubbish", 400),
        ("deflate", b"\x78\x9cnot", 400),
        ("deflate", zlib.compress(b"x") + b"rubbish", 400),
        ("gzip", packed(b"\0" * 50_000_000), 413),
        ("deflate", zlib.compress(b"\0" * 50_000_000), 413),
        ("gzip", packed(b"\0" * 600_000) * 2, 413),
    ],
)
async def test_what_cannot_be_unpacked_is_refused(encoding, body, status):
    async with serving() as client:
        answer = await client.post("/messages/a", body, headers={"Content-Encoding": encoding})
        assert answer.status == status
        assert (await client.post("/messages/a")).status == 202  # the connection is none the worse
    assert len(client.inbox.stored) == 1


async def test_the_largest_body_is_taken_and_one_byte_more_is_not():
    async def pieces(count):
        for _ in range(count):
            yield b"x" * 100

    async with serving(max_body=1000) as client:
        assert (await client.post("/messages/a", b"x" * 1000)).status == 202
        assert (
            await client.post("/messages/a", packed(b"x" * 1000), headers={"Content-Encoding": "gzip"})
        ).status == 202
        assert (await client.post("/messages/a", pieces(10))).status == 202
        refused = [await client.post("/messages/a", b"x" * 1001), await client.post("/messages/a", pieces(11))]
    assert [(answer.status, answer.code) for answer in refused] == [(413, "too_large")] * 2
    assert len(client.inbox.stored) == 3


async def test_a_body_announced_too_large_is_refused_before_it_is_sent():
    async with serving() as client:
        head = b"POST /messages/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        raw = await client.raw(head % 2_000_000)
        assert b" 413 " in await raw.answer()
        await raw.close()
        raw = await client.raw(head % 5)
        assert await raw.answer() == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.writer.write(b"hello")
        assert b" 202 " in await raw.answer()
        await raw.close()


# Back-pressure


async def test_what_is_not_stored_in_time_gets_503_and_may_be_sent_again():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox, accept_timeout=0.05) as client:
        answer = await client.post("/messages/a", headers={"Idempotency-Key": "k"})
        assert (answer.status, answer.headers["Retry-After"], answer.code) == (503, "1", "unavailable")
        inbox.gate.set()
        assert (await client.post("/messages/a", headers={"Idempotency-Key": "k"})).status == 202
    assert len(inbox.stored) == 1


async def test_more_requests_than_may_wait_are_refused_at_once():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox, max_pending=2) as client:
        waiting = [asyncio.create_task(client.post("/messages/a")) for _ in range(2)]
        await until(lambda: len(inbox.offered) == 2)
        refused = await client.post("/messages/a")
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        inbox.gate.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [202, 202]
        assert (await client.post("/messages/a")).status == 202


async def test_more_bytes_than_may_wait_are_refused_before_they_are_read():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox, max_pending_bytes=1500) as client:
        waiting = asyncio.create_task(client.post("/messages/a", b"x" * 1000))
        await until(lambda: inbox.offered)
        raw = await client.raw(b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        assert b" 503 " in await raw.answer()  # though nothing of the body was sent
        await raw.close()
        small = asyncio.create_task(client.post("/messages/a", b"x" * 400))
        await until(lambda: len(inbox.offered) == 2)
        inbox.gate.set()
        assert [(await waiting).status, (await small).status] == [202, 202]
        assert (await client.post("/messages/a", b"x" * 10_000)).status == 202  # alone, any body is taken


@pytest.mark.parametrize("error", [Disconnected("x"), ValueError("secret text"), KeyError("x"), TimeoutError()])
async def test_whatever_happens_inside_the_answer_is_503_and_says_nothing(error, caplog):
    inbox = Recorder()
    inbox.error = error
    async with serving(inbox) as client:
        answer = await client.post("/messages/a")
    assert (answer.status, answer.code) == (503, "unavailable")
    assert "secret" not in json.dumps(answer.json)


async def test_a_client_that_goes_away_does_not_undo_what_is_being_stored():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox) as client:
        raw = await client.raw(b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        await until(lambda: inbox.offered)
        raw.writer.transport.abort()
        inbox.gate.set()
        await until(lambda: inbox.stored)
        assert (await client.post("/messages/b")).status == 202


async def test_a_client_that_goes_away_in_the_middle_leaves_no_message():
    request = b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789"
    async with serving() as client:
        for end in range(1, len(request)):
            raw = await client.raw(request[:end])
            await raw.writer.drain()
            raw.writer.transport.abort()
        assert (await client.post("/messages/b")).status == 202
    assert [message.topic for message in client.inbox.stored] == ["/messages/b"]


async def test_pipelined_requests_are_answered_in_order():
    one = b"POST /messages/%d HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"
    async with serving() as client:
        raw = await client.raw(b"".join(one % n for n in range(50)))
        answers = [await raw.answer() for _ in range(50)]
        await raw.close()
    jobs = [json.loads(answer.split(b"\r\n\r\n")[1])["job_id"] for answer in answers]
    assert jobs == [f"job-{n}" for n in range(1, 51)]


async def test_many_at_once_with_one_key_get_one_answer():
    async with serving() as client:
        headers = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(client.post("/messages/a", headers=headers) for _ in range(100)))
    assert {json.dumps(answer.json) for answer in answers} == {'{"job_id": "job-1"}'}


async def test_a_receipt_for_a_message_that_became_a_failed_row_is_202_too():
    class Failing(Recorder):
        async def receive(self, messages, of):
            return [Receipt("failed-row")]

    async with serving(Failing()) as client:
        assert (await client.post("/messages/a")).json == {"job_id": "failed-row"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"rubbish\r\n\r\n",
        b"POST /messages/a HTTP/9.9\r\n\r\n",
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /messages/a HTTP/1.1\r\nHost: h\r\n" + b"X: 1\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_http_is_400_as_json(request_bytes):
    async with serving() as client:
        answer = await (await client.raw(request_bytes)).everything()
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "bad_request"
    assert client.inbox.stored == []
