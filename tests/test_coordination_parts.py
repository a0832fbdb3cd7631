"""What coordinators are made of: breaker, pacing, seal, settings."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.coordination import CacheConfig, Coordinator, coordinator_for
from gateway.coordination.breaker import FAILURES, LONGEST_PAUSE, Breaker
from gateway.coordination.pacing import MOST, NAMES, Pacing
from gateway.coordination.seal import LONGEST, Seal
from gateway.errors import PluginNotFound


def test_what_fails_again_and_again_is_left_alone_for_ever_longer_and_tried_once_after_each_pause():
    breaker, now, pauses = Breaker(), 100.0, []
    for _ in range(FAILURES - 1):
        breaker.failed(now)
        assert breaker.allows(now)
    breaker.failed(now)
    assert breaker.open
    for _ in range(12):
        since = now
        while not breaker.allows(now):
            now += 0.01
        pauses.append(now - since)
        assert not breaker.allows(now), "only one call tries"
        breaker.failed(now)
    assert pauses[0] < 0.6
    assert pauses[-1] > LONGEST_PAUSE / 2 - 0.1
    assert max(pauses) <= LONGEST_PAUSE + 0.1
    breaker.succeeded()
    assert breaker.allows(now)
    assert not breaker.open


@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["a", "b"])), min_size=1), st.floats(0.01, 1e6)
)  # fmt: skip
def test_turns_of_a_name_are_a_gap_apart_and_nobody_waits_too_long(steps, rate):
    pacing, now, before = Pacing(), 0.0, {}
    for step, name in steps:
        now += step
        wait = pacing.turn(name, rate, now)
        assert 0 <= wait <= MOST
        if name in before and wait < MOST - 1e-6:
            assert now + wait >= before[name] + 1 / rate - 1e-6
        before[name] = now + wait


def test_names_of_the_past_are_forgotten():
    pacing = Pacing()
    for n in range(10 * NAMES):
        pacing.turn(f"{n}", 10.0, float(n))
    assert len(pacing._due) <= NAMES + 1


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.text(st.characters(codec="utf-8")), json_values)
def test_what_is_sealed_opens_for_its_key_and_secret_alone(key, value):
    seal = Seal("secret")
    sealed = seal.close(key, value)
    if len(sealed) <= LONGEST:
        assert seal.open(key, sealed) == value
    assert seal.open(key + "x", sealed) is None
    assert Seal("other").open(key, sealed) is None
    for n in {0, 31, 32, len(sealed) - 1}:
        assert seal.open(key, sealed[:n] + bytes([sealed[n] ^ 1]) + sealed[n + 1 :]) is None


@pytest.mark.parametrize(
    "value", [None, b"", b"x" * 31, b"x" * 40, b"\x80\x04N.", pickle.dumps(1), json.dumps({"a": 1}).encode(), "text", 7]
)
def test_what_was_not_sealed_is_nothing(value):
    assert Seal("secret").open("key", value) is None


def test_a_key_and_a_value_cannot_be_divided_otherwise():
    seal = Seal("secret")
    sealed = seal.close("ab", "c")
    assert seal.open("a", sealed[:32] + b'b"c"') is None


def cache(**keys):
    return CacheConfig.model_validate({"url": "redis://localhost", **keys})


def test_a_cache_is_its_url_and_nothing_secret_shows():
    found = cache(url="rediss://me:p%40ss@host:7000/3", tls={"ca": "ca.pem"})
    assert (found.type, found.host, found.port, found.database) == ("redis", "host", 7000, "3")
    assert (found.user, found.secret, found.secure) == ("me", "p@ss", True)
    assert "p%40ss" not in repr(found) + found.model_dump_json()
    found = cache(url="memcached://[::1]:11211", username="you", password="hidden", tls={})
    assert (found.type, found.host, found.user, found.secret, found.secure) == (
        "memcached",
        "::1",
        "you",
        "hidden",
        True,
    )
    assert "hidden" not in repr(found) + found.model_dump_json()
    assert not cache().secure


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"url": "redis"}, "expected redis://"),
        ({"url": "redis://:geheim@host:99999"}, "expected redis://"),
        ({"url": "redis://"}, "expected redis://"),
        ({"url": "rediz://host"}, "'rediz' is no cache, did you mean 'redis'?"),
        ({"url": "etcd://host"}, "there are: "),
        ({"url": "redis://:geheim@host/first"}, "number of a database"),
        ({"tls": {}}, "'tls' needs rediss://"),
        ({"url": "rediss://host", "tls": {"key": "k"}}, "'key' needs 'certificate'"),
        ({"username": "me"}, "'username' needs 'password'"),
        ({"prefix": "with space"}, "pattern"),
        ({"timeout": 5}, "less than or equal to 1"),
        ({"timeout": "0.1"}, "valid number"),
        ({"size": 5}, "not permitted"),
    ],
)
def test_a_mistake_in_it_is_told_without_the_password(keys, says):
    with pytest.raises(ValidationError) as caught:
        cache(**keys)
    assert says in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_coordinator_is_a_plug_in(monkeypatch):
    assert type(coordinator_for(None)) is Coordinator
    assert [coordinator_for(cache(url=url)).type for url in ("rediss://h", "memcached://h")] == ["redis", "memcached"]
    monkeypatch.setattr("gateway.plugins.load", lambda _group, _name: dict)
    with pytest.raises(PluginNotFound, match="no subclass"):
        coordinator_for(cache())
