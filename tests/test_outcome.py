import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.job import QueueJob
from gateway.outcome import (
    MAX_ERROR,
    MAX_RESULT,
    Cancel,
    Completed,
    Discard,
    Retry,
    RetryPolicy,
    decide,
    describe,
    encode_result,
)


class Unprintable(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no text")


def job(retry_count=0, max_retries=3):
    return QueueJob(id="1", sequence=1, retry_count=retry_count, max_retries=max_retries)


def decided(error=None, result=None, jitter=0.5, **fields):
    return decide(job(**fields), error, result, policy=RetryPolicy(delay=2.0, max_delay=300.0), jitter=jitter)


def test_a_result_completes_the_job_as_json():
    assert decided(result={"a": [1, None, "ä"]}) == Completed('{"a":[1,null,"ä"]}')
    assert decided() == Completed(None)


@pytest.mark.parametrize("result", [float("nan"), {1, 2}, object(), b"bytes", "\ud800", {"a": float("-inf")}])
def test_a_result_that_is_no_json_fails_the_job_for_good(result):
    outcome = decided(result=result)
    assert isinstance(outcome, Discard)
    assert "result is not JSON" in outcome.error


def test_a_result_that_is_too_large_fails_the_job_for_good():
    assert encode_result("x" * (MAX_RESULT - 2)) is not None
    assert isinstance(decided(result="x" * MAX_RESULT), Discard)


@pytest.mark.parametrize(
    ("retry_count", "delay"), [(0, 2), (1, 4), (2, 8), (5, 64), (7, 256), (8, 300), (60, 300), (100_000, 300)]
)
def test_the_wait_doubles_up_to_its_limit(retry_count, delay):
    assert decided(ValueError("no"), retry_count=retry_count, max_retries=200_000) == Retry(delay, "ValueError: no")


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 40))
def test_the_jitter_is_at_most_a_fifth(jitter, retry_count):
    policy = RetryPolicy(delay=2.0, max_delay=300.0)
    middle = policy.wait(retry_count, 0.5)
    assert 0.8 * middle - 1e-9 <= policy.wait(retry_count, jitter) <= 1.2 * middle + 1e-9


def test_the_last_attempt_that_fails_ends_the_job():
    assert isinstance(decided(ValueError(), retry_count=2, max_retries=3), Retry)
    assert decided(ValueError("no"), retry_count=3, max_retries=3) == Discard("ValueError: no", retriable=True)
    assert isinstance(decided(ValueError(), max_retries=0), Discard)


def test_a_handler_may_choose_its_wait():
    assert decided(errors.Retry("later", delay=7)) == Retry(7.0, "later")
    assert decided(errors.Retry("usual")) == Retry(2.0, "usual")
    assert decided(errors.Retry("at once", delay=-1)) == Retry(0.0, "at once")
    assert decided(errors.DeliveryError("busy", retry_after=9.0)) == Retry(9.0, "busy")
    assert decided(errors.DeliveryError("for years", retry_after=1e9)) == Retry(86400.0, "for years")
    assert decided(errors.Retry("never", delay=float("inf"))) == Retry(365 * 86400.0, "never")


@pytest.mark.parametrize(
    "error",
    [
        errors.Discard("never"),
        errors.PayloadError("never"),
        errors.TransactionRefused("never"),
        errors.DeliveryError("never", permanent=True),
    ],
)
def test_what_cannot_help_is_not_tried_again(error):
    assert decided(error) == Discard("never")


def test_a_cancel_is_neither_success_nor_failure():
    assert decided(errors.Cancel("not wanted")) == Cancel("not wanted")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(1),
        asyncio.CancelledError(),
        BaseExceptionGroup("many", [SystemExit(1)]),
        BaseException("bare"),
        MemoryError(),
        RecursionError(),
        Unprintable(),
    ],
)
def test_any_error_at_all_is_an_outcome_with_its_type(error):
    outcome = decided(error)
    assert isinstance(outcome, Retry)
    assert outcome.error.startswith(type(error).__name__)


def test_a_description_can_be_stored_whatever_the_text():
    text = describe(ValueError("nul \x00, half a pair \ud800, " + "x" * 1_000_000))
    assert len(text) == MAX_ERROR
    assert "\x00" not in text
    text.encode()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_json_comes_back_as_it_was_or_is_refused(value):
    outcome = decided(result=value)
    if value is None:
        assert outcome == Completed(None)
    elif isinstance(outcome, Completed):
        assert json.loads(outcome.result) == value
    else:
        assert "not JSON" in outcome.error
