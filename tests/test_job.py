import dataclasses
import threading
import time
import uuid

import pytest

from gateway.job import JobStatus, NewJob, QueueJob, new_id


def test_ids_are_uuids_of_version_7_and_later_ones_sort_later():
    before = new_id()
    while new_id()[:13] == before[:13]:
        pass
    after = new_id()
    assert before < after
    made = uuid.UUID(after)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert abs((made.int >> 80) - time.time() * 1000) < 10_000


def test_ids_of_many_threads_differ():
    made = []
    threads = [threading.Thread(target=lambda: made.extend([new_id() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


def test_the_numbers_of_the_statuses_are_those_of_existing_sql():
    assert [status.name for status in JobStatus] == [
        "PENDING",
        "QUEUED",
        "PROCESSING",
        "COMPLETED",
        "FAILED",
        "RETRYING",
        "CANCELLED",
        "SCHEDULED",
    ]
    assert [status.value for status in JobStatus if status.final] == [3, 4, 6]


def test_a_job_is_a_value_and_its_first_attempt_is_number_one():
    job = QueueJob(id="a", sequence=1)
    assert job.attempt == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.priority = 3
    assert NewJob(handler="h").id != NewJob(handler="h").id


def test_a_jobs_message_carries_the_jobs_id():
    job = QueueJob(id="a", sequence=1, payload=b"x", metadata={"topic": "t"})
    assert (job.message.message_id, job.message.topic, job.message.body) == ("a", "t", b"x")
