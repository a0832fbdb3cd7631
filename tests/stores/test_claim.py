import pytest

from gateway.job import QueueJob
from gateway.store import claim
from gateway.store.claim import FRONT, RESCAN_SECONDS, RESCAN_SHARE, Cursor


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(claim.time, "monotonic", lambda: Clock.now)
    return Clock


def jobs(*sequences):
    return [QueueJob(id=str(n), sequence=n, priority=5) for n in sequences]


def test_a_full_claim_is_followed_by_one_behind_it(clock):
    cursor = Cursor()
    assert cursor.start() == FRONT
    cursor.move(jobs(1, 2), 2)
    assert cursor.start() == (-5, 2)


def test_a_claim_that_found_too_few_starts_at_the_front_again(clock):
    cursor = Cursor()
    cursor.start()
    cursor.move(jobs(1), 2)
    assert cursor.start() == FRONT


def test_the_front_is_looked_at_regularly(clock):
    cursor = Cursor()
    cursor.start()
    cursor.move(jobs(1, 2), 2)
    clock.now += RESCAN_SECONDS
    assert cursor.start() == FRONT


def test_a_front_that_takes_long_is_looked_at_more_rarely(clock):
    cursor = Cursor()
    cursor.start()
    clock.now += 1.0
    cursor.move(jobs(1, 2), 2)
    clock.now += RESCAN_SHARE - 1
    assert cursor.start() == (-5, 2)
    clock.now += 1.0
    assert cursor.start() == FRONT


def test_a_rewound_cursor_starts_at_the_front(clock):
    cursor = Cursor()
    cursor.start()
    cursor.move(jobs(1, 2), 2)
    cursor.rewind()
    assert cursor.start() == FRONT


def test_a_cursor_rewound_while_a_claim_is_under_way_starts_at_the_front(clock):
    for behind in (False, True):
        cursor = Cursor()
        for _ in range(1 + behind):
            cursor.start()
            cursor.move(jobs(1, 2), 2)
        cursor.start()
        cursor.rewind()
        cursor.move(jobs(3, 4), 2)
        assert cursor.start() == FRONT


def test_a_claim_that_failed_at_the_front_is_followed_by_one_there(clock):
    cursor = Cursor()
    cursor.start()
    clock.now += 1000
    assert cursor.start() == FRONT
