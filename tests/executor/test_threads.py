import asyncio
import threading

import pytest

from gateway.executor.threads import Call, Threads
from tests.executor.bench import until


def named(prefix):
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


@pytest.fixture
def threads():
    made = Threads(2, name="under-test")
    yield made
    made.close()


async def test_there_are_as_many_threads_as_calls_and_the_surplus_ends(threads):
    gate, running = threading.Event(), []

    def call():
        running.append(1)
        gate.wait(20)

    for _ in range(5):
        threads.submit(call)
    await until(lambda: len(running) == 5)
    gate.set()
    await until(lambda: len(named("under-test")) == 2)


async def test_a_thread_that_is_free_takes_the_next_call(threads):
    used = []
    for count in range(1, 20):
        threads.submit(lambda: used.append(threading.get_ident()))
        await until(lambda count=count: len(used) == count and threads._busy == 0)
    assert len(set(used)) == 1


async def test_after_a_close_no_thread_stays_and_calls_still_run(threads):
    gate, ran = threading.Event(), threading.Event()
    threads.submit(lambda: gate.wait(20))
    threads.close()
    threads.submit(ran.set)
    await until(ran.is_set)
    threads.close()
    gate.set()
    await until(lambda: named("under-test") == [])


async def test_the_variables_of_the_caller_are_those_of_the_call(threads):
    call = Call(lambda context: context.upper(), "a")
    threads.submit(call.run)
    assert await call.outcome() == ("A", None)


async def test_what_a_function_raises_comes_back_as_a_value(threads):
    def leave(_):
        raise SystemExit(3)

    call = Call(leave, None)
    threads.submit(call.run)
    result, error = await call.outcome()
    assert result is None
    assert isinstance(error, SystemExit)


async def test_a_cancelled_call_ends_when_its_thread_does(threads):
    gate = threading.Event()
    call = Call(lambda _: gate.wait(20), None)
    threads.submit(call.run)
    waiting = asyncio.create_task(call.outcome())
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 5)
