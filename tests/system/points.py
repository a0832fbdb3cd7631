"""The named points of the program, and the work that passes all of them."""

import re
from pathlib import Path
from typing import Final

import aiohttp

from tests.system.database import Database
from tests.system.ledger import Violation, judge, read
from tests.system.process import Admin
from tests.system.strangers import Client, Receiver
from tests.system.waiting import until

ROOT = Path(__file__).parent.parent.parent
ALL: Final = frozenset(
    name
    for folder in ("gateway", "connectors")
    for path in (ROOT / folder).rglob("*.py")
    for name in re.findall(r"\breach\(\"([\w.]+)\"\)", path.read_text())
)
ELSEWHERE: Final = {
    "cancel.written",
    "enqueue.committed",
    "enqueue.start",
    "prune.written",
    "rescue.written",
    "release.written",
    "release.start",
    "release.committed",
}
"""Not on the way of a message while all is well: tests of the store's verbs arm these."""
POINTS: Final = sorted(ALL - ELSEWHERE)
SELDOM: Final = {"retry.written", "outbox.before_finish", "outbox.after_finish"}
"""Perhaps passed only once: things go wrong at the first time there, elsewhere at the second."""

MESSAGES: Final = [
    ("/publish", {"failures": 1}), ("/deferred", {}), ("/effect", {}), ("/plain", {}),
    ("/flaky", {"failures": 1}), ("/publish", {}), ("/deferred", {}), ("/effect", {}),
]  # fmt: skip


async def work(client: Client, admin: Admin) -> None:
    """Post the messages, and let one job fail, which an operator then gives another attempt."""
    await client.flood(MESSAGES, clients=4)
    job_id = await client.post("/flaky", {"failures": 2})
    await until(lambda: _failed_and_retried(admin, job_id), within=60, what="the failed job was retried", every=0.05)


async def _failed_and_retried(admin: Admin, job_id: str) -> bool:
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
            async with session.get(f"{admin.admin}/api/jobs/{job_id}") as response:
                status = (await response.json())["status"] if response.status == 200 else ""
            if status == "failed":
                await session.post(f"{admin.admin}/api/jobs/{job_id}/retry")
            return bool(status == "completed")
    except (aiohttp.ClientError, TimeoutError):
        return False


async def verdict(database: Database, client: Client, receiver: Receiver) -> list[Violation]:
    """Return what the judge finds after that work."""
    return judge(await read(database, client.accepted, received=receiver.received, children={"example.publish": 2}))
