import base64
import hashlib
import hmac
import json
import time

import pytest

from tests.connectors.http_tools import OTHER, TOKEN, entry, serving

SECRET = "0123456789abcdef0123456789abcdef"
KEY = SECRET.encode()


def basic(pair):
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


@pytest.mark.parametrize(
    ("auth", "good", "bad"),
    [
        (
            {"type": "basic", "username": "u", "password": "pass:wörd"},
            [basic("u:pass:wörd")],
            [{}, basic("u:"), basic("x:pass:wörd"), {"Authorization": "Basic !"}, {"Authorization": "Bearer u"}],
        ),
        (
            {"type": "bearer", "token": [TOKEN, OTHER]},
            [{"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"bearer {OTHER}"}],
            [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"},
             {"Authorization": f"Bearer {TOKEN.upper()}"}, {"Authorization": f"Bearer {TOKEN}x"}],
        ),
        (
            {"type": "api_key", "token": TOKEN, "header": "X-Partner"},
            [{"X-Partner": TOKEN}, {"x-partner": TOKEN}],
            [{}, {"X-Partner": ""}, {"X-Partner": "ü"}, {"X-API-Key": TOKEN}],
        ),
    ],
)  # fmt: skip
async def test_only_those_with_the_secret_may_send(auth, good, bad):
    async with serving(entries=[entry(auth=auth)]) as client:
        for headers in good:
            assert (await client.post("/messages/a", headers=headers)).status == 202
        answers = [await client.post("/messages/a", headers=headers) for headers in bad]
        name, value = next(iter(good[0].items()))
        answers.append(await client.post("/messages/a", headers=[(name, value), (name, value)]))
        answers.append(await client.post(f"/messages/a?{name}={TOKEN}"))
    assert {answer.status for answer in answers} == {401}
    assert len({json.dumps(answer.json) for answer in answers}) == 1  # the text says nothing of what was wrong
    assert all("WWW-Authenticate" in answer.headers for answer in answers)
    assert len(client.inbox.stored) == len(good)
    assert all(value not in repr(m.headers) for m in client.inbox.stored for value in (TOKEN, OTHER))


def signed(body, *, key=KEY, moment=None, message_id="msg_1"):
    moment = str(int(time.time())) if moment is None else moment
    digest = hmac.new(key, f"{message_id}.{moment}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": message_id, "webhook-timestamp": moment, "webhook-signature": signature}


def serving_hmac(**keys):
    return serving(entries=[entry(auth={"type": "hmac", "secret": SECRET, **keys})])


async def test_a_signed_webhook_is_taken_once():
    async with serving_hmac() as client:
        first = await client.post("/messages/a", b"{}", headers=signed(b"{}"))
        replay = await client.post("/messages/a", b"{}", headers=signed(b"{}"))
        other = await client.post("/messages/a", b"[]", headers=signed(b"[]"))
    assert (first.status, replay.status, other.status) == (202, 202, 422)
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert [m.dedupe_id for m in client.inbox.stored] == ["msg_1"]


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda: signed(b"[]"),
        lambda: signed(b"{}", key=b"x" * 32),
        lambda: signed(b"{}", moment=str(int(time.time()) - 86400)),
        lambda: signed(b"{}", moment=str(int(time.time()) + 86400)),
        lambda: signed(b"{}", moment="now"),
        lambda: signed(b"{}", moment="-1"),
        lambda: signed(b"{}", moment=str(time.time())),
        lambda: signed(b"{}", message_id=""),
        lambda: signed(b"{}", message_id="a.b"),
        lambda: {**signed(b"{}"), "webhook-id": "msg_2"},
        lambda: {**signed(b"{}"), "webhook-signature": signed(b"{}")["webhook-signature"].replace("v1,", "v1a,")},
        lambda: {**signed(b"{}"), "webhook-signature": signed(b"{}")["webhook-signature"][3:]},
        lambda: {**signed(b"{}"), "webhook-signature": "v1,"},
    ],
)
async def test_a_webhook_that_is_not_signed_so_is_401(make):
    async with serving_hmac() as client:
        answer = await client.post("/messages/a", b"{}", headers=make())
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert client.inbox.stored == []


async def test_while_secrets_are_replaced_either_is_taken_and_one_good_signature_is_enough():
    raw = base64.b64encode(b"n" * 32).decode()
    async with serving(entries=[entry(auth={"type": "hmac", "secret": [SECRET, "whsec_" + raw]})]) as client:
        old = signed(b"{}", message_id="m1")
        new = signed(b"{}", message_id="m2", key=b"n" * 32)
        mixed = signed(b"{}", message_id="m3")
        mixed["webhook-signature"] = "v1,AAAA v2,x " + mixed["webhook-signature"]
        statuses = [(await client.post("/messages/a", b"{}", headers=h)).status for h in (old, new, mixed)]
    assert statuses == [202, 202, 202]


async def test_the_signature_is_over_the_bytes_and_not_over_what_they_mean():
    async with serving_hmac() as client:
        assert (await client.post("/messages/a", b'{"a": 1}', headers=signed(b'{"a":1}'))).status == 401


async def test_github_signatures():
    def headers(body, delivery):
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": delivery}

    async with serving_hmac(scheme="github") as client:
        assert (await client.post("/messages/a", b"x", headers=headers(b"x", "d1"))).status == 202
        assert "Idempotent-Replayed" in (await client.post("/messages/a", b"x", headers=headers(b"x", "d1"))).headers
        assert (await client.post("/messages/a", b"x", headers=headers(b"y", "d2"))).status == 401
        assert (await client.post("/messages/a", b"x", headers=signed(b"x"))).status == 401
