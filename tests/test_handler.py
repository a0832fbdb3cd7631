import functools

import pytest

from gateway.errors import ConfigError
from gateway.handler import Handler, HandlerOptions, handler


async def asynchronous(context):
    return context


def plain(context):
    return context


class Callable:
    async def __call__(self, context):
        return context

    def method(self, context):
        return context

    async def coroutine(self, context):
        return context

    @staticmethod
    async def static(context):
        return context


async def with_more(context, shop="main"):
    return context, shop


async def with_two(context, shop):
    return context, shop


async def generator(context):
    yield context


def test_a_function_without_the_decorator_is_a_handler():
    made = Handler.of("a", asynchronous)
    assert (made.name, made.function, made.plain, made.options) == ("a", asynchronous, False, HandlerOptions())


@pytest.mark.parametrize(
    ("target", "is_plain"),
    [
        (asynchronous, False),
        (plain, True),
        (Callable(), False),
        (Callable().method, True),
        (Callable().coroutine, False),
        (Callable.static, False),
        (with_more, False),
        (functools.partial(with_two, shop="main"), False),
        (functools.partial(plain), True),
        (lambda context: context, True),
    ],
)
def test_it_is_known_whether_a_handler_needs_a_thread(target, is_plain):
    assert Handler.of("a", target).plain is is_plain


def test_the_decorator_gives_back_the_function_itself():
    assert handler(asynchronous) is asynchronous
    made = handler(timeout=3, max_retries=7, commit="group")(plain)
    assert made is plain
    assert Handler.of("a", made).options == HandlerOptions(timeout=3, max_retries=7, commit="group")
    assert Handler.of("b", Handler.of("a", made)).name == "b"


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"max_retries": -1}, {"commit": "never"}],
)
def test_an_option_that_makes_no_sense_is_refused_where_it_stands(options):
    with pytest.raises(ValueError, match="a handler's"):
        handler(**options)


@pytest.mark.parametrize("target", [None, 3, "module:name", Callable, with_two, generator, lambda: None])
def test_what_cannot_be_a_handler_is_refused_with_its_name(target):
    with pytest.raises(ConfigError, match="'shop'"):
        Handler.of("shop", target)
