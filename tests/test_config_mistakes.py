"""All mistakes of a configuration are told at once, each with file, line, place and what to do."""

import json
import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config import Config, parse_config
from gateway.config.document import MAX_BYTES, MAX_DEPTH, MAX_NODES
from gateway.errors import ConfigError
from gateway.plugins import CONNECTORS, names


def parse(text: str, **environment: str) -> Config:
    return parse_config(textwrap.dedent(text), environment=environment)


def mistakes(text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(text, **environment)
    return list(error.value.mistakes)


def mistake(text: str, **environment: str) -> str:
    (only,) = mistakes(text, **environment)
    return only


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    told = mistakes(
        """\
        gateway:
          nam: plant
          admin: {listen: 0.0.0.0:80}
        jobs:
          workers: many
          lease: 0
          enabled: yes
        cache: {url: redi://x}
        schedules: {a: {handler: gateway.lok, cron: R * * * *, intervall: 5}}
        conectors: 1
        connectors:
          web:
            type: memry
            inbound:
              - handler: order.proces
                to: {connector: wob}
          here:
            type: memory
            inbound:
              - handlr: x
                topic: 5
        handlers:
          order.process: shop
          a b: json:dumps
          gateway.publish: json:dumps
          late: ${NOT_SET}
        """
    )

    assert told == [
        "gateway.yaml:2: gateway.nam: unknown key, did you mean 'name'?",
        (
            "gateway.yaml:3: gateway.admin: 'token' is required, because 'listen' is not on loopback"
            " (127.0.0.1, ::1, localhost)"
        ),
        "gateway.yaml:5: jobs.workers: expected a whole number",
        "gateway.yaml:6: jobs.lease: must be at least 1",
        "gateway.yaml:7: jobs.enabled: expected true or false",
        "gateway.yaml:8: cache.url: 'redi' is no cache, did you mean 'redis'?",
        "gateway.yaml:9: schedules.a.handler: unknown handler 'gateway.lok', did you mean 'gateway.log'?",
        "gateway.yaml:9: schedules.a.intervall: unknown key, did you mean 'interval'?",
        "gateway.yaml:10: conectors: unknown key, did you mean 'connectors'?",
        "gateway.yaml:13: connectors.web.type: no connector named 'memry' is installed, did you mean 'memory'?",
        (
            "gateway.yaml:15: connectors.web.inbound[0].handler: unknown handler 'order.proces',"
            " did you mean 'order.process'?"
        ),
        "gateway.yaml:16: connectors.web.inbound[0].to.connector: no connector is named 'wob', did you mean 'web'?",
        "gateway.yaml:20: connectors.here.inbound[0].handler: this key is required",
        "gateway.yaml:20: connectors.here.inbound[0].handlr: unknown key, did you mean 'handler'?",
        "gateway.yaml:21: connectors.here.inbound[0].topic: expected text, write it in quotes",
        "gateway.yaml:23: handlers.order.process: expected module:attribute, such as shop.handlers:place_order",
        "gateway.yaml:24: handlers.a b: a handler's name has no spaces and at most 255 characters",
        "gateway.yaml:25: handlers.gateway.publish: this name belongs to outbound messages, choose another",
        "gateway.yaml:26: handlers.late: the environment variable NOT_SET is not set; ${NAME:default} gives a default",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jobs: [1]", "1: jobs: expected keys with values"),
        ("connectors: web", "1: connectors: expected keys with values"),
        ("connectors:\n  a: 5", "2: connectors.a: expected keys with values, at least 'type'"),
        (
            "connectors:\n  a: {inbound: []}",
            f"2: connectors.a.type: this key is required: the type of connector ({', '.join(names(CONNECTORS))})",
        ),
        ("connectors:\n  a: {type: 5}", "2: connectors.a.type: expected text"),
        ("connectors:\n  a:\n    type: memory\n    inbound: x", "4: connectors.a.inbound: expected a list"),
        (
            "connectors:\n  a:\n    type: memory\n    inbound: [7]",
            "4: connectors.a.inbound[0]: expected keys with values",
        ),
        (
            "connectors:\n  a/b: {type: memory}",
            "2: connectors.a/b: a connector's name is made of letters, digits and '_', '.', '-', at most 64",
        ),
        (
            "database:\n  url: postgres",
            (
                "2: database.url: the database URL cannot be read; write e.g. sqlite:///gateway.db,"
                " postgresql://user:password@host/database or mysql://user:password@host/database"
            ),
        ),
        (
            "database: {url: 'sqlite://'}",
            ("1: database.url: SQLite needs a file: jobs must outlive the process; write e.g. sqlite:///gateway.db"),
        ),
        (
            "gateway: {admin: {listen: nine}}",
            "1: gateway.admin.listen: expected host:port, such as 127.0.0.1:8090 or [::1]:8090",
        ),
        (
            "gateway: {admin: {listen: '127.0.0.1:99999'}}",
            ("1: gateway.admin.listen: expected host:port, such as 127.0.0.1:8090 or [::1]:8090"),
        ),
        ("jobs: {timeout: 0}", "1: jobs.timeout: must be more than 0"),
        ("jobs: {max_retries: 1.5}", "1: jobs.max_retries: expected a whole number"),
        ("jobs: {workers: 99999}", "1: jobs.workers: must be at most 1000"),
        ("jobs: {poll_interval: .inf}", "1: jobs.poll_interval: expected a number"),
        (
            "jobs: {qqqqq: 1}",
            (
                "1: jobs.qqqqq: unknown key, there are: enable_metrics, enabled, job_history_retention_days,"
                " lease, max_retries, poll_interval, retry_delay, retry_max_delay, scheduler_check_interval,"
                " timeout, workers"
            ),
        ),
        (
            "notes: [x]",
            "1: notes: unknown key, there are: cache, connectors, database, gateway, handlers, jobs, schedules",
        ),
    ],
)
def test_a_mistake_says_where_and_what(text, says):
    assert mistake(text) == f"gateway.yaml:{says}"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:80", "localhost:80"])
def test_loopback_needs_no_token(listen):
    assert parse(f"gateway: {{admin: {{listen: '{listen}'}}}}").gateway.admin is not None


@pytest.mark.parametrize(
    "listen", [":80", "0.0.0.0:80", "[::]:80", "10.0.0.1:80", "example.com:80", "[::ffff:10.0.0.1]:80"]
)
def test_anywhere_else_a_token_is_required(listen):
    assert "'token' is required" in mistake(f"gateway: {{admin: {{listen: '{listen}'}}}}")
    assert parse(f"gateway: {{admin: {{listen: '{listen}', token: x}}}}").gateway.admin is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "3: a: the key stands here twice, first in line 1"),
        ("jobs:\n  lease: 5\n  'lease': 6\n", "3: jobs.lease: the key stands here twice, first in line 2"),
        (
            "jobs:\n  lease: !!python/object:os.system x",
            ("2: YAML tags (words that start with !) mean nothing here; put text with ! in quotes"),
        ),
        (
            "jobs:\n\tlease: 5",
            ("2: not valid YAML: found character '\\t' that cannot start any token; indent with spaces, not with tabs"),
        ),
        (
            "jobs:\n  name: a: b",
            "2: not valid YAML: mapping values are not allowed here; text that holds ': ' needs quotes",
        ),
        (
            "database: {url: ${URL}}",
            ("1: not valid YAML: expected ',' or '}', but got '{'; inside {…} and […] put ${…} in quotes"),
        ),
        ("a: 1\n---\nb: 1", "2: not valid YAML: but found another document; '---' may stand in the first line only"),
        ("a: &x\n  - *x", "1: an alias points to what it is part of"),
        ("- a\n- b", "1: expected keys with values, such as 'connectors:'"),
        ("just text", "1: expected keys with values, such as 'connectors:'"),
        ("? [a]\n: b", "1: a key must be text"),
        ("jobs:\n  <<: 5", "2: jobs.<<: expected an alias of keys with values"),
        ('gateway:\n  name: "\\ud800"', "2: gateway.name: holds NUL or half of a surrogate pair"),
        ('gateway:\n  name: "a\\0"', "2: gateway.name: holds NUL or half of a surrogate pair"),
        ("a: 1\nb: \x07", "2: the character U+0007 is not allowed"),
        ("a: " + "[" * (MAX_DEPTH + 1), f"1: nested deeper than {MAX_DEPTH} levels"),
        ("x" * (MAX_BYTES + 1), f"1: larger than {MAX_BYTES // 1024} KiB"),
    ],
)
def test_a_document_that_cannot_be_read_says_why(text, says):
    assert says in [each.removeprefix("gateway.yaml:") for each in mistakes(text)]


def test_aliases_that_grow_are_stopped_early():
    lines = ["x-0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]

    assert f"more than {MAX_NODES} values" in mistake("\n".join(lines))


def test_a_handler_that_cannot_be_imported_is_a_mistake_at_its_place():
    text = textwrap.dedent("""\
        connectors:
          here:
            type: memory
            inbound:
              - {topic: a, handler: mine}
        handlers:
          mine: no_such_module:handler
          fine: json:dumps
        """)

    assert parse(text).handlers["mine"] == "no_such_module:handler"
    with pytest.raises(ConfigError) as error:
        parse_config(text, imports=True)
    assert error.value.mistakes == (
        (
            "gateway.yaml:7: handlers.mine: the handler 'mine' (no_such_module:handler, named in the configuration)"
            " cannot be imported: No module named 'no_such_module'"
        ),
    )


# -- whatever comes --------------------------------------------------------------------------------------------------

YAML_PIECES = st.sampled_from(
    [
        *(
            "gateway",
            "jobs",
            "connectors",
            "web",
            "type",
            "memory",
            "inbound",
            "handler",
            "handlers",
            "to",
            "connector",
        ),
        *(
            ": ",
            ":",
            "- ",
            "\n",
            "\n  ",
            "\n    ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "&a ",
            "*a",
            "<<",
            "!",
            "!!int ",
            "? ",
            "x-a",
        ),
        *("'", '"', "|\n", ">\n", "%", "@", "`", "#", "---", "...", "${", "${X}", "${file:x}", "$${", "\t", "\\"),
        *("\\ud800", "~", "null", "5", "1e999", "0x", "\x00", "\x85", "\ufeff", "\ud800", "é", "🙂"),
    ]
)
KEYS = st.sampled_from(["gateway", "jobs", "connectors", "type", "inbound", "handler", "to", "admin", "url", "x"])


def is_judged(text: str) -> bool:
    try:
        parse_config(text, environment={"X": "y"})
    except ConfigError as error:
        return bool(error.mistakes)
    return True


@settings(max_examples=150, deadline=None)
@given(st.lists(YAML_PIECES, max_size=40).map("".join))
@example("connectors: {a: {type: memory, inbound: [{to: {connector: 5}}]}}")
@example("connectors: {a: {type: memory, inbound: {handler: x}}}")
@example("a: " + "[" * 5000)
@example("a: " + "{a: " * 5000)
@example("- " * 5000)
@example("? " * 5000)
@example("jobs: {workers: " + "9" * 5000 + "}")
def test_whatever_is_written_there_is_nothing_but_a_config_or_a_config_error(text):
    assert is_judged(text)


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
        max_leaves=20,
    )
)
def test_any_values_in_any_place_are_a_config_or_a_config_error(value):
    for key in ("gateway", "database", "jobs", "connectors", "handlers"):
        assert is_judged(json.dumps({key: value}, ensure_ascii=False))


def test_mistakes_in_expressions_are_told_with_their_places():
    told = mistakes(
        """\
        connectors:
          bus:
            type: memory
            inbound:
              - topic: a
                handler: gateway.log
                when: body.id = 1
                dedupe: ${SECRET}
                ordering: [key]
                priority: 2000000
              - {topic: b, handler: gateway.log, priority: bodi.x, sample: {bodi: 1}}
        """,
        SECRET="canary.x",
    )

    place = "connectors.bus.inbound"
    assert told == [
        f"gateway.yaml:7: {place}[0].when: '=' (character 9) does not belong into an expression; to compare is '=='",
        (
            f"gateway.yaml:8: {place}[0].dedupe: there is no '…' (character 1), there are: topic, key, headers,"
            " parameters, content_type, body"
        ),
        f"gateway.yaml:9: {place}[0].ordering: expected text",
        f"gateway.yaml:10: {place}[0].priority: must be at most 1000000",
        f"gateway.yaml:11: {place}[1].priority: there is no 'bodi' (character 1), did you mean 'body'?",
        f"gateway.yaml:11: {place}[1].sample.bodi: unknown key, did you mean 'body'?",
    ]
