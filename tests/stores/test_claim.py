import pytest

from gateway.errors import StoreUnavailable
from gateway.job import NewJob, QueueJob
from gateway.store import Lane, Store, claim
from gateway.store.claim import FRONT, RESCAN_SECONDS, RESCAN_SHARE, Cursor
from gateway.store.migrate import migrate


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


async def test_what_a_claim_has_is_kept_when_its_second_look_fails(sqlite_url, monkeypatch):
    monkeypatch.setattr(claim, "RESCAN_SECONDS", 60.0)
    await migrate(sqlite_url)
    store = await Store.open(sqlite_url, instance="claimer")
    real, looks = store._claim, []

    async def fails_at_the_front(wanted, after):
        looks.append(after)
        if len(looks) == 3:
            raise StoreUnavailable("away")
        return await real(wanted, after)

    monkeypatch.setattr(store, "_claim", fails_at_the_front)
    await store.enqueue([NewJob(handler="h") for _ in range(3)])
    claimed = [await store.claim(Lane.RUN, 2, None), await store.claim(Lane.RUN, 2, None)]
    await store.close()
    assert [len(each) for each in claimed] == [2, 1]
    assert looks == [FRONT, (0, claimed[0][1].sequence), FRONT]
