"""Who acts, and why: carried by a contextvar, or bound to one session."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.exceptions import ContextError
from sqlaudit.types import UserIdType

__all__ = [
    "AuditContext",
    "AuditContextManager",
    "audit_context",
    "bind_audit_context",
    "clear_audit_context",
    "export_audit_context",
    "get_audit_context",
    "import_audit_context",
    "set_audit_context",
]

MAX_FACTS_BYTES: Final = 8 * 1024
"""How large the extra facts of one context may be, as JSON in UTF-8."""

MAX_USER_ID_LENGTH: Final = 255

_SESSION_KEY: Final = "sqlaudit.context"


def _check_user_id(argument: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID)):
        raise ContextError(f"{argument} is a {type(value).__name__}; expected a str, int, UUID or None.")
    if value == "":
        raise ContextError(f"{argument} is an empty string; expected an id, or None for nobody.")
    if len(str(value)) > MAX_USER_ID_LENGTH:
        raise ContextError(
            f"{argument} is {len(str(value))} characters long; expected an id of at most {MAX_USER_ID_LENGTH}."
        )


def _frozen_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a read-only copy of *facts*, as they come back from the database."""
    if not isinstance(facts, Mapping):
        raise ContextError(f"facts is a {type(facts).__name__}; expected a mapping of names to JSON values.")
    if not facts:
        return MappingProxyType({})
    try:
        text = json.dumps(dict(facts), allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise ContextError(
            f"The extra facts {', '.join(sorted(map(str, facts)))} can't be stored as JSON: {error}; "
            f"give str, int, float, bool, None, lists and dicts of them."
        ) from error
    if size > MAX_FACTS_BYTES:
        raise ContextError(
            f"The extra facts {', '.join(sorted(map(str, facts)))} are {size} bytes of JSON; at most {MAX_FACTS_BYTES} "
            f"are stored with every change: keep large things elsewhere and give their id."
        )
    return MappingProxyType(json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditContext:
    """The actor, the reason and the extra facts of the changes made under it."""

    user_id: UserIdType | None = None
    reason: str | None = None
    impersonated_by: UserIdType | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        _check_user_id("user_id", self.user_id)
        _check_user_id("impersonated_by", self.impersonated_by)
        if self.reason is not None and not isinstance(self.reason, str):
            raise ContextError(f"reason is a {type(self.reason).__name__}; expected a str or None.")
        object.__setattr__(self, "facts", _frozen_facts(self.facts))

    def under(self, outer: "AuditContext") -> "AuditContext":
        """Return this context with what it doesn't say taken from *outer*."""
        if outer is NOBODY or outer is self:
            return self
        if self is NOBODY:
            return outer
        return AuditContext(
            user_id=outer.user_id if self.user_id is None else self.user_id,
            reason=outer.reason if self.reason is None else self.reason,
            impersonated_by=outer.impersonated_by if self.impersonated_by is None else self.impersonated_by,
            facts={**outer.facts, **self.facts},
        )


NOBODY: Final = AuditContext()


@dataclass(frozen=True, slots=True)
class _Scope:
    """A context, and the block that it holds for."""

    context: AuditContext
    block: object = None
    outer: "_Scope | None" = None
    ask: Callable[[], AuditContext] | None = None
    """Knows what isn't said, but only when it is asked: of a request, whose user and route it finds while it runs."""

    def now(self) -> AuditContext:
        """Return the context of this moment."""
        return self.context if self.ask is None else self.context.under(self.ask())


_NO_SCOPE: Final = _Scope(NOBODY)
_current: ContextVar[_Scope] = ContextVar("sqlaudit_context", default=_NO_SCOPE)


def get_audit_context() -> AuditContext:
    """Return the context of the running task or thread; an empty one if none was set."""
    return _current.get().now()


def later_context() -> Callable[[], AuditContext]:
    """Return a function that tells, whenever it is called, what the context of the running task or thread is then."""
    return _current.get().now


def set_audit_context(
    *,
    user_id: UserIdType | None = None,
    reason: str | None = None,
    impersonated_by: UserIdType | None = None,
    **facts: Any,
) -> AuditContext:
    """
    Replace the context of the running task or thread, and return the new one.

    It holds until it is set again, for this task and the tasks that it starts.
    Prefer `audit_context`, which puts back what was there before. What isn't
    set is taken from the request or job that runs, where one of
    `sqlaudit.integrations` knows it.

    Args:
        user_id: who acts; None leaves it to the configured callback.
        reason: why, in words.
        impersonated_by: who acts as *user_id*.
        facts: anything else worth keeping, JSON values, 8 KiB in all.

    Raises:
        ContextError: a value is of another type, or the facts are no JSON or too large.
    """
    context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)
    scope = replace(_current.get(), context=context)
    # Whoever is asked may raise: then nothing is set.
    known = scope.now()
    _current.set(scope)
    return known


def clear_audit_context() -> None:
    """Forget who acts, and why, in the running task or thread."""
    _current.set(replace(_current.get(), context=NOBODY, ask=None))


class AuditContextManager:
    """
    A block whose changes have an actor, a reason, facts.

    What the block doesn't set it inherits from the block around it; facts are
    merged. On exit, also by an exception, the outer context is back.

    The context that counts is the one in which the session *flushes*: leave
    room for ``await session.commit()`` or ``flush()`` within the block.

        with audit_context(user_id=42, reason="GDPR request 17", request_id="r-1"):
            customer.name = "Jane"
            await session.commit()

    Args:
        user_id: who acts; None inherits.
        reason: why, in words; None inherits.
        impersonated_by: who acts as *user_id*; None inherits.
        facts: anything else worth keeping, JSON values, 8 KiB in all.

    Raises:
        ContextError: a value is of another type, or the facts are no JSON or too large.
    """

    def __init__(
        self,
        *,
        user_id: UserIdType | None = None,
        reason: str | None = None,
        impersonated_by: UserIdType | None = None,
        **facts: Any,
    ) -> None:
        self._context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)

    def __enter__(self) -> AuditContext:
        outer = _current.get()
        scope = _Scope(self._context.under(outer.context), self, outer, outer.ask)
        # Whoever is asked may raise: then the block isn't entered, and nobody would leave it.
        known = scope.now()
        _current.set(scope)
        return known

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _leave(self)


def _leave(block: object) -> None:
    # Closed in another copy of the context than it was opened in, as the sync generator
    # dependencies of FastAPI are, a block isn't there, and there is nothing to put back.
    scope: _Scope | None = _current.get()
    while scope is not None and scope.block is not block:
        scope = scope.outer
    if scope is not None and scope.outer is not None:
        _current.set(scope.outer)


audit_context = AuditContextManager
"""The name to use: ``with audit_context(user_id=42): ...``, see `AuditContextManager`."""


@contextmanager
def asked_context(ask: Callable[[], AuditContext]) -> Iterator[None]:
    """
    Open a block whose context is asked for whenever it is needed, beneath what is said within the block.

    Threads and tasks that get a copy of the context ask the same.
    """
    outer, block = _current.get(), object()
    _current.set(_Scope(NOBODY, block, outer, lambda: ask().under(outer.now())))
    try:
        yield
    finally:
        _leave(block)


_EXPORTED: Final = ("user_id", "impersonated_by", "reason", "facts")


def export_audit_context() -> dict[str, Any]:
    """
    Return the context of the running task or thread as JSON values, to go with a job or a message.

    A UUID becomes its text, as it does in the trail.

    Returns:
        What `import_audit_context` takes, there; an empty dict if nothing is known.
    """
    context = get_audit_context()
    exported = {
        "user_id": str(context.user_id) if isinstance(context.user_id, uuid.UUID) else context.user_id,
        "impersonated_by": (
            str(context.impersonated_by) if isinstance(context.impersonated_by, uuid.UUID) else context.impersonated_by
        ),
        "reason": context.reason,
        "facts": dict(context.facts) or None,
    }
    return {name: value for name, value in exported.items() if value is not None}


def import_audit_context(exported: Mapping[str, Any], **facts: Any) -> AuditContextManager:
    """
    Return a block whose changes are put down to who asked for them elsewhere.

    What *exported* doesn't say is taken from the block around, as `audit_context` does it. It is
    believed as it stands: whoever can write to the queue that it comes from can say to be anybody.

        with import_audit_context(message["audit"], job_id=message["id"]):
            await work(message)

    Args:
        exported: what `export_audit_context` returned.
        facts: more of them; they go before those of *exported*.

    Raises:
        ContextError: it is something else, has other keys, or the facts are too large together.
    """
    told = (exported.get("facts") or {}) if isinstance(exported, Mapping) else None
    if not isinstance(told, Mapping):
        raise ContextError(
            f"What came with the job is a {type(exported).__name__} or has facts that are no mapping; expected the "
            f"dict that export_audit_context() returned."
        )
    if unknown := exported.keys() - _EXPORTED:
        raise ContextError(
            f"What came with the job has {', '.join(sorted(map(repr, unknown)))}; expected the dict that "
            f"export_audit_context() returned, with {', '.join(_EXPORTED)}."
        )
    actor = {name: exported.get(name) for name in _EXPORTED if name != "facts"}
    return AuditContextManager(**{**told, **facts, **actor})


def bind_audit_context(
    session: Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any],
    *,
    user_id: UserIdType | None = None,
    reason: str | None = None,
    impersonated_by: UserIdType | None = None,
    **facts: Any,
) -> AuditContext:
    """
    Bind a context to one session, for all that it flushes from now on.

    It goes before the context of the task that flushes: what it doesn't say
    is taken from there. Without arguments, the binding ends. For code whose
    session and actor are known together but whose contextvars get lost: thread
    pools, the sync dependencies of FastAPI.

    Args:
        session: the session whose changes it is for.
        user_id: who acts.
        reason: why, in words.
        impersonated_by: who acts as *user_id*.
        facts: anything else worth keeping, JSON values, 8 KiB in all.

    Raises:
        ContextError: a value is of another type, or the facts are no JSON or too large; or *session* is no session.
    """
    context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)
    if not isinstance(session, (Session, AsyncSession, scoped_session, async_scoped_session)):
        raise ContextError(
            f"session is a {type(session).__name__}; expected an AsyncSession or a Session, not what makes them."
        )
    session.info[_SESSION_KEY] = context
    return context


def context_of(session: Session, began_with: Callable[[], AuditContext] | None = None) -> AuditContext:
    """
    Return the context for what *session* writes at this moment.

    What is bound to the session goes first, then the contextvar. Where those
    name no user, *began_with*, the `later_context` of when the transaction
    began, is asked: a dependency that commits at teardown does so after the
    actor's block has closed.
    """
    current = get_audit_context()
    bound: AuditContext | None = session.info.get(_SESSION_KEY)
    if bound is not None:
        current = bound.under(current)
    if current.user_id is None and began_with is not None:
        current = current.under(began_with())
    return current
