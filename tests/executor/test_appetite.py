from gateway.executor.appetite import MOST, Appetite
from gateway.job import QueueJob


def learned(workers, seconds, size=0):
    appetite = Appetite(workers)
    for _ in range(1000):
        appetite.ended(seconds)
    appetite.claimed([QueueJob(id="1", sequence=1, payload=b"x" * size)] * 100)
    return appetite


def test_nothing_is_claimed_ahead_before_anything_is_known():
    assert Appetite(5).ahead(0.0) == 0


def test_as_much_is_claimed_ahead_as_is_done_in_a_tenth_of_a_second():
    assert learned(5, 0.00999).ahead(0.0) == 50
    assert learned(10, 0.0999).ahead(0.0) == 10
    assert learned(5, 0.00001).ahead(0.0) == MOST


def test_long_handlers_claim_nothing_ahead():
    assert learned(5, 10.0).ahead(0.0) == 0


def test_nothing_is_claimed_ahead_while_every_worker_is_busy_for_long():
    assert learned(5, 0.001).ahead(3.0) == 0


def test_large_payloads_are_claimed_in_small_numbers():
    assert 1 <= learned(5, 0.0001, size=8 * 1024 * 1024).ahead(0.0) <= 2
