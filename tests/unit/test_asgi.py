"""The ASGI middleware alone: what it makes of a scope, whom it believes, what it answers, what it refuses."""

import asyncio
import json
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace

from sqlaudit import AuditContext, audit_context, clear_audit_context, get_audit_context, set_audit_context
from sqlaudit.context import MAX_FACTS_BYTES
from sqlaudit.exceptions import ConfigurationError, ContextError
from sqlaudit.integrations.asgi import AuditMiddleware, identify, user_from_header

Scope = MutableMapping[str, Any]


async def run(
    within: Callable[[Scope], Awaitable[None]] | None = None,
    /,
    *,
    headers: list[tuple[str, str]] | None = None,
    scope: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[AuditContext, list[Any]]:
    """Let a request pass the middleware; return the context at the end of the application, and what was sent."""
    seen: list[AuditContext] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if within is not None:
            await within(scope)
        seen.append(get_audit_context())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-ID", b"the app's")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "POST",
        "path": "/customers/1",
        "client": ("192.0.2.1", 1234),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers or []],
        **(scope or {}),
    }
    await AuditMiddleware(app, **options)(request, _never, send)
    return seen[0], sent


async def _never() -> Any:
    raise AssertionError


# --- the facts -------------------------------------------------------------------------------------------------------


async def test_the_facts_of_a_request() -> None:
    """Whatever the scope tells at the beginning stands in the context, under the names that are documented."""
    context, _ = await run(headers=[("x-request-id", "r-1"), ("user-agent", "curl/8")])

    assert context == AuditContext(
        facts={"request_id": "r-1", "client_address": "192.0.2.1", "method": "POST", "user_agent": "curl/8"}
    )


async def test_the_context_ends_with_the_request() -> None:
    """What was before the request is there after it, and reaches into it."""
    with audit_context(user_id=1, reason="why") as outer:
        context, _ = await run()

        assert get_audit_context() == outer
    assert (context.user_id, context.reason) == (1, "why")
    with pytest.raises(ContextError):
        identify(2)


async def test_only_the_facts_that_are_named_are_kept() -> None:
    """Whoever may not keep addresses doesn't."""
    context, sent = await run(facts=["method"], headers=[("x-request-id", "r-1"), ("user-agent", "curl/8")])

    assert context.facts == {"method": "POST"}
    assert sent[0]["headers"] == [(b"x-request-id", b"r-1")]


async def test_long_and_strange_headers_fail_no_request() -> None:
    """What a client sends is cut, and is no reason to refuse the request; the application keeps most of the room."""
    headers = [("x-request-id", "r" * 5000), ("user-agent", "\x00\x7f\xe9" * 5000), ("x-forwarded-for", "1, " * 5000)]
    scope = {"method": "X" * 5000, "path_template": "/" + "é" * 5000}

    context, _ = await run(headers=headers, scope=scope, trusted_proxies=["192.0.2.1"])

    assert context.facts["user_agent"] == ("??é" * 86)[:256]
    assert context.facts["method"] == "X" * 32
    assert context.facts["path"] == "/" + "é" * 511
    assert len(context.facts["request_id"]) == len(uuid.uuid4().hex)
    assert len(json.dumps(dict(context.facts), ensure_ascii=False).encode()) < MAX_FACTS_BYTES / 4


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({}, None),
        ({"path_template": "/c/{id}"}, "/c/{id}"),
        ({"route": SimpleNamespace(endpoint=run, path="/c/{id:int}", path_format="/c/{id}")}, "/c/{id}"),
        ({"route": SimpleNamespace(endpoint=run, path="/c/{id}")}, "/c/{id}"),
        ({"route": SimpleNamespace(endpoint=run)}, None),
        ({"route": SimpleNamespace(path="/mounted")}, None),
        ({"route": SimpleNamespace(endpoint=run, path="/c"), "root_path": "/api"}, "/c"),
        (
            {"route": SimpleNamespace(endpoint=run, path="/c"), "root_path": "/api/v1", "app_root_path": "/api"},
            "/v1/c",
        ),
    ],
)
async def test_the_template_of_the_path(scope: dict[str, Any], path: str | None) -> None:
    """The template is what the framework declares; the path itself, which may hold anything, is never taken for it."""
    context, _ = await run(scope=scope)

    assert context.facts.get("path") == path


@pytest.mark.parametrize(("is_its_own", "path"), [(True, "/v1/c/{id}"), (False, "/c/{id}")])
async def test_the_prefix_of_a_router_that_fastapi_included(*, is_its_own: bool, path: str) -> None:
    """The prefix is told beside the route; what is told of another one, which led to it, isn't of this one."""
    route = SimpleNamespace(endpoint=run, path_format="/c/{id}")
    included = SimpleNamespace(original_route=route if is_its_own else object(), path_format="/v1/c/{id}")

    context, _ = await run(scope={"route": route, "fastapi": {"effective_route_context": included}})

    assert context.facts["path"] == path


async def test_what_is_found_later_is_told_later() -> None:
    """The router and the application add to the scope: who asks then gets it, within the same request."""
    contexts: list[AuditContext] = []

    async def within(scope: Scope) -> None:
        contexts.append(get_audit_context())
        scope["path_template"] = "/c/{id}"
        contexts.append(get_audit_context())
        scope["state"] = {"user_id": 42}
        with audit_context(reason="why"):
            contexts.append(get_audit_context())

    await run(within, user=lambda scope: scope.get("state", {}).get("user_id"))

    assert [(each.user_id, each.facts.get("path"), each.reason) for each in contexts] == [
        (None, None, None),
        (None, "/c/{id}", None),
        (42, "/c/{id}", "why"),
    ]


async def test_the_trace_of_opentelemetry() -> None:
    """The trace that runs is a fact."""
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True))

    async def within(scope: Scope) -> None:
        assert "trace_id" not in get_audit_context().facts
        with trace.use_span(span):
            assert get_audit_context().facts["trace_id"] == f"{0xABC:032x}"

    context, _ = await run(within)
    assert context.facts["trace_id"] == f"{0xABC:032x}"


# --- the id of the request -------------------------------------------------------------------------------------------


async def test_the_id_of_the_request_is_returned_in_place_of_the_applications() -> None:
    """The answer leads to the trail."""
    context, sent = await run(headers=[("x-request-id", "r-1")])

    assert context.facts["request_id"] == "r-1"
    assert sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"r-1")]},
        {"type": "http.response.body", "body": b""},
    ]


@pytest.mark.parametrize("told", [[], [""], ["a b"], ["é"], ["r" * 129], ["\x00"], ["a", "b"]])
async def test_an_id_that_is_none_is_replaced(told: list[str]) -> None:
    """Missing, empty, too long, unprintable or ambiguous: the request gets another id, a different one each time."""
    headers = [("x-request-id", each) for each in told]

    (one, sent), (other, _) = await run(headers=headers), await run(headers=headers)

    assert uuid.UUID(one.facts["request_id"]) != uuid.UUID(other.facts["request_id"])
    assert sent[0]["headers"] == [(b"x-request-id", one.facts["request_id"].encode())]


async def test_another_header_for_the_id() -> None:
    """The header has the name that is asked for, however it is written."""
    context, sent = await run(headers=[("x-correlation-id", "c-1")], request_id_header="X-Correlation-ID")

    assert context.facts["request_id"] == "c-1"
    assert sent[0]["headers"] == [(b"X-Request-ID", b"the app's"), (b"x-correlation-id", b"c-1")]


async def test_no_header_for_the_id() -> None:
    """Without a header, nothing is believed and nothing returned; the trail has an id all the same."""
    context, sent = await run(headers=[("x-request-id", "r-1")], request_id_header=None)

    assert len(context.facts["request_id"]) == len(uuid.uuid4().hex)
    assert sent[0]["headers"] == [(b"X-Request-ID", b"the app's")]


async def test_a_middleware_within_another_keeps_the_id() -> None:
    """An application mounted in another is part of the same request; what the inner one says goes before."""

    async def innermost(scope: Any, receive: Any, send: Any) -> None:
        contexts.append(get_audit_context())
        identify(3)
        contexts.append(get_audit_context())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    contexts: list[AuditContext] = []
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = AuditMiddleware(AuditMiddleware(innermost, user=lambda _: 2), user=lambda _: 1)
    await app({"type": "http", "method": "GET", "headers": [], "client": None}, _never, send)

    assert [context.user_id for context in contexts] == [2, 3]
    assert sent[0]["headers"] == [(b"x-request-id", contexts[0].facts["request_id"].encode())]


# --- the address of the client ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        {"route": SimpleNamespace(endpoint=run, path="/c"), "root_path": "/api/a\nb\x00", "app_root_path": "/api"},
        {"path_template": "/a\nb\x00/c"},
    ],
)
async def test_the_path_is_clean_with_what_it_is_mounted_at(scope: Mapping[str, Any]) -> None:
    """A mount may have matched whatever the client sent: what can't be printed or stored isn't kept of it either."""
    context, _ = await run(scope=scope)

    assert context.facts["path"] == "/a?b?/c"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (None, "10.0.0.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("198.51.100.66, 203.0.113.9, 10.0.0.2", "203.0.113.9"),  # the first is the client's own invention
        ("10.9.9.9, 10.0.0.2", "10.9.9.9"),  # from within
        ("unknown, 10.0.0.2", "10.0.0.2"),
        ("198.51.100.66, unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        ("[2001:db8::9]:443, fd00::2", "2001:db8::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("", "10.0.0.1"),
        (", ,", "10.0.0.1"),
    ],
)
async def test_the_address_that_trusted_proxies_tell(forwarded: str | None, client: str) -> None:
    """From whoever connected, from right to left, as far as who is trusted tells of the next."""
    headers = [] if forwarded is None else [("x-forwarded-for", forwarded)]

    context, _ = await run(
        headers=headers, scope={"client": ("10.0.0.1", 1)}, trusted_proxies=["10.0.0.0/8", "fd00::/8"]
    )

    assert context.facts["client_address"] == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ('for=203.0.113.9;proto=https;by="10.0.0.1"', "203.0.113.9"),
        ('for=198.51.100.66, FOR="[2001:db8::9]:4711"', "2001:db8::9"),
        ('for=1.1.1.1;x=", for="[2001:db8::9]"', "2001:db8::9"),  # a quote that the client didn't close
        ('for=203.0.113.9;host="evil, for=198.51.100.66"', "203.0.113.9"),  # the client's Host, which the proxy quotes
        ('for=203.0.113.9;host="evil, for=198.51.100.66;x=\\""', "203.0.113.9"),
        ('for=203.0.113.9;host="\\", for=198.51.100.66"', "203.0.113.9"),
        ('host="evil;for=198.51.100.66";for=203.0.113.9', "203.0.113.9"),
        ('for=203.0.113.9;host="a\\\\"', "203.0.113.9"),
        ('for=203.0.113.9;host=""', "203.0.113.9"),
        ('for=198.51.100.66;host="', "10.0.0.1"),  # no proxy writes so
        ('for=198.51.100.66, for=203.0.113.9;by="', "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
    ],
)
async def test_the_address_that_the_standard_header_tells(forwarded: str, client: str) -> None:
    """Forwarded is read if it is named, and then X-Forwarded-For isn't."""
    context, _ = await run(
        headers=[("forwarded", forwarded), ("x-forwarded-for", "198.51.100.66")],
        scope={"client": ("10.0.0.1", 1)},
        trusted_proxies=["10.0.0.1"],
        forwarded_header="forwarded",
    )

    assert context.facts["client_address"] == client


async def test_several_lines_of_a_header_are_one_list() -> None:
    """Proxies add lines as well as words."""
    headers = [
        ("x-forwarded-for", "198.51.100.66"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "10.0.0.2"),
    ]

    context, _ = await run(headers=headers, scope={"client": ("10.0.0.1", 1)}, trusted_proxies=["10.0.0.0/8"])

    assert context.facts["client_address"] == "203.0.113.9"


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8"], ["unix"]])
async def test_nobody_else_is_believed(trusted: list[str]) -> None:
    """Whoever isn't trusted says nothing about where it comes from."""
    headers = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9")]

    context, _ = await run(headers=headers, trusted_proxies=trusted)

    assert context.facts["client_address"] == "192.0.2.1"


async def test_a_proxy_on_a_unix_socket() -> None:
    """Who connects by a socket has no address; it is believed only if that is said."""
    headers, scope = [("x-forwarded-for", "203.0.113.9")], {"client": None}

    unbelieved, _ = await run(headers=headers, scope=scope)
    believed, _ = await run(headers=headers, scope=scope, trusted_proxies=["unix"])

    assert "client_address" not in unbelieved.facts
    assert believed.facts["client_address"] == "203.0.113.9"


# --- the user --------------------------------------------------------------------------------------------------------


async def test_an_async_function_is_awaited_once_before_the_application() -> None:
    """It may ask a database; who it names acts in the whole request."""
    asked: list[str] = []

    async def user(scope: Scope) -> int:
        await asyncio.sleep(0)
        asked.append(scope["path"])
        return 7

    async def within(scope: Scope) -> None:
        assert asked == ["/customers/1"]
        assert get_audit_context().user_id == 7

    context, _ = await run(within, user=user)

    assert context.user_id == 7
    assert asked == ["/customers/1"]


async def test_an_object_with_an_async_call_is_an_async_function() -> None:
    """What is called counts."""

    class Asking:
        async def __call__(self, scope: Scope) -> str:
            return "olena"

    context, _ = await run(user=Asking())

    assert context.user_id == "olena"


async def test_a_plain_function_that_gives_something_to_await_is_refused() -> None:
    """A change can't wait for it, and doesn't go on without."""

    async def ask() -> int:
        return 1

    with pytest.raises(ContextError, match="async def"):
        await run(user=lambda scope: ask())


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_the_function_raises_is_raised(*, is_async: bool) -> None:
    """Nobody acts in place of who couldn't be asked."""

    def user(scope: Scope) -> Any:
        raise LookupError("no such session")

    async def async_user(scope: Scope) -> Any:
        user(scope)

    with pytest.raises(LookupError, match="no such session"):
        await run(user=async_user if is_async else user)
    assert get_audit_context() == AuditContext()


async def test_who_can_be_no_user_is_refused() -> None:
    """An object of the application's own is no id."""
    with pytest.raises(ContextError, match="user_id is a SimpleNamespace"):
        await run(user=lambda scope: SimpleNamespace(id=1))


async def test_identify_goes_before_the_function() -> None:
    """Who the application says acts, does; None leaves it to the function again."""

    async def within(scope: Scope) -> None:
        identify(2, impersonated_by="admin")
        assert (get_audit_context().user_id, get_audit_context().impersonated_by) == (2, "admin")
        identify(None)

    context, _ = await run(within, user=lambda scope: 1)

    assert (context.user_id, context.impersonated_by) == (1, None)


async def test_identify_reaches_the_request_from_threads() -> None:
    """From a copy of the context, as thread pools have it, and from a thread of its own with the request."""

    async def by_copy(scope: Scope) -> None:
        await asyncio.to_thread(identify, 5)

    async def by_request(scope: Scope) -> None:
        thread = threading.Thread(target=identify, args=(6,), kwargs={"request": SimpleNamespace(scope=scope)})
        thread.start()
        await asyncio.to_thread(thread.join)

    async def by_scope(scope: Scope) -> None:
        identify(7, request=scope)

    assert [(await run(way))[0].user_id for way in (by_copy, by_request, by_scope)] == [5, 6, 7]


async def test_what_is_said_within_the_request_goes_before() -> None:
    """A block and a set context are more particular than the request, and keep its facts."""

    async def within(scope: Scope) -> None:
        identify(1)
        with audit_context(user_id=2, ticket="T-1"):
            identify(3)
            assert get_audit_context().user_id == 2
            assert get_audit_context().facts.keys() == {"ticket", "request_id", "client_address", "method"}
        assert get_audit_context().user_id == 3
        assert set_audit_context(user_id=4).facts["method"] == "POST"

    context, _ = await run(within)

    assert (context.user_id, context.facts["method"]) == (4, "POST")


async def test_a_cleared_context_is_empty() -> None:
    """What is forgotten isn't asked for again."""

    async def within(scope: Scope) -> None:
        clear_audit_context()

    context, _ = await run(within, user=lambda scope: 1)

    assert context == AuditContext()


def test_identify_without_a_request_is_an_error() -> None:
    """Identity that goes nowhere isn't taken."""
    with pytest.raises(ContextError, match="add the middleware"):
        identify(1)
    with pytest.raises(ContextError, match="add the middleware"):
        identify(1, request={"type": "http"})


async def test_a_bad_identity_is_refused_where_it_is_said() -> None:
    """Not when the change is written, where nobody would know from where it came."""

    async def within(scope: Scope) -> None:
        identify("")

    with pytest.raises(ContextError, match="empty string"):
        await run(within)


async def test_requests_at_the_same_time_are_told_apart() -> None:
    """Each task has its own request, whoever identifies when."""

    async def within(scope: Scope) -> None:
        await asyncio.sleep(0)
        await asyncio.to_thread(identify, scope["number"])
        await asyncio.sleep(0)

    contexts = await asyncio.gather(*(run(within, scope={"number": number}) for number in range(50)))

    assert [context.user_id for context, _ in contexts] == list(range(50))


@pytest.mark.parametrize(
    ("values", "user_id"), [(["olena"], "olena"), ([], None), ([""], None), (["olena", "petro"], None)]
)
async def test_a_user_from_a_header(values: list[str], user_id: str | None) -> None:
    """One header names one user; none, an empty one or two name nobody."""
    context, _ = await run(user=user_from_header("X-User-Id"), headers=[("x-user-id", each) for each in values])

    assert context.user_id == user_id


# --- what passes, and what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["lifespan", "something.new"])
async def test_other_scopes_pass_as_they_are(type_: str) -> None:
    """Neither the scope nor what is sent and received is touched."""
    passed: list[Any] = []

    async def app(*arguments: Any) -> None:
        passed.extend(arguments)
        assert get_audit_context() == AuditContext()

    scope = {"type": type_}
    await AuditMiddleware(app, user=lambda scope: 1)(scope, _never, app)

    assert passed == [{"type": type_}, _never, app]
    assert passed[0] is scope


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": 42}, "user is a int; expected a function"),
        ({"trusted_proxies": "10.0.0.0/8"}, "expected a list of networks"),
        ({"trusted_proxies": None}, "trusted_proxies is None; expected a list of networks"),
        ({"facts": None}, "facts is None; expected a collection of names"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "has host bits set"),
        ({"trusted_proxies": ["*"]}, "does not appear to be an IPv4 or IPv6 network"),
        ({"forwarded_header": "x-real-ip"}, "expected 'x-forwarded-for' or 'forwarded'"),
        ({"request_id_header": ""}, "'' can't be the name of a header"),
        ({"request_id_header": "request id"}, "can't be the name of a header"),
        ({"facts": ["method", "ip"]}, "facts names 'ip'; expected some of request_id, client_address"),
        ({"facts": "method"}, "expected a collection of names"),
    ],
)
def test_a_misconfiguration_is_an_error_at_once(options: dict[str, Any], message: str) -> None:
    """Not when the first request comes."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=message.replace("'*'", "")):
        AuditMiddleware(app, **options)


def test_what_is_no_application_is_refused() -> None:
    """It is named."""
    with pytest.raises(ConfigurationError, match="app is a NoneType"):
        AuditMiddleware(None)  # type: ignore[arg-type]


def test_a_user_from_what_is_no_header_is_refused() -> None:
    """A header has a name."""
    with pytest.raises(ConfigurationError, match="can't be the name of a header"):
        user_from_header("X User")
