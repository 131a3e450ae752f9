"""Who acts, and why: carried by a contextvar, or bound to one session."""

import json
import uuid
from collections.abc import Mapping
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
    "get_audit_context",
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
    block: "AuditContextManager | None" = None
    outer: "_Scope | None" = None


_NO_SCOPE: Final = _Scope(NOBODY)
_current: ContextVar[_Scope] = ContextVar("sqlaudit_context", default=_NO_SCOPE)


def get_audit_context() -> AuditContext:
    """Return the context of the running task or thread; an empty one if none was set."""
    return _current.get().context


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
    Prefer `audit_context`, which puts back what was there before.

    Args:
        user_id: who acts; None leaves it to the configured callback.
        reason: why, in words.
        impersonated_by: who acts as *user_id*.
        facts: anything else worth keeping, JSON values, 8 KiB in all.

    Raises:
        ContextError: a value is of another type, or the facts are no JSON or too large.
    """
    context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)
    _current.set(replace(_current.get(), context=context))
    return context


def clear_audit_context() -> None:
    """Forget who acts, and why, in the running task or thread."""
    _current.set(replace(_current.get(), context=NOBODY))


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
        inner = self._context.under(outer.context)
        _current.set(_Scope(inner, self, outer))
        return inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closed in another copy of the context than it was opened in, as the sync generator
        # dependencies of FastAPI are, a block isn't there, and there is nothing to put back.
        scope: _Scope | None = _current.get()
        while scope is not None and scope.block is not self:
            scope = scope.outer
        if scope is not None and scope.outer is not None:
            _current.set(scope.outer)


audit_context = AuditContextManager


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
        ContextError: a value is of another type, or the facts are no JSON or too large.
    """
    context = AuditContext(user_id=user_id, reason=reason, impersonated_by=impersonated_by, facts=facts)
    session.info[_SESSION_KEY] = context
    return context


def context_of(session: Session, began_with: AuditContext) -> AuditContext:
    """
    Return the context for what *session* writes at this moment.

    What is bound to the session goes first, then the contextvar. Where those
    name no user, *began_with*, the contextvar when the transaction began, is
    asked: a dependency that commits at teardown does so after the actor's
    block has closed.
    """
    current = get_audit_context()
    bound: AuditContext | None = session.info.get(_SESSION_KEY)
    if bound is not None:
        current = bound.under(current)
    if current.user_id is None and began_with is not NOBODY:
        current = current.under(began_with)
    return current
