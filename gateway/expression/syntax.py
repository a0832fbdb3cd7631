"""From an expression's text to one function of a message."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

from gateway.errors import ExpressionError
from gateway.expression import values
from gateway.expression.scope import VARIABLES, Scope

MAX_LENGTH: Final = 4000
MAX_TOKENS: Final = 400
MAX_DEPTH: Final = 40
"""Of brackets. With the limit on tokens it keeps the compiler, and what it compiles, off the end of Python's stack."""

Compiled: TypeAlias = Callable[[Scope], Any]
Binary: TypeAlias = Callable[[Any, Any], Any]

_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?![0-9A-Za-z_.])"
    r"|(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\|\||&&|[=!<>]=|[-+*/%!<>?:.,()\[\]])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_HINTS: Final = {"=": "; to compare is '=='", "&": "; 'and' is '&&'", "|": "; 'or' is '||'"} | dict.fromkeys(
    "'\"", "; the text that begins there has no end"
)
_LITERALS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}

_LEVELS: Final[Sequence[Mapping[str, Binary]]] = (
    {
        "==": values.equal,
        "!=": lambda left, right: not values.equal(left, right),
        "<": values.ordered(operator.lt),
        "<=": values.ordered(operator.le),
        ">": values.ordered(operator.gt),
        ">=": values.ordered(operator.ge),
        "in": values.contained,
    },
    {"+": values.add, "-": values.subtract},
    {"*": values.multiply, "/": values.divide, "%": values.remainder},
)


class Expression:
    """A compiled expression. `text` is how it was written."""

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str, compiled: Compiled) -> None:
        self.text = text
        self._compiled = compiled

    def evaluate(self, scope: Scope) -> Any:
        """Return a JSON value. Raises `ExpressionError`, and nothing else, whatever the message is."""
        try:
            return self._compiled(scope)
        except RecursionError as error:
            raise ExpressionError("the message's body is nested too deeply") from error


def parse(text: str) -> Expression:
    """Compile an expression. Raises `ValueError` that says what is wrong, and where."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an expression has at most {MAX_LENGTH} characters")
    return Expression(text, _Parser(_tokens(text)).whole())


class _Token(NamedTuple):
    kind: str
    text: str
    place: int

    def __str__(self) -> str:
        return f"'{self.text}' (character {self.place})" if self.text else "the end"


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            hint = _HINTS.get(text[place], "")
            raise ValueError(f"'{text[place]}' (character {place + 1}) does not belong into an expression{hint}")
        found.append(_Token(match.lastgroup, match[0], place + 1))
        place = match.end()
    if len(found) > MAX_TOKENS:
        raise ValueError(f"an expression has at most {MAX_TOKENS} names, values and signs")
    return [*found, _Token("end", "", len(text) + 1)]


class _Parser:
    """Recursive descent; each method returns the function of what it has read."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def whole(self) -> Compiled:
        compiled = self._choice()
        if self._next.kind != "end":
            raise ValueError(f"{self._next} is not expected here")
        return compiled

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _skip(self, *texts: str) -> str | None:
        """Take one of these signs, if it is the next."""
        if self._next.text in texts and self._next.kind in ("sign", "name"):
            return self._take().text
        return None

    def _expect(self, text: str) -> None:
        if self._skip(text) is None:
            raise ValueError(f"expected '{text}', not {self._next}")

    def _choice(self) -> Compiled:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"an expression is nested at most {MAX_DEPTH} deep")
        condition = self._either()
        if self._skip("?") is not None:
            yes = self._choice()
            self._expect(":")
            condition = _choice(condition, yes, self._choice())
        self._depth -= 1
        return condition

    def _either(self) -> Compiled:
        parts = [self._both()]
        while self._skip("||") is not None:
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else _decided(parts, by=True)

    def _both(self) -> Compiled:
        parts = [self._binary(0)]
        while self._skip("&&") is not None:
            parts.append(self._binary(0))
        return parts[0] if len(parts) == 1 else _decided(parts, by=False)

    def _binary(self, level: int) -> Compiled:
        if level == len(_LEVELS):
            return self._unary()
        compiled = self._binary(level + 1)
        while (sign := self._skip(*_LEVELS[level])) is not None:
            compiled = _applied(_LEVELS[level][sign], [compiled, self._binary(level + 1)])
            if level == 0:
                break
        return compiled

    def _unary(self) -> Compiled:
        signs: list[str] = []
        while (sign := self._skip("!", "-")) is not None:
            signs.append(sign)
        compiled = self._member()
        for sign in reversed(signs):
            compiled = _applied(_not if sign == "!" else values.negate, [compiled])
        return compiled

    def _member(self) -> Compiled:
        compiled = self._primary()
        while (sign := self._skip(".", "[")) is not None:
            if sign == "[":
                name = self._choice()
                self._expect("]")
                compiled = _applied(values.member, [compiled, name])
            else:
                compiled = self._named_member(compiled)
        return compiled

    def _named_member(self, of: Compiled) -> Compiled:
        token = self._take()
        if token.kind != "name":
            raise ValueError(f"expected a name after '.', not {token}; any other is written ['so']")
        if self._skip("(") is None:
            return _applied(values.member, [of, _constant(token.text)])
        arguments = self._list(")")
        return _applied(_function(values.METHODS, token, arguments), [of, *arguments])

    def _primary(self) -> Compiled:
        token = self._take()
        match token.kind, token.text:
            case (("number" | "text"), _):
                return _constant(_literal(token))
            case "sign", "(":
                inner = self._choice()
                self._expect(")")
                return inner
            case "sign", "[":
                return _listed(self._list("]"))
            case "name", text if self._skip("("):
                return self._call(token)
            case "name", text if text in _LITERALS:
                return _constant(_LITERALS[text])
            case "name", text if text in VARIABLES:
                return attrgetter(text)
            case "name", text:
                raise ValueError(f"there is no {token}{_suggested(text, VARIABLES)}")
            case _:
                raise ValueError(f"expected a value, not {token}")

    def _call(self, token: _Token) -> Compiled:
        arguments = self._list(")")
        if token.text == "has":
            if len(arguments) != 1:
                raise ValueError(f"{token} takes 1 value, not {len(arguments)}")
            return _has(arguments[0])
        return _applied(_function(values.FUNCTIONS, token, arguments), arguments)

    def _list(self, end: str) -> list[Compiled]:
        items: list[Compiled] = []
        while self._skip(end) is None:
            if items:
                self._expect(",")
            items.append(self._choice())
        return items


def _function(known: Mapping[str, tuple[int, Callable[..., Any]]], token: _Token, given: Sequence[Compiled]) -> Any:
    if token.text not in known:
        raise ValueError(f"there is no function {token}{_suggested(token.text, known)}")
    count, function = known[token.text]
    if len(given) != count:
        raise ValueError(f"{token} takes {count} value{'' if count == 1 else 's'} in brackets, not {len(given)}")
    return function


def _suggested(text: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = get_close_matches(text, known, 1)
    return f", did you mean '{near[0]}'?" if near else f", there are: {', '.join(known)}"


def _literal(token: _Token) -> int | float | str:
    text = token.text
    if token.kind == "text":
        return _unescaped(token)
    if not text.isdecimal():
        return float(text)
    if int(text[:20]) >= 2**63:
        raise ValueError(f"{token} is more than 64 bits")
    return int(text)


def _unescaped(token: _Token) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] not in _ESCAPES:
            raise ValueError(f"'\\{match[2]}' in {token} means nothing")
        return _ESCAPES[match[2]]

    return _ESCAPE.sub(one, token.text[1:-1])


def _constant(value: Any) -> Compiled:
    return lambda _: value


def _listed(items: Sequence[Compiled]) -> Compiled:
    return lambda scope: [item(scope) for item in items]


def _not(value: Any) -> bool:
    return not values.boolean(value)


def _choice(condition: Compiled, yes: Compiled, no: Compiled) -> Compiled:
    return lambda scope: yes(scope) if values.boolean(condition(scope)) else no(scope)


def _applied(function: Callable[..., Any], operands: Sequence[Compiled]) -> Compiled:
    match operands:
        case [one]:
            return lambda scope: function(one(scope))
        case [left, right]:
            return lambda scope: function(left(scope), right(scope))
        case _:
            return lambda scope: function(*(each(scope) for each in operands))


def _decided(parts: Sequence[Compiled], *, by: bool) -> Compiled:
    """Return `||` (decided by a true part) or `&&` (by a false one). A part that decides outweighs an error before."""

    def decided(scope: Scope) -> bool:
        failed: ExpressionError | None = None
        for part in parts:
            try:
                if values.boolean(part(scope)) is by:
                    return by
            except ExpressionError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return not by

    return decided


def _has(operand: Compiled) -> Compiled:
    def has(scope: Scope) -> bool:
        try:
            return operand(scope) is not None
        except ExpressionError:
            return False

    return has
