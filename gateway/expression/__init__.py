"""A small expression language over a message, so that an entry can choose, order and tell apart what it receives.

It is a part of the Common Expression Language: `body.amount > 100 && headers['x-region'] in ['eu', 'uk']`. It is
total: there is no loop, no recursion, no regular expression and no way out of it; an evaluation takes time linear in
the expression and the values it touches. Numbers are 64 bits wide or floating, texts it makes have a limit.

| | |
|---|---|
| variables | `topic`, `key`, `headers`, `parameters`, `content_type`, `body` (decoded from JSON at its first use) |
| members | `body.order.id`, `body['order-id']`, `body.lines[0]`; what is absent is `null`, and so are its members |
| operators | `&&`, `||`, `!`, `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `+`, `-`, `*`, `/`, `%`, `a ? b : c` |
| functions | `has(x)`, `size(x)`, `string(x)`, `int(x)`, `double(x)` |
| of texts | `x.startsWith(y)`, `x.endsWith(y)`, `x.contains(y)`, `x.lowerAscii()` |

Headers are found in any case, the first of a name counts. Unlike in CEL, what is absent is null instead of an error,
and whole and floating numbers may be mixed. A body that is not JSON is an error wherever it is used, but in `has`.
"""

from gateway.expression.scope import Scope
from gateway.expression.syntax import Expression, parse

__all__ = ["Expression", "Scope", "parse"]
