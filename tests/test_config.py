"""A configuration is either right, or refused with all its mistakes, each with its line and without any secret."""

import json
import textwrap
import traceback
from pathlib import Path

import pytest

from gateway.config import Config, find_config, json_schema, load_config, parse_config
from gateway.config.document import typed
from gateway.errors import ConfigError

CANARY = "canary_5e1f0c7a"


def parse(text: str, **environment: str) -> Config:
    return parse_config(textwrap.dedent(text), environment=environment)


def mistakes(text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(text, **environment)
    return list(error.value.mistakes)


def mistake(text: str, **environment: str) -> str:
    (only,) = mistakes(text, **environment)
    return only


# -- what is right ---------------------------------------------------------------------------------------------------


def test_an_empty_document_is_a_gateway_with_the_defaults_of_the_original():
    config = parse("")

    assert config.jobs.model_dump() == {
        "enabled": True,
        "workers": 5,
        "poll_interval": 5,
        "max_retries": 3,
        "retry_delay": 2,
        "retry_max_delay": 300,
        "timeout": 300,
        "lease": 10,
        "scheduler_check_interval": 60,
        "job_history_retention_days": 90,
        "enable_metrics": True,
    }
    assert config.database.url.get_secret_value() == "sqlite:///gateway.db"
    assert config.gateway.admin is not None
    assert (config.gateway.admin.host, config.gateway.admin.port) == ("127.0.0.1", 8090)
    assert config.gateway.grace == 25


def test_a_section_with_all_its_keys_commented_out_is_empty():
    assert parse("jobs:\nconnectors:\nhandlers:\ngateway:\n") == parse("")


def test_a_connector_is_checked_by_its_own_model():
    config = parse("""
        connectors:
          here:
            type: memory
            inbound:
              - {topic: orders, handler: order.process, priority: 5, metadata: {plant: 7}}
        handlers:
          order.process: json:dumps
        """)

    entry = config.connectors["here"].inbound[0]
    assert (type(config.connectors["here"]).__name__, entry.handler, entry.priority) == (
        "MemoryConfig", "order.process", 5,
    )  # fmt: skip
    assert entry.metadata == {"plant": 7}
    assert config.handlers == {"order.process": "json:dumps"}


def test_the_admin_listener_can_be_switched_off():
    assert parse("gateway: {admin: null}").gateway.admin is None


def test_use_redis_is_accepted_and_noted():
    config = parse("use_redis: true\njobs: {use_redis: false, workers: 7}")

    assert config.jobs.workers == 7
    assert [note.partition(" ")[0] for note in config.notes] == ["use_redis", "jobs.use_redis"]


def test_anchors_may_stand_in_a_place_of_their_own_and_be_merged():
    config = parse("""
        x-common: &common {max_retries: 9, workers: 2}
        jobs:
          <<: *common
          workers: 3
        """)

    assert (config.jobs.max_retries, config.jobs.workers) == (9, 3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-3", -3), ("+4", 4), ("0", 0), ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("012", "012"), ("0x10", "0x10"), ("12:30", "12:30"), ("1_000", "1_000"),
        (".inf", ".inf"), (".nan", ".nan"), ("1e999", "1e999"), ("9" * 50, "9" * 50), ("2024-01-01", "2024-01-01"),
        (".", "."), ("+", "+"), ("e5", "e5"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_plain_scalars_mean_what_yaml_1_2_says_without_its_surprises(text, value):
    assert typed(text) == value
    assert type(typed(text)) is type(value)


# -- references ------------------------------------------------------------------------------------------------------


def test_references_are_resolved_after_parsing(tmp_path):
    (tmp_path / "token").write_text("from-a-file\n")
    config = parse_config(
        """
        gateway: {name: "${NAME}-${NUMBER:7}", admin: {token: "${file:token}"}}
        database: {url: "sqlite:///${FILE:gate.db}"}
        """,
        environment={"NAME": "plant"},
        folder=tmp_path,
    )

    assert config.gateway.name == "plant-7"
    assert config.gateway.admin is not None
    assert config.gateway.admin.token is not None
    assert config.gateway.admin.token.get_secret_value() == "from-a-file"
    assert config.database.url.get_secret_value() == "sqlite:///gate.db"


def test_a_value_that_is_one_reference_is_typed_again():
    config = parse("jobs: {workers: '${W}', enabled: '${E}', lease: '${L:2.5}'}", W="9", E="false")

    assert (config.jobs.workers, config.jobs.enabled, config.jobs.lease) == (9, False, 2.5)


@pytest.mark.parametrize("secret", ["12345678", "true", "1e5", "0.5", "null", "~"])
def test_a_secret_that_looks_like_a_number_stays_text(secret):
    admin = parse("gateway: {admin: {token: '${TOKEN}'}}", TOKEN=secret).gateway.admin

    assert admin is not None
    assert admin.token is not None
    assert admin.token.get_secret_value() == secret


def test_an_empty_reference_is_an_absent_value():
    admin = parse("gateway: {admin: {token: '${TOKEN:}'}}").gateway.admin

    assert admin is not None
    assert admin.token is None


def test_a_value_from_outside_cannot_change_the_structure():
    assert mistake("gateway: {name: '${NAME}'}", NAME="x\nadmin: null") == (
        "gateway.yaml:1: gateway.name: must match ^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
    )


def test_two_dollars_stand_for_themselves():
    config = parse("""
        handlers: {h: "json:dumps"}
        connectors:
          m:
            type: memory
            inbound: [{topic: "$${x}", handler: h, metadata: {a: "$5", b: "$${", c: "${V}"}}]
        """, V="${W}")  # fmt: skip

    entry = config.connectors["m"].inbound[0]
    assert entry.model_dump()["topic"] == "${x}"
    assert entry.metadata == {"a": "$5", "b": "${", "c": "${W}"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${NOT_SET}", "the environment variable NOT_SET is not set; ${NAME:default} gives a default"),
        ("${HOMES}", "the environment variable HOMES is not set, did you mean 'HOME'?"),
        ("${file:/nowhere/token}", "the file '/nowhere/token' cannot be read: No such file or directory"),
        ("${file:/}", "the file '/' cannot be read: Is a directory"),
        ("${", "'${' has no '}'; write '$${' for a plain '${'"),
        ("${HOME", "'${' has no '}'; write '$${' for a plain '${'"),
        ("${}", "'${…}' needs the name of a variable or file:/path; write '$${' for a plain '${'"),
        ("${a b}", "'${…}' needs the name of a variable or file:/path; write '$${' for a plain '${'"),
        ("${BYTES}", "the environment variable BYTES is not UTF-8 text"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_mistake(value, says):
    text = f"\ngateway:\n  name: '{value}'\n"

    assert mistake(text, HOME="/root", BYTES="\udcff") == f"gateway.yaml:3: gateway.name: {says}"


def test_a_file_that_is_no_text_or_too_large_is_a_mistake(tmp_path):
    for content, says in (
        (b"\xff", "is not UTF-8 text"),
        (b"x" * 70_000, "is larger than 64 KiB"),
        (b"a\0b", "holds NUL"),
    ):
        (tmp_path / "secret").write_bytes(content)
        with pytest.raises(ConfigError, match=f"yaml:1: gateway.name: the file .*{says}"):
            parse_config("gateway: {name: '${file:secret}'}", folder=tmp_path)


# -- secrets ---------------------------------------------------------------------------------------------------------


def leaks(error: BaseException) -> bool:
    text = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    return CANARY in text


@pytest.mark.parametrize(
    "text",
    [
        "gateway: {name: '${C}', admin: {listen: '${C}', token: '${C}', ${C}: 1}}",
        "gateway: {name: '-${C}', grace: '${C}'}",
        "gateway: {admin: {listen: '${C}:80:80'}}",
        "database: {url: '${C}', pool_size: '${C}'}",
        "database: {url: '${C}://user:${C}@host/x'}",
        "database: {url: 'oracle://user:${C}@host/x', statement_timeout: '${C}'}",
        "connectors: {a: {type: http, listen: '${C}', url: '${C}', inbound: [{path: '{${C}', auth: {type: '${C}'}}]}}",
        "connectors: {a: {type: http, method: '${C}', auth: {type: hmac, secret: '${C}', scheme: '${C}'}}}",
        "jobs: '${C}'",
        "jobs: {workers: '${C}', enabled: '${C}', lease: '1${C}'}",
        "connectors: {a: {type: '${C}'}, b: '${C}', c: {type: memory, broker: ['${C}'], inbound: '${C}'}}",
        "connectors: {c: {type: memory, inbound: ['${C}', {handler: '${C}', topic: 5, to: {connector: '${C}'}}]}}",
        "handlers: {a: '${C}', b: '${C}:${C}:x', c: 'canary.x:y'}\njobs: 1",
        "gateway: {admin: {listen: '0.0.0.0:1', token: ''}, name: 'x ${C}'}",
        # written in the file itself
        f"database: {{url: 'mysql+x://u:{CANARY}@h/x', password: {CANARY}}}\n",
        f"gateway: {{name: ' {CANARY}', grace: {CANARY}, admin: {{listen: {CANARY}}}}}",
        f"gateway: {{admin: {{token: [{CANARY}]}}}}",
        f"gateway: {{admin: {{token: !{CANARY} x}}}}",
        f"gateway: {{admin: {{token: *{CANARY}}}}}",
        f"gateway: {{admin: {{token: %{CANARY}}}}}",
        f"gateway:\n  admin:\n    token: 'x{CANARY}: y",
        f"gateway:\n  admin:\n    token: @{CANARY}",
        f"gateway:\n  admin:\n    token: !x!{CANARY}: y: z",
        f"gateway:\n  admin:\n    token: &{CANARY} &{CANARY} z",
        f"gateway:\n  admin:\n    token: {CANARY}: {CANARY}",
    ],
)
def test_no_secret_stands_in_a_mistake(text):
    with pytest.raises(ConfigError) as error:
        parse_config(text, environment={"C": CANARY}, imports=True)

    assert not leaks(error.value)


def test_no_secret_stands_in_what_a_configuration_prints():
    config = parse(
        """
        gateway: {name: "n-${C}", admin: {token: "${C}"}}
        database: {url: "postgresql://user:${C}@host/name"}
        connectors:
          c: {type: memory, broker: "${C}", inbound: [{topic: "${C}", handler: h, to: {headers: {a: "${C}"}}}]}
        handlers: {h: "json:dumps"}
        """,
        C=CANARY,
    )

    parts = [config, config.gateway, config.database, config.connectors["c"], config.connectors["c"].inbound[0]]
    for part in parts:
        assert CANARY not in repr(part) + str(part) + f"{part!r:}"
    assert "workers=5" in repr(config)
    assert CANARY not in config.database.model_dump_json()


def test_the_secrets_to_keep_out_of_logs_are_known():
    config = parse(f"""
        gateway: {{admin: {{token: first-{CANARY}}}}}
        database: {{url: "postgresql://user:second-{CANARY}@host/name"}}
        """)

    assert {f"first-{CANARY}", f"second-{CANARY}"} <= set(config.secrets())


# -- files -----------------------------------------------------------------------------------------------------------


def test_the_first_of_the_known_places_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    assert find_config() is None
    for place in ("configs/gateway.yaml", "gateway.yaml", "other.yaml", "named.yaml"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text(f"gateway: {{name: {place.replace('/', '-')}}}")
        if place == "other.yaml":
            monkeypatch.setenv("GATEWAY_CONFIG", place)
        if place != "named.yaml":
            assert load_config().gateway.name == place.replace("/", "-")
    assert load_config("named.yaml").gateway.name == "named.yaml"


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"a: 1\nb: \xff")

    for name, says in (("missing.yaml", ": cannot be read: No such file"), ("binary.yaml", ":2: is not UTF-8 text")):
        with pytest.raises(ConfigError) as error:
            load_config(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}{says}")


# -- the schema for editors ------------------------------------------------------------------------------------------


def test_the_schema_knows_every_section_and_the_installed_connectors():
    schema = json_schema()

    assert set(schema["properties"]) == {"gateway", "database", "cache", "jobs", "connectors", "schedules", "handlers"}
    kinds = schema["properties"]["connectors"]["additionalProperties"]["properties"]["type"]["anyOf"][0]["enum"]
    assert "memory" in kinds
    assert "inbound" in schema["$defs"]["memory"]["properties"]
    assert CANARY not in json.dumps(schema)


def test_the_schema_lets_a_reference_stand_for_a_number():
    workers = json_schema()["$defs"]["JobsConfig"]["properties"]["workers"]

    assert [choice["type"] for choice in workers["anyOf"]] == ["integer", "string"]
    assert workers["default"] == 5
