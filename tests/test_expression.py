import json
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ExpressionError
from gateway.expression import Scope, parse
from gateway.message import Message

BODY = {
    "amount": 150.5,
    "count": 3,
    "id": "A-1",
    "paid": True,
    "none": None,
    "lines": [{"sku": "x"}, {"sku": "y"}],
    "order-id": 7,
    "customer": {"name": "Ada"},
    "huge": 10**30,
}
MESSAGE = Message(
    topic="orders/eu",
    key=b"k-1",
    headers=(("X-Region", b"eu"), ("x-region", b"us"), ("bin", b"\xff")),
    parameters={"region": "eu"},
    content_type="application/json",
    body=json.dumps(BODY).encode(),
)


def value(text, message=MESSAGE):
    return parse(text).evaluate(Scope(message))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("body.amount > 100 && headers['x-region'] == 'eu'", True),
        ("topic == 'orders/eu' && key == \"k-1\" && content_type.startsWith('application/')", True),
        ("headers['X-REGION']", "eu"),
        ("'X-Region' in headers && !('y' in headers)", True),
        ("parameters.region in ['eu', 'uk']", True),
        ("body.lines[1].sku + '/' + body.id", "y/A-1"),
        ("body['order-id'] + 1", 8),
        ("body['customer']['name'].lowerAscii()", "ada"),
        ("body", BODY),
        # what is absent
        ("body.nothing", None),
        ("body.nothing.deeper[3]['x']", None),
        ("body.lines[9]", None),
        ("headers.nothing == null && body.none == null", True),
        ("body.nothing == 'x' || body.nothing in ['x']", False),
        ("'x' in body.nothing", False),
        ("has(body.id) && !has(body.nothing) && !has(body.none) && has(headers.bin)", True),
        # numbers
        ("1 + 2 * 3 - -4", 11),
        ("(1 + 2) * 3", 9),
        ("10 - 2 - 3", 5),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("7.0 / 2", 3.5),
        ("1 == 1.0 && 1 < 1.5 && 100 < 1e3", True),
        ("body.huge > 5 && body.huge == body.huge", True),
        ("9223372036854775807 - 1", 9223372036854775806),
        # kinds are not mixed up
        ("true == 1 || 1 == '1' || null == false || [] == null", False),
        ("1 in [true, '1']", False),
        ("body.paid != 'yes'", True),
        # the rest
        ("body.count > 2 ? 'many' : 'few'", "many"),
        ("false ? 1 : true ? 2 : 3", 2),
        ("true || false && false", True),
        ("!true == false", True),
        ("!!body.paid", True),
        ("'b' > 'a' && 'abc'.contains('b') && 'abc'.endsWith('c')", True),
        ("size(body.lines) + size('äöü') + 'xy'.size() + size(headers)", 9),
        ("string(body.count) + string(true) + string(1.5) + string('x')", "3true1.5x"),
        ("string([body.id, 1, null])", '["A-1",1,null]'),
        ("int('12') + int(3.9) + int('-1')", 14),
        ("double('1.5e1')", 15.0),
        ("[1, [2], 'x'] == [1, [2], 'x']", True),
        (r"'a\n\'\"\\\u00e4'", "a\n'\"\\ä"),
    ],
)
def test_an_expression_gives(text, expected):
    found = value(text)

    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("body.nothing > 5", "null cannot be compared with a number"),
        ("body.id > 5", "text cannot be compared with a number"),
        ("body.paid < true", "true or false cannot be compared with true or false"),
        ("body.id && true", "expected true or false, this is text"),
        ("!body.id", "expected true or false, this is text"),
        ("body.nothing ? 1 : 2", "expected true or false, this is null"),
        ("body.id + 1", "text and a number cannot be calculated with"),
        ("body.paid + 1", "true or false and a number cannot be calculated with"),
        ("1 / 0", "cannot be calculated with: "),
        ("1 % 0", "cannot be calculated with: "),
        ("1.0 % 0", "cannot be calculated with: "),
        ("9223372036854775807 + 1", "64 bits"),
        ("body.huge * 2", "64 bits"),
        ("1e308 * 10 + int(1e308)", "64 bits"),
        ("body.id.name", "text has no member that is named by text"),
        ("body['lines']['x']", "a list has no member that is named by text"),
        ("'x' in body.id", "'in' looks into a list or an object, this is text"),
        ("int('1_000')", "text that is no whole number"),
        ("int(' 1')", "text that is no whole number"),
        ("int(true)", "true or false that is no whole number"),
        ("double('nan')", "text that is no number"),
        ("size(5)", "a number has no size"),
        ("string(body.customer)", "a key is text, a number"),
        ("body.count.startsWith('3')", "expected text, this is a number"),
    ],
)
def test_what_has_no_value_is_an_error_that_shows_none_of_the_message(text, says):
    with pytest.raises(ExpressionError, match=r"^[^A]*$") as error:
        value(text)

    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a value, not the end"),
        ("body.id = 'x'", "'=' (character 9) does not belong into an expression; to compare is '=='"),
        ("true & false", "'&' (character 6) does not belong into an expression; 'and' is '&&'"),
        ("topic == 'x", "''' (character 10) does not belong into an expression; the text that begins there has no end"),
        ("bodi.id", "there is no 'bodi' (character 1), did you mean 'body'?"),
        ("key.startWith('x')", "there is no function 'startWith' (character 5), did you mean 'startsWith'?"),
        (
            "body.id.matches('x')",
            "there is no function 'matches' (character 9), there are: startsWith, endsWith, contains, lowerAscii, size",
        ),
        ("eval('1')", "there is no function 'eval' (character 1), there are: size, string, int, double"),
        ("key.startsWith()", "'startsWith' (character 5) takes 1 value in brackets, not 0"),
        ("has()", "'has' (character 1) takes 1 value, not 0"),
        ("(1", "expected ')', not the end"),
        ("[1 2]", "expected ',', not '2' (character 4)"),
        ("1 < 2 < 3", "'<' (character 7) is not expected here"),
        ("body.1", "expected a name after '.', not '1' (character 6); any other is written ['so']"),
        ("true ? 1", "expected ':', not the end"),
        ("99999999999999999999", "'99999999999999999999' (character 1) is more than 64 bits"),
        ("__import__('os')", "there is no function '__import__' (character 1), there are: size, string, int, double"),
        ("in", "there is no 'in' (character 1), there are: topic, key, headers, parameters, content_type, body"),
        ("1 $", "'$' (character 3) does not belong into an expression"),
        ("x" * 5000, "an expression has at most 4000 characters"),
        ("1" + "+1" * 200, "an expression has at most 400 names, values and signs"),
        ("(" * 41 + "1" + ")" * 41, "an expression is nested at most 40 deep"),
    ],
)
def test_what_is_no_expression_is_refused_with_its_place(text, says):
    with pytest.raises(ValueError) as error:
        parse(text)

    assert str(error.value) == says


@pytest.mark.parametrize("body", [b"not json", b"\xff\xfe", b"NaN", b"[" * 100_000, b"1" * 5000])
def test_a_body_that_is_not_json_is_an_error_only_where_it_is_used(body):
    message = Message(topic="t", body=body)

    assert value("topic == 't'", message)
    assert not value("has(body.id)", message)
    with pytest.raises(ExpressionError, match="not JSON"):
        value("body.id == 1", message)


def test_a_tombstone_and_an_empty_body_are_null():
    assert value("body == null", Message(topic="t", tombstone=True))
    assert value("body == null && body.x == null", Message(topic="t"))
    assert value("key == null && content_type == null", Message(topic="t"))


def test_a_part_that_decides_outweighs_an_error_beside_it():
    assert value("body.nothing > 1 || true")
    assert not value("body.nothing > 1 && false")
    with pytest.raises(ExpressionError, match="null"):
        value("body.nothing > 1 && true")


def test_different_bytes_are_different_texts():
    keys = [b"\xe9", "é".encode(), b"\xff", b"\xc3\x83\xc2\xa9"]

    assert len({value("key", Message(topic="t", key=key)) for key in keys}) == len(keys)


def test_the_body_is_decoded_at_most_once_and_only_if_it_is_used(monkeypatch):
    decoded = []
    monkeypatch.setattr(Message, "json", lambda self: decoded.append(1) or {"a": 1})
    scope = Scope(MESSAGE)

    parse("topic == 'x' || 'a' in headers").evaluate(scope)
    assert decoded == []
    parse("body.a == body.a && body.a > 0").evaluate(scope)
    parse("body").evaluate(scope)
    assert decoded == [1]


def test_the_largest_expressions_fit_python_s_stack():
    assert value("!" * 398 + "true")
    assert value("+".join(["1"] * 200)) == 200
    assert value("body" + ".a" * 199) is None
    assert value("(" * 39 + "1" + "+1)" * 39 + "+1" * 100) == 140
    with pytest.raises(ExpressionError, match="at most 65536 characters"):
        value("+".join(["topic"] * 40), Message(topic="x" * 2000))


def test_a_body_nested_as_deeply_as_python_reads_it_is_compared_or_refused():
    def compared(depth):
        nested = b"[" * depth + b"]" * depth
        return value("body.a == body.b", Message(topic="t", body=b'{"a":%b,"b":%b}' % (nested, nested)))

    assert compared(100)
    with suppress(ExpressionError):
        assert compared(sys.getrecursionlimit() - 150)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
PARTS = """body key headers topic parameters .a .b ['c'] [0] ( ) [ ] , + - * / % ! == != < <= > >= in && || ? : 'x' 1
 2.5 true null has( size( string( int( double( .startsWith( .lowerAscii() .contains("""
parts = st.sampled_from(PARTS.split())


@settings(max_examples=400, deadline=None)
@given(st.lists(parts, max_size=14), json_values, st.binary(max_size=4))
def test_whatever_is_written_and_whatever_comes_in_there_is_a_value_or_an_error(written, body, key):
    try:
        expression = parse(" ".join(written))
    except ValueError:
        return
    message = Message(topic="t", key=key, body=json.dumps(body).encode(), headers=(("a", key),))
    try:
        found = expression.evaluate(Scope(message))
    except ExpressionError:
        return
    assert found is None or isinstance(found, bool | int | float | str | list | dict)
