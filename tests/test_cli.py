"""The command line does what it says, and says what to do when it cannot."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import parse_config
from gateway.job import JobStatus, NewJob
from gateway.outcome import Discard
from gateway.stop import StopSignal
from gateway.store import Finish, Lane, Report, Store

CONFIG = """
database: {url: "sqlite:///jobs.db"}
gateway: {admin: {listen: "127.0.0.1:1"}}
connectors:
  here: {type: memory, inbound: [{topic: orders, handler: order.process}]}
handlers: {order.process: "json:dumps"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    return tmp_path


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def gateway(monkeypatch, capsys):
    """Run one command in this process; what it did to signals is undone by pytest's own handling."""

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["gateway", *arguments])
        capsys.readouterr()
        code = main(StopSignal())
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def migrated(gateway):
    assert gateway("migrate").code == 0
    return gateway


# -- files -----------------------------------------------------------------------------------------------------------


def test_create_writes_a_configuration_that_loads_and_never_overwrites_one(gateway):
    assert gateway("create", "http", "-o", "new.yaml").code == 0
    written = Path("new.yaml").read_text()
    again = gateway("create", "-o", "new.yaml")

    assert set(parse_config(written, environment={}).connectors) == {"web", "out"}
    assert (again.code, Path("new.yaml").read_text()) == (1, written)
    assert "new.yaml exists already" in again.err


def test_create_without_types_is_the_default_and_a_dash_prints_it(gateway):
    printed = gateway("create", "-o", "-")

    assert printed.code == 0
    assert list(parse_config(printed.out, environment={}).connectors) == ["web"]


@pytest.mark.parametrize("types", [["kafka,mqtt,activemq,signalr"], ["kafka", "mqtt", "activemq", "signalr"]])
def test_create_of_several_types_is_one_configuration_with_all_of_them(gateway, types):
    assert gateway("create", *types).code == 1  # there is a gateway.yaml already
    assert gateway("create", *types, "-o", "new.yaml").code == 0
    found = parse_config(Path("new.yaml").read_text(), environment={}, imports=True).connectors

    assert [section.type for section in found.values()] == ["kafka", "mqtt", "activemq", "signalr"]
    assert gateway("check", "--offline", "-c", "new.yaml").code == 0


@pytest.mark.parametrize("kind", ["activemq", "http", "kafka", "mqtt", "signalr"])
def test_every_key_of_a_connector_is_explained(gateway, kind):
    keys = gateway("connectors", "show", kind, "--json").json["keys"]
    shown = gateway("connectors", "show", kind).out

    assert {"inbound[].handler", "inbound[].when", "inbound[].ordering"} <= {key["name"] for key in keys}
    for key in keys:
        assert key["description"] or key["name"].endswith("type")
        assert key["name"] in shown


def test_create_of_an_unknown_type_suggests_a_known_one(gateway):
    ran = gateway("create", "htp")

    assert (ran.code, Path("htp").exists()) == (3, False)
    assert "no example configuration for 'htp', did you mean 'http'?" in ran.err


def test_schema_is_json_schema(gateway):
    printed = gateway("schema")
    assert gateway("schema", "-o", "gateway.schema.json").code == 0

    sections = {"gateway", "database", "cache", "jobs", "connectors", "schedules", "handlers"}
    assert printed.json["properties"].keys() == sections
    assert json.loads(Path("gateway.schema.json").read_text()) == printed.json


def test_connectors_are_listed_and_explained(gateway):
    listed = {row["type"]: row["guarantee"] for row in gateway("connectors", "--json").json}
    keys = {key["name"]: key for key in gateway("connectors", "show", "http", "--json").json["keys"]}
    text = gateway("connectors", "show", "http").out

    assert listed["http"] == "at-least-once"
    assert keys["inbound[].handler"]["required"]
    assert keys["max_body"]["default"] == "1048576"
    assert keys["inbound[].auth(hmac).secret"]["type"] == "secret text or list of secret text"
    for key in keys.values():
        assert key["name"] in text


def test_an_unknown_connector_type_is_not_found(gateway):
    ran = gateway("connectors", "show", "memry")

    assert ran.code == 3
    assert "did you mean 'memory'?" in ran.err


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["check"], ["run"], ["migrate"], ["jobs", "list"], ["send", "a", "b"], ["status"]])
def test_every_command_tells_all_mistakes_of_the_configuration(gateway, folder, command):
    (folder / "gateway.yaml").write_text("jobs:\n  worker: 5\n  lease: soon\n")

    ran = gateway(*command)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "gateway.yaml:2: jobs.worker: unknown key, did you mean 'workers'?",
        "gateway.yaml:3: jobs.lease: expected a number",
    ]


def test_a_configuration_that_is_not_there_is_a_mistake(gateway):
    ran = gateway("check", "--config", "missing.yaml")

    assert (ran.code, ran.err) == (2, "missing.yaml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    "arguments", [["jbs"], ["jobs", "list", "--status", "lost"], ["jobs", "show"], ["run", "--nope"]]
)
def test_a_wrong_call_is_a_usage_error(gateway, arguments):
    assert gateway(*arguments).code == 2


def test_a_database_that_is_not_there_yet_says_how_to_make_it(gateway, folder):
    ran = gateway("jobs", "list")

    assert (ran.code, ran.err) == (1, "there is no file jobs.db yet; `gateway run` or `gateway migrate` creates it\n")
    assert not (folder / "jobs.db").exists()


def test_a_database_that_cannot_be_reached_is_a_failure_without_traceback(gateway, folder):
    (folder / "gateway.yaml").write_text("database: {url: 'postgresql://u:canary-password@127.0.0.1:1/x'}")

    for command in (["jobs", "list"], ["migrate"], ["check"], ["status"]):
        ran = gateway(*command)
        assert ran.code == 1
        assert "Traceback" not in ran.err
        assert "canary" not in ran.out + ran.err
        assert "connect" in (ran.out + ran.err).lower()


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_tells_each_part_and_makes_nothing(gateway, folder):
    before = sorted(path.name for path in folder.iterdir())
    findings = {(each["part"], each["state"]): each["text"] for each in gateway("check", "--json").json}

    assert findings["configuration", "ok"] == "no mistakes"
    assert findings["database", "ok"] == "jobs.db will be created by `gateway run`"
    assert ("connectors.here", "ok") in findings
    assert sorted(path.name for path in folder.iterdir()) == before


def test_check_prints_the_guarantee_and_what_is_dangerous(migrated, folder):
    (folder / "gateway.yaml").write_text("""
use_redis: true
gateway: {admin: {token: short}}
database: {url: "sqlite:///jobs.db"}
connectors:
  web: {type: http, listen: "0.0.0.0:0", inbound: [{path: /a, handler: h, auth: {type: none}}]}
  floor: {type: mqtt, url: "mqtt://here", inbound: [{topic: t, handler: h, qos: 0}]}
handlers: {h: "json:dumps"}
""")
    ran = migrated("check", "--offline", "--config", "gateway.yaml")

    assert ran.code == 0
    for text in (
        "at-least-once",
        "at-most-once",
        "takes messages from anybody",
        "use_redis has no effect",
        "shorter than 16 characters",
    ):
        assert text in ran.out


def test_check_tries_each_entry_s_expressions_with_its_sample(migrated, folder):
    (folder / "gateway.yaml").write_text("""
connectors:
  bus:
    type: memory
    inbound:
      - {topic: a, handler: h, when: "topic == 'a'", dedupe: body.id, ordering: key, sample: {key: ä, body: {id: 7}}}
      - {topic: b, handler: h, when: body == 'x', priority: size(body), sample: {body: '"y"'}}
      - {topic: c, handler: h, when: body.id > 5, sample: {body: not json}}
      - {topic: d, handler: h, sample: {}}
handlers: {h: "json:dumps"}
""")
    ran = migrated("check", "--offline", "--json")

    found = {each["part"]: (each["state"], each["text"]) for each in ran.json if "inbound" in each["part"]}
    assert ran.code == 1
    assert found == {
        "connectors.bus.inbound[0]": (
            "ok", 'the sample would be stored: dedupe "7", ordering "ä", priority null'
        ),
        "connectors.bus.inbound[1]": ("ok", "the sample would be filtered out, as 'when' is false"),
        "connectors.bus.inbound[2]": ("failed", found["connectors.bus.inbound[2]"][1]),
    }  # fmt: skip
    assert (
        "'when' has no value for this message: the message's body is not JSON" in found["connectors.bus.inbound[2]"][1]
    )


def test_check_fails_when_a_connector_cannot_connect(migrated, folder):
    (folder / "gateway.yaml").write_text("connectors: {out: {type: http, url: 'http://127.0.0.1:1'}}")

    assert migrated("check").code == 1
    assert migrated("check", "--offline").code == 0


def test_check_asks_the_database_of_conditions_too(migrated, folder):
    for place, code, state in (("jobs.db", 0, "ok"), ("nowhere/jobs.db", 1, "failed")):
        urls = f'{{url: "sqlite:///jobs.db", read_only_url: "sqlite:///{place}"}}'
        (folder / "gateway.yaml").write_text(f"database: {urls}")
        ran = migrated("check", "--json")
        assert ran.code == code
        assert [each["state"] for each in ran.json if each["part"] == "database.read_only_url"] == [state]
    assert migrated("check", "--offline").code == 0


def test_check_imports_the_handlers_also_from_the_working_folder(gateway, folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "my_own_handlers.py").write_text("def place(context): ...\n")
    text = CONFIG.replace("json:dumps", "my_own_handlers:place")
    (folder / "gateway.yaml").write_text(text)
    assert gateway("check", "--offline").code == 0

    (folder / "gateway.yaml").write_text(text.replace("place", "plaice"))
    ran = gateway("check", "--offline")
    assert ran.code == 2
    assert "gateway.yaml:6: handlers.order.process: " in ran.err


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_created_listed_shown_cancelled_and_retried(migrated):
    job_id = migrated("jobs", "create", "order.process", "-p", '{"n": 1}', "--priority", "7").out.strip()
    (listed,) = migrated("jobs", "list", "--json").json
    shown = migrated("jobs", "show", job_id, "--json").json
    cancelled = migrated("jobs", "cancel", job_id, "--reason", "a test")
    again = migrated("jobs", "cancel", job_id)
    retried = migrated("jobs", "retry", job_id, "--json").json

    assert (listed["id"], listed["handler"], listed["status"], listed["priority"]) == (
        job_id, "order.process", "pending", 7,
    )  # fmt: skip
    assert (shown["payload"], shown["histories"], shown["createdby"]) == ('{"n": 1}', [], "command")
    assert (cancelled.code, cancelled.err) == (0, f"job {job_id} is cancelled\n")
    assert again.code == 0
    assert retried["status"] == "pending"
    assert migrated("jobs", "retry", job_id).code == 0


def test_a_job_that_is_not_there_is_not_found(migrated):
    for command in ("show", "cancel", "retry"):
        ran = migrated("jobs", command, "nobody")
        assert (ran.code, ran.err) == (3, "there is no job nobody; `gateway jobs list` shows the newest\n")


def test_a_finished_job_cannot_be_cancelled(migrated):
    job_id = failed_job(error="no such plant")
    ran = migrated("jobs", "cancel", job_id)

    assert (ran.code, ran.err) == (1, f"nothing was changed: job {job_id} is failed\n")


def test_jobs_are_filtered_and_paged(migrated):
    ids = [migrated("jobs", "create", name).out.strip() for name in ("a", "b", "a")]
    first = migrated("jobs", "list", "--handler", "a", "--limit", "1")
    before = re.search(r"--before (\d+)", first.err)
    assert before is not None
    second = migrated("jobs", "list", "--handler", "a", "--before", before[1], "--json").json

    assert ids[2] in first.out
    assert [row["id"] for row in second] == [ids[0]]
    assert migrated("jobs", "list", "--status", "failed", "--json").json == []


def test_metadata_must_be_an_object_and_messages_are_not_made_as_jobs(migrated):
    assert migrated("jobs", "create", "a", "--metadata", "[1]").code == 2
    assert migrated("jobs", "create", "gateway.publish").code == 2


def test_show_tells_the_attempts_and_lets_nothing_steer_the_terminal(migrated):
    job_id = failed_job(error="\x1b[31mred\u202e", payload=b"\x1b]0;title\x07[bold]x[/bold]")
    shown = migrated("jobs", "show", job_id).out

    assert "attempts" in shown
    assert "\\x1b[31mred\\u202e" in shown
    assert "\\x1b]0;title\\x07[bold]x[/bold]" in shown
    for text in (shown, migrated("jobs", "list").out):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)


# -- send and status -------------------------------------------------------------------------------------------------


def test_send_stores_an_outbound_job(migrated, folder):
    (folder / "body").write_bytes(b"\x00\xff")
    sent = migrated(
        "send", "here", "orders", "--file", "body", "--key", "k1", "-H", "x-a: 1", "-H", "x-a: 2", "--json"
    )  # fmt: skip
    shown = migrated("jobs", "show", sent.json["id"], "--json").json

    assert (shown["handler"], shown["direction"], shown["protocol"]) == ("gateway.publish", "outbound", "memory")
    assert shown["metadata"] == {
        "connector": "here", "topic": "orders", "key": "k1", "headers": [["x-a", "1"], ["x-a", "2"]],
    }  # fmt: skip
    assert (shown["payload"], shown["payloadencoding"]) == ("AP8=", "base64")


def test_send_waits_in_vain_when_no_gateway_runs(migrated):
    ran = migrated("send", "here", "orders", "--body", "x", "--wait", "0.3")

    assert ran.code == 1
    assert "not delivered within 0.3 s, it is still tried; is a gateway running?" in ran.err
    assert migrated("jobs", "show", ran.out.strip()).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["her", "t"], 3, "no connector is named 'her', did you mean 'here'?"),
        (["here", "t", "-b", "x", "-f", "y"], 2, "--body and --file exclude each other"),
        (["here", "t", "-f", "missing"], 2, "missing cannot be read: No such file or directory"),
        (["here", "t", "-H", "nonsense"], 2, "--header needs 'name: value'"),
    ],
)
def test_send_refuses_what_it_cannot_send(migrated, arguments, code, says):
    ran = migrated("send", *arguments)

    assert (ran.code, ran.err.strip()) == (code, says)
    assert migrated("jobs", "list", "--json").json == []


def test_status_counts_jobs_and_says_that_no_gateway_answers(migrated):
    migrated("jobs", "create", "order.process")
    report = migrated("status", "--json").json

    assert (report["statuses"], report["instances"], report["connectors"]) == ({"pending": 1}, [], None)
    assert report["ready_handlers"] == {"order.process": 1}
    assert "no gateway answers" in migrated("status").out


def test_status_shows_each_instance_and_what_none_would_run(migrated):
    connectors = {"web": {"state": "connected"}, "bus": {"state": "degraded"}}
    migrated("jobs", "create", "nobodys")
    with an_instance(Report(running=2, workers=5, connectors=connectors, handlers=["known"])):
        report = migrated("status", "--json").json
        shown = migrated("status").out
    [instance] = report["instances"]
    assert (instance["alive"], instance["running"], instance["handlers"]) == (True, 2, ["known"])
    assert report["orphaned_handlers"] == {"nobodys": 1}
    for text in ("alive", "2 of 5", "1 connected, 1 degraded", "no living instance has"):
        assert text in shown


@contextmanager
def an_instance(report: Report) -> Iterator[None]:
    """An instance beside the command, which has told that of itself."""
    told, over = threading.Event(), threading.Event()

    async def live() -> None:
        store = await Store.open("sqlite:///jobs.db", instance="plant")
        try:
            store.tell(report)
            async with asyncio.timeout(10):
                while (await store.instances())[0].running is None:
                    await store.ping()
            told.set()
            await asyncio.to_thread(over.wait, 30)
        finally:
            await store.close()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    try:
        assert told.wait(15)
        yield
    finally:
        over.set()
        thread.join()


# -- secrets ---------------------------------------------------------------------------------------------------------

CANARY = "canary-5e1f0c7a"


def test_no_command_prints_a_secret(migrated, folder, monkeypatch):
    monkeypatch.setenv("SECRET", CANARY)
    (folder / "gateway.yaml").write_text(f"""
gateway: {{admin: {{listen: "127.0.0.1:1", token: "${{SECRET}}"}}}}
database: {{url: "sqlite:///jobs.db"}}
connectors:
  web:
    type: http
    listen: 127.0.0.1:0
    url: http://127.0.0.1:1
    headers: {{x-key: {CANARY}}}
    auth: {{type: bearer, token: "${{SECRET}}"}}
    inbound: [{{path: /a, handler: h, auth: {{type: basic, username: u, password: {CANARY}}}}}]
handlers: {{h: "json:dumps"}}
""")
    commands = [
        *(
            "check",
            "check --offline --json",
            "status",
            "status --json",
            "connectors show http",
            "schema",
            "create -o -",
        ),
        *("jobs list", "jobs list --json", "jobs create h", "send web x -b y", "migrate"),
    ]
    for command in commands:
        ran = migrated(*command.split())
        assert CANARY not in ran.out + ran.err, command
        assert ran.code in (0, 1), command


def failed_job(*, error: str, payload: bytes = b"") -> str:
    """Put a job into the database that has failed in its only attempt."""

    async def work() -> str:
        store = await Store.open("sqlite:///jobs.db", instance="test")
        try:
            job = NewJob(handler="order.process", payload=payload, max_retries=0)
            await store.enqueue([job])
            (claimed,) = await store.claim(Lane.RUN, 1, None)
            assert await store.finish([Finish(job=claimed, outcome=Discard(error))]) == [None]
            found = await store.get(job.id)
            assert found is not None
            assert found.status is JobStatus.FAILED
            return job.id
        finally:
            await store.close()

    return asyncio.run(work())


# -- positions -------------------------------------------------------------------------------------------------------

BROKERS = """
gateway: {admin: {listen: "127.0.0.1:1"}}
database: {url: "sqlite:///jobs.db"}
connectors:
  orders: {type: kafka, bootstrap_servers: "localhost:1", inbound: [{topic: t, group: g, handler: gateway.log}]}
  floor: {type: mqtt, url: "mqtt://localhost:1"}
"""
AT = ["positions", "set", "orders", "--topic", "t", "--partition", "1"]


@pytest.fixture
def positioned(migrated, folder):
    (folder / "gateway.yaml").write_text(BROKERS)
    return migrated


def test_a_position_is_set_and_listed(positioned):
    first = positioned(*AT, "--offset", "7", "--cluster", "abc")
    again = positioned(*AT, "--offset", "3", "--json").json
    listed = positioned("positions", "list", "orders", "--json").json

    assert (first.code, first.err.strip()) == (0, "orders goes on with t[1] at offset 7 (there was none)")
    assert (again["before"], again["nextoffset"], again["cluster"]) == (7, 3, "abc")
    assert [(row["connector"], row["topic"], row["partition"], row["nextoffset"]) for row in listed] == [
        ("orders", "t", 1, 3)
    ]
    assert listed[0]["updatedat"].endswith("Z")
    assert re.search(r"orders +t +1 +3 +20\d\d-", positioned("positions", "list").out)
    assert positioned("positions", "list", "floor", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["order", "-t", "t", "-o", "1"], 3, "no connector is named 'order', did you mean 'orders'?"),
        (["floor", "-t", "t", "-o", "1"], 2, "a connector of type mqtt has no position that could be set"),
        (["orders", "-t", "t", "-o", "1"], 2, "no position of this connector is stored yet: say --cluster"),
        (["orders", "-t", "t", "-o", "-1"], 2, "Invalid value for '--offset'"),
    ],
)
def test_a_position_that_means_nothing_is_not_set(positioned, arguments, code, says):
    ran = positioned("positions", "set", *arguments)

    assert ran.code == code
    assert says in ran.err
    assert "none yet" in positioned("positions", "list").out


def test_of_several_clusters_one_must_be_named(positioned):
    for cluster in ("abc", "def"):
        positioned(*AT, "--offset", "7", "--cluster", cluster)

    assert "say which: --cluster abc or def" in positioned(*AT, "--offset", "1").err


def test_a_position_is_not_set_under_a_gateway_that_runs(positioned):
    call = [*AT, "--offset", "7", "--cluster", "abc"]
    with asyncio.Runner() as other:
        store = other.run(Store.open("sqlite:///jobs.db", instance="plant"))
        try:
            refused, forced = positioned(*call), positioned(*call, "--force")
        finally:
            other.run(store.close())

    assert (refused.code, forced.code) == (1, 0)
    assert re.search(r"nothing was changed: plant \(pid \d+ on .*\) may be receiving from 'orders'", refused.err)
    assert "(there was none)" in forced.err
    assert positioned(*AT, "--offset", "8").code == 0
