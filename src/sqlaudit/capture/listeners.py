"""
All the listeners of sqlaudit, in the order in which a change meets them.

They are functions of this module, without state: registering one twice is
registering it once. What they know between two events is on ``Session.info``.
"""

import weakref
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, UOWTransaction
from sqlalchemy.sql.dml import UpdateBase

from sqlaudit.capture.statements import refuse_uncaptured
from sqlaudit.capture.unit_of_work import (
    Flush,
    begin_flush,
    certain_changes,
    changes_of,
    current_flush,
    end_flush,
    take_old_images,
)
from sqlaudit.config import SQLAuditConfig, get_config
from sqlaudit.recorder import record, refuse_anonymous, transaction_of
from sqlaudit.types import Operation

CONFIG_ATTRIBUTE: Final = "__sqlaudit_config__"
"""Present on a `Session` class or object that is hooked: its configuration; None for the default one."""

_SESSION_OPTION: Final = "sqlaudit_session"


def config_of(session: Session) -> SQLAuditConfig:
    """
    Return the configuration that *session* was hooked with: its own, its class's, else the default.

    Raises:
        ConfigurationError: there is none.
    """
    own: SQLAuditConfig | None = getattr(session, CONFIG_ATTRIBUTE, None)
    return own if own is not None else get_config()


# --- on a hooked session ---------------------------------------------------------------------------------------------


def after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    """Runs when a session first uses a connection in a transaction; and again in each savepoint."""
    transaction_of(session)
    _attend(session, connection)


def before_flush(session: Session, context: UOWTransaction, instances: Any) -> None:
    """Runs before the unit of work has decided what it will write; listeners after it may still change objects."""
    begin_flush(session, context)
    config = config_of(session)
    if config.require_user:
        # Nothing is sent for what is known to need a user; what only the flush finds is refused by record().
        for mapper, resource_type in certain_changes(session):
            refuse_anonymous(session, session.connection(bind_arguments={"mapper": mapper}), config, resource_type)


def after_flush(session: Session, context: UOWTransaction) -> None:
    """Runs when the SQL of a flush was sent; states still have their history."""
    flush = current_flush(session)
    end_flush(session)
    if flush is None or not flush.done:
        return
    for connection, changes in changes_of(flush).items():
        record(session, connection, [changes], config_of(session))


def after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    """Runs when a transaction or savepoint was rolled back, also by a flush that failed."""
    end_flush(session)


SESSION_LISTENERS: Final = (after_begin, before_flush, after_flush, after_soft_rollback)
"""Named after their events."""


# --- on a tracked mapper ---------------------------------------------------------------------------------------------


def watch(mapper: Mapper[Any]) -> None:
    """Listen to what is written for *mapper*'s objects; in sessions that aren't hooked nothing comes of it."""
    if event.contains(mapper, "before_update", _before_update):
        return
    event.listen(mapper, "before_insert", _before_insert, raw=True)
    event.listen(mapper, "before_update", _before_update, raw=True)
    event.listen(mapper, "before_delete", _before_delete, raw=True)
    for name in ("after_insert", "after_update", "after_delete"):
        event.listen(mapper, name, _after_write, raw=True)


def _before_insert(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _announce(Operation.INSERT, mapper, connection, state)


def _before_update(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _announce(Operation.UPDATE, mapper, connection, state)


def _before_delete(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _announce(Operation.DELETE, mapper, connection, state)


def _announce(operation: Operation, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Runs before the SQL of a batch of objects of one mapper, for each of them."""
    session = state.session
    flush = None if session is None else current_flush(session)
    if session is None or flush is None:
        return
    if _SESSION_OPTION not in connection.get_execution_options():
        # The session was hooked after its transaction began.
        _attend(session, connection)
    flush.announce(operation, mapper, connection, state)


def _after_write(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Runs after the SQL of a batch, for each of its objects, in the order of the SQL."""
    session = state.session
    flush = None if session is None else current_flush(session)
    if flush is not None:
        flush.confirm(state)


# --- on the engine of a hooked session -------------------------------------------------------------------------------


def _attend(session: Session, connection: Connection) -> None:
    """Let the statements of *connection* be seen as *session*'s."""
    reference = connection.get_execution_options().get(_SESSION_OPTION)
    if reference is None or reference() is not session:
        connection.execution_options(**{_SESSION_OPTION: weakref.ref(session)})
    if not event.contains(connection.engine, "before_execute", _before_execute):
        event.listen(connection.engine, "before_execute", _before_execute)


def _before_execute(
    connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any
) -> None:
    """
    Runs before every statement of an engine that a hooked session has used; most aren't DML.

    `bulk_save_objects()`, the rows of ``secondary`` tables and DML executed on
    the session's connection come past no event of the session: they do here.
    """
    if not isinstance(statement, UpdateBase):
        return
    reference = execution_options.get(_SESSION_OPTION)
    session: Session | None = None if reference is None else reference()
    if session is None or not is_hooked(session):
        return
    flush = current_flush(session)
    if flush is not None:
        if flush.coming:
            take_old_images(flush)
        if _is_of_a_mapper(statement, flush, execution_options):
            return
    refuse_uncaptured(statement, execution_options, in_flush=flush is not None)


def _is_of_a_mapper(statement: UpdateBase, flush: Flush, execution_options: Any) -> bool:
    # Mappers send their DML with a statement cache of their own; the rows of a secondary
    # table, and what the application's listeners execute within the flush, come without.
    return statement.table in flush.tables and "compiled_cache" in execution_options


def is_hooked(session: Session) -> bool:
    """Return whether the hooks are registered for *session*."""
    return hasattr(session, CONFIG_ATTRIBUTE)
