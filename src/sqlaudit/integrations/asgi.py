"""
Who made the changes of a request: a plain ASGI middleware, for every framework and server.

::

    app = FastAPI()
    app.add_middleware(AuditMiddleware, user=lambda scope: scope.get("state", {}).get("user_id"))

Each HTTP request and each WebSocket gets an audit context of its own, for its background tasks and what it
streams, too. Its facts, beside the changes in the trail:

================== ==========================================================================================
``request_id``     the one of the incoming header, or a new one; the answer has it in the same header
``client_address`` the IP address of the client, as trusted proxies tell it
``method``         ``GET``, ``POST``, …; ``WEBSOCKET``
``path``           the template of the path, as ``/customers/{customer_id}``, where the framework tells it
``user_agent``     its first 256 characters
``trace_id``       OpenTelemetry's, where it is installed and traces
================== ==========================================================================================

The user, the path and the trace are asked for whenever the context is: when a change is written, `audit_context`
entered, a job asked for. They may be found while the request runs.
"""

import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

from sqlaudit.context import AuditContext, asked_context
from sqlaudit.exceptions import ConfigurationError, ContextError
from sqlaudit.integrations._scopes import Network, Scope, client_of, header_of, printable, template_of
from sqlaudit.types import UserIdType

__all__ = ["AuditMiddleware", "identify", "user_from_header"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

UserOfScope: TypeAlias = Callable[[Scope], UserIdType | Awaitable[UserIdType | None] | None]

FACTS: Final = ("request_id", "client_address", "method", "path", "user_agent", "trace_id")

# Of what a client sends, so much is kept: together far less than the facts of a context may be.
MAX_METHOD: Final = 32
MAX_USER_AGENT: Final = 256

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNIX: Final = "unix"
_SCOPE_KEY: Final = "sqlaudit.request"


class HasScope(Protocol):
    """A request or WebSocket of Starlette, FastAPI or Litestar."""

    @property
    def scope(self) -> Any:
        """The ASGI scope."""


class AuditMiddleware:
    """
    Open an audit context for each HTTP request and WebSocket; everything else passes as it is.

    Args:
        app: the ASGI application.
        user: takes the scope, and returns the id of who acts, or None for nobody. A plain function is asked whenever
            the context is needed, until it names somebody: when a change is written, `audit_context` entered, a job
            asked for; so it may read what the application puts into the scope. An ``async`` one is awaited once,
            before the application is called. What it raises, whatever needed the context, or the request, raises.
            `identify` goes before it.
        request_id_header: where the id of the request is taken from, if it is 1 to 128 visible ASCII characters, and
            returned; None neither takes nor returns one. Clients choose it: it finds requests, and proves nothing.
        trusted_proxies: the networks, as ``"10.0.0.0/8"``, of the proxies that tell the truth about where a request
            came from; ``"unix"`` for one that connects by a Unix socket. Without them, the client is whoever connects.
        forwarded_header: in which the proxies tell it. One only: what the client wrote into the other, they pass on.
        facts: which facts are kept, of those that the module names.

    Raises:
        ConfigurationError: an argument can't work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        user: UserOfScope | None = None,
        request_id_header: str | None = "x-request-id",
        trusted_proxies: Iterable[str] = (),
        forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for",
        facts: Collection[str] = FACTS,
    ) -> None:
        if not callable(app):
            raise ConfigurationError(f"app is a {type(app).__name__}; expected an ASGI application.")
        if user is not None and not callable(user):
            raise ConfigurationError(f"user is a {type(user).__name__}; expected a function that takes the ASGI scope.")
        if forwarded_header not in {"x-forwarded-for", "forwarded"}:
            raise ConfigurationError(
                f"forwarded_header is {forwarded_header!r}; expected 'x-forwarded-for' or 'forwarded'."
            )
        self.app = app
        self._user = user
        self._is_user_async = user is not None and _is_async(user)
        self._request_id_header = None if request_id_header is None else _header_name(request_id_header)
        self._trusts_unix, self._trusted = _networks(trusted_proxies)
        self._forwarded_header = forwarded_header.encode()
        self._facts = _known_facts(facts)
        self._trace = _opentelemetry() if "trace_id" in self._facts else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application in the audit context of this request."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        request = _Request(scope, self._request_id(scope), self)
        if self._user is not None and self._is_user_async:
            request.is_user(await cast("Awaitable[UserIdType | None]", self._user(scope)))
        scope[_SCOPE_KEY] = request
        before = _running.get()
        _running.set(request)
        try:
            with asked_context(request.context):
                await self.app(scope, receive, self._returning(request.id, send))
        finally:
            _running.set(before)

    def _request_id(self, scope: Scope) -> str:
        if (around := scope.get(_SCOPE_KEY)) is not None:
            # The middleware of an application within another: it is the same request.
            return str(around.id)
        told = header_of(scope, self._request_id_header) if self._request_id_header else []
        return told[0] if len(told) == 1 and _REQUEST_ID.fullmatch(told[0]) else uuid.uuid4().hex

    def _returning(self, request_id: str, send: Send) -> Send:
        name = self._request_id_header
        if name is None:
            return send

        async def send_with_id(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
                others = [pair for pair in message.get("headers") or () if bytes(pair[0]).lower() != name]
                message = {**message, "headers": [*others, (name, request_id.encode())]}
            await send(message)

        return send_with_id

    def first_facts(self, scope: Scope, request_id: str) -> dict[str, str]:
        """Return the facts that are known before the application is called."""
        agents = header_of(scope, b"user-agent")
        known = {
            "request_id": request_id,
            "client_address": client_of(scope, self._forwarded_header, self._trusted, trusts_unix=self._trusts_unix),
            "method": printable(scope.get("method", "WEBSOCKET"), MAX_METHOD),
            "user_agent": printable(agents[0], MAX_USER_AGENT) if agents else None,
        }
        return {name: value for name, value in known.items() if value and name in self._facts}

    def later_facts(self, scope: Scope, known: Mapping[str, str]) -> dict[str, str]:
        """Return those of the other facts that are known by now."""
        later: dict[str, str | None] = {}
        if "path" in self._facts and "path" not in known:
            later["path"] = template_of(scope)
        if self._trace is not None and "trace_id" not in known:
            span = self._trace.get_current_span().get_span_context()
            later["trace_id"] = f"{span.trace_id:032x}" if span.is_valid else None
        return {name: value for name, value in later.items() if value}

    def ask_user(self, scope: Scope) -> UserIdType | None:
        """Return what a plain function says of who acts; None if there is none, or it was asked already."""
        if self._user is None or self._is_user_async:
            return None
        user_id = self._user(scope)
        if isawaitable(user_id):
            if iscoroutine(user_id):
                user_id.close()
            raise ContextError(
                "The user function of AuditMiddleware returned something to be awaited, which can't be done while a "
                "change is written; define it with `async def`, so that it is awaited when the request begins."
            )
        return user_id


class _Request:
    """What is known of a request: more and more, while it runs, from whatever thread."""

    def __init__(self, scope: Scope, request_id: str, middleware: AuditMiddleware) -> None:
        self.id = request_id
        self._scope = scope
        self._middleware = middleware
        self._facts = middleware.first_facts(scope, request_id)
        # Each is replaced whole, so that threads that write them at once lose nothing of the others.
        self._asked = AuditContext()
        self._identified = AuditContext()
        self._known: tuple[AuditContext, AuditContext, dict[str, str], AuditContext] | None = None

    def is_user(self, user_id: UserIdType | None) -> None:
        self._asked = AuditContext(user_id=user_id)

    def identify(self, identity: AuditContext) -> None:
        self._identified = identity

    def context(self) -> AuditContext:
        """Return what is known by now."""
        if later := self._middleware.later_facts(self._scope, self._facts):
            self._facts = {**self._facts, **later}
        if self._identified.user_id is None and self._asked.user_id is None:
            user_id = self._middleware.ask_user(self._scope)
            if user_id is not None:
                self.is_user(user_id)
        asked, identified, facts = self._asked, self._identified, self._facts
        known = self._known
        if known is None or known[0] is not asked or known[1] is not identified or known[2] is not facts:
            context = identified.under(asked).under(AuditContext(facts=facts))
            self._known = known = asked, identified, facts, context
        return known[3]


_running: ContextVar[_Request | None] = ContextVar("sqlaudit_request", default=None)


def identify(
    user_id: UserIdType | None,
    *,
    impersonated_by: UserIdType | None = None,
    request: HasScope | Mapping[str, Any] | None = None,
) -> None:
    """
    Say who acts in the request that runs, for all that it writes from now on.

    Unlike `set_audit_context` it works from a thread, too, which has a copy of the context: from the plain
    (not ``async``) dependencies of FastAPI. Blocks of `audit_context` within the request go before it.

    Args:
        user_id: who acts; None leaves it to the middleware's *user*.
        impersonated_by: who acts as *user_id*.
        request: a request, WebSocket or ASGI scope, where there isn't even a copy of the context: in threads of
            one's own.

    Raises:
        ContextError: there is no request, or AuditMiddleware isn't around it; or no id can be so.
    """
    if request is None:
        running = _running.get()
    else:
        scope = request if isinstance(request, Mapping) else request.scope
        running = scope.get(_SCOPE_KEY)
    if running is None:
        raise ContextError(
            "identify() found no request that AuditMiddleware is around; add the middleware to the application, after "
            "a middleware that calls identify() (the last one is the outermost), or, in a thread of one's own, give "
            "identify(..., request=request)."
        )
    running.identify(AuditContext(user_id=user_id, impersonated_by=impersonated_by))


def user_from_header(name: str) -> Callable[[Scope], str | None]:
    """
    Return a *user* for `AuditMiddleware` that believes a header, such as ``X-User-Id``.

    Only for applications that nobody reaches but through a gateway that sets the header, or removes it: whoever else
    sends it is anybody. Empty, or there more than once, it names nobody.

    Raises:
        ConfigurationError: no header can be named so.
    """
    header = _header_name(name)

    def user(scope: Scope) -> str | None:
        told = header_of(scope, header)
        return told[0] or None if len(told) == 1 else None

    return user


# --- the arguments ---------------------------------------------------------------------------------------------------


def _is_async(function: Callable[..., Any]) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _header_name(name: object) -> bytes:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} can't be the name of a header; expected one such as 'x-request-id'.")
    return name.lower().encode()


def _networks(trusted_proxies: Iterable[str]) -> tuple[bool, list[Network]]:
    if not _is_list(trusted_proxies):
        raise ConfigurationError(f"trusted_proxies is {trusted_proxies!r}; expected a list of networks.")
    named = list(trusted_proxies)
    try:
        return _UNIX in named, [ipaddress.ip_network(each) for each in named if each != _UNIX]
    except ValueError as error:
        raise ConfigurationError(
            f"trusted_proxies: {error}; expected networks such as '10.0.0.0/8', addresses, or 'unix'."
        ) from error


def _is_list(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes))


def _known_facts(facts: Collection[str]) -> frozenset[str]:
    if not _is_list(facts):
        raise ConfigurationError(f"facts is {facts!r}; expected a collection of names.")
    if unknown := sorted(set(facts).difference(FACTS)):
        raise ConfigurationError(f"facts names {', '.join(map(repr, unknown))}; expected some of {', '.join(FACTS)}.")
    return frozenset(facts)


def _opentelemetry() -> Any:
    try:
        from opentelemetry import trace  # noqa: PLC0415 whoever doesn't trace needn't have it
    except ImportError:
        return None
    return trace
