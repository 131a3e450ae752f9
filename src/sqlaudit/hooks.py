"""Where auditing begins: the hooks of sessions."""

from types import TracebackType
from typing import Any, Self

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlaudit.capture.listeners import CONFIG_ATTRIBUTE, SESSION_LISTENERS
from sqlaudit.config import SQLAuditConfig, has_config
from sqlaudit.exceptions import ConfigurationError

__all__ = ["Subscription", "register_hooks"]


class Subscription:
    """
    What `register_hooks` returns: the hooks of one target.

    As a context manager, it removes them at the end of the block.
    """

    def __init__(self, target: type[Session] | Session) -> None:
        self._target = target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop recording what goes through the target. Doing it twice is doing it once."""
        if CONFIG_ATTRIBUTE not in vars(self._target):
            return
        delattr(self._target, CONFIG_ATTRIBUTE)
        for listener in SESSION_LISTENERS:
            event.remove(self._target, listener.__name__, listener)


def register_hooks(target: Any = Session, *, config: SQLAuditConfig | None = None) -> Subscription:
    """
    Record what goes through *target* from now on. Registering twice is registering once.

    Args:
        target: whose changes: a sessionmaker or async_sessionmaker (what it
            makes from now on), a `Session` class (its sessions, existing ones too,
            and its subclasses'), or one session of either colour. Every session of
            the process, if not given.
        config: how these changes are attributed; the default configuration at
            the time of the change, if not given.

    Returns:
        The subscription, to remove the hooks with.

    Raises:
        ConfigurationError: there is no configuration, or *target* is something else.
    """
    if config is None and not has_config():
        raise ConfigurationError(
            "Hooks need a configuration; call set_config(SQLAuditConfig(...)) before register_hooks(), or give config=."
        )
    if config is not None and not isinstance(config, SQLAuditConfig):
        raise ConfigurationError(f"config is a {type(config).__name__}; expected a SQLAuditConfig.")
    hooked = _session_class_or_session(target)
    # event.contains() goes by the id of a class, and the next class may get the id of one that is gone.
    if CONFIG_ATTRIBUTE not in vars(hooked):
        for listener in SESSION_LISTENERS:
            event.listen(hooked, listener.__name__, listener)
    setattr(hooked, CONFIG_ATTRIBUTE, config)
    return Subscription(hooked)


def _session_class_or_session(target: Any) -> type[Session] | Session:
    """Return what SQLAlchemy lets one listen to."""
    if isinstance(target, Session) or (isinstance(target, type) and issubclass(target, Session)):
        return target
    if isinstance(target, AsyncSession):
        return target.sync_session
    if isinstance(target, sessionmaker):
        return target.class_
    if isinstance(target, async_sessionmaker):
        return _own_session_class(target)
    if isinstance(target, (scoped_session, async_scoped_session)):
        return _session_class_or_session(target.session_factory)
    raise ConfigurationError(
        f"register_hooks() can't listen to {target!r}; give a sessionmaker or async_sessionmaker, a Session class or "
        f"one session, or nothing for every session."
    )


def _own_session_class(maker: async_sessionmaker[Any]) -> type[Session]:
    """
    Return the class of the synchronous sessions under those that *maker* makes, and nobody else.

    Events go to a class, and makers share `Session`: this one gets a subclass.
    """
    given: type[Session] | sessionmaker[Any] = maker.kw.get("sync_session_class") or maker.class_.sync_session_class
    current: type[Session] = given.class_ if isinstance(given, sessionmaker) else given
    if current.__module__ == __name__:
        return current
    own = type("AuditedSession", (current,), {"__module__": __name__, "__doc__": "The sessions of one maker."})
    maker.configure(sync_session_class=sessionmaker(class_=own, **given.kw) if isinstance(given, sessionmaker) else own)
    return own
