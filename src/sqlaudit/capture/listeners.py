"""
All the listeners of sqlaudit, in the order in which a change meets them.

They are functions of this module, without state: registering one twice is
registering it once. What they know between two events is on ``Session.info``.
"""

import logging
import warnings
import weakref
from collections.abc import Iterable, Mapping, Set as AbstractSet
from typing import Any, Final

from sqlalchemy import CompoundSelect, Connection, Engine, Select, StatementLambdaElement, Table, Values, event, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    FromStatement,
    InstanceState,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from sqlaudit.capture.committing import deliver_left, deliver_written, forget_left, mark_committed, note
from sqlaudit.capture.connections import OWN, OWN_STATEMENT, is_missing_table, refuse_autocommit
from sqlaudit.capture.division import labels_by_session, leading_to_triggers, tracking_in_session
from sqlaudit.capture.publishing import (
    PUBLISHED,
    doubt,
    end_publication,
    end_savepoint,
    forget,
    is_told,
    leave_to_session,
    publish,
    withdraw,
    withdraw_from_driver,
    withdraw_stale,
)
from sqlaudit.capture.refusals import is_plain_read, refusal_of, tables_in_expressions, tables_in_text
from sqlaudit.capture.statements import Pending, is_bulk, places_in, read_before, tell, written_table
from sqlaudit.capture.triggers.installing import refuse_missing_triggers
from sqlaudit.capture.unit_of_work import (
    Flush,
    begin_flush,
    certain_changes,
    changes_of,
    current_flush,
    end_flush,
    foresee,
    take_old_images,
)
from sqlaudit.config import SQLAuditConfig, get_config
from sqlaudit.context import AuditContext
from sqlaudit.exceptions import (
    ActorCallbackError,
    ActorRequiredError,
    CaptureError,
    UncapturedStatementError,
    UncapturedStatementWarning,
)
from sqlaudit.recorder import acting_context, record, require_actor, transaction_of
from sqlaudit.tracking import label_of, mappers_of, resolve_all, tracking_of
from sqlaudit.types import Operation

__all__ = ["CONFIG_ATTRIBUTE", "SESSION_LISTENERS", "after_flush", "attend_engine", "tells_itself", "watch"]


CONFIG_ATTRIBUTE: Final = "__sqlaudit_config__"
"""Present on a `Session` class or object that is hooked: its configuration; None for the default one."""

OPT_OUT_OPTION: Final = "sqlaudit"
"""The execution option that, when False, leaves a statement out of the trail."""

_logger: Final = logging.getLogger("sqlaudit.capture")

_attended: weakref.WeakSet[Engine] = weakref.WeakSet()
"""The engines that have these listeners: asked for in every transaction."""

_SESSION_OPTION: Final = "_sqlaudit_session"
_STATEMENT_OPTION: Final = "_sqlaudit_statement"
_PENDING_KEY: Final = "sqlaudit.pending"
_BROKEN_KEY: Final = "sqlaudit.broken"
_CORRECTING_KEY: Final = "sqlaudit.correcting"
_TO_SEE_KEY: Final = "sqlaudit.to_see"


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
    resolve_all()
    transaction_of(session)
    _attend(session, connection)


def before_flush(session: Session, context: UOWTransaction, instances: Any) -> None:
    """Runs before the unit of work has decided what it will write; listeners after it may still change objects."""
    config = config_of(session)
    flush = begin_flush(session, context, locks_rows=config.lock_rows)
    if config.require_user:
        # Nothing is sent for what is known to need a user; what only the flush finds is refused by record().
        certain = dict(certain_changes(session))
        if certain:
            connection = session.connection(bind_arguments={"mapper": next(iter(certain))})
            flush.acting = require_actor(session, connection, config, {*certain.values()})


def after_flush(session: Session, context: UOWTransaction) -> None:
    """Runs when the SQL of a flush was sent; states still have their history."""
    flush = current_flush(session)
    end_flush(session)
    if flush is None:
        return
    for connection in flush.silenced:
        leave_to_session(connection, ())
    for connection in [*session.info.get(_TO_SEE_KEY, ())]:
        _refuse_nameless_rows(session, connection, {})
    if not flush.done:
        return
    for connection, changes in changes_of(flush).items():
        record(session, connection, [changes], config_of(session), flush.acting)


def before_commit(session: Session) -> None:
    """Runs before a transaction is committed, or a savepoint released."""
    _refuse_broken(session)


def _refuse_broken(session: Session) -> None:
    if session.info.get(_BROKEN_KEY) is not None:
        raise CaptureError(
            "A statement of this transaction was sent, but could not be recorded; roll back what it did."
        )


def after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    """Runs when a transaction or savepoint was rolled back, also by a flush that failed."""
    flush = current_flush(session)
    within = None if flush is None else flush.context.transaction
    outer: SessionTransaction | None = previous
    while outer is not None and outer is not within:
        outer = outer.parent
    if outer is None or outer is previous:
        # Not a savepoint that a listener of the application began within the flush.
        end_flush(session)
        session.info.pop(_PENDING_KEY, None)
    broken = session.info.get(_BROKEN_KEY)
    if broken is not None and (not previous.nested or broken() in (previous, None)):
        del session.info[_BROKEN_KEY]


def after_commit(session: Session) -> None:
    """Runs when a transaction was committed, or a savepoint released."""
    if not session.in_nested_transaction():
        mark_committed(session)


def after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Runs when a transaction, a savepoint or a flush is over, and has given its connections back."""
    if transaction.parent is None:
        deliver_written(session)


def do_orm_execute(state: ORMExecuteState) -> None:
    """Runs before a session executes a statement: says whose it is, on a connection that sessions may share."""
    if state.is_insert or state.is_update or state.is_delete:
        state.update_execution_options(**{_SESSION_OPTION: weakref.ref(state.session), _STATEMENT_OPTION: True})


SESSION_LISTENERS: Final = (
    do_orm_execute,
    after_begin,
    before_flush,
    after_flush,
    before_commit,
    after_commit,
    after_soft_rollback,
    after_transaction_end,
)
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
        # Before those of the application, which may send statements of their own.
        event.listen(mapper, name, _after_write, raw=True, insert=True)


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
    if connection not in flush.connections:
        flush.connections[connection] = connection.get_nested_transaction()
        refuse_autocommit(connection)
        # The session was hooked after its transaction began, or shares its connection with another one.
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
    attend_engine(connection)
    reference = connection.get_execution_options().get(_SESSION_OPTION)
    if reference is None or reference() is not session:
        connection.execution_options(**{_SESSION_OPTION: weakref.ref(session)})


def attend_engine(connection: Connection) -> None:
    """Listen to the engine of *connection*."""
    engine: Any = connection.engine
    # What engine.execution_options() returns hears what its engine hears.
    while (root := getattr(engine, "_proxied", None)) is not None:
        engine = root
    if engine not in _attended:
        event.listen(engine, "before_execute", _before_execute, retval=True)
        event.listen(engine, "after_execute", _after_execute)
        event.listen(engine, "before_cursor_execute", _before_cursor_execute)
        event.listen(engine, "commit", _on_commit)
        event.listen(engine, "rollback", _on_rollback)
        event.listen(engine, "rollback_savepoint", _on_rollback_savepoint)
        event.listen(engine, "release_savepoint", _on_release_savepoint)
        event.listen(engine, "reset", _on_reset)
        # Last: who finds it there needs all of them.
        _attended.add(engine)


def _hooked_session(execution_options: Any) -> Session | None:
    reference = execution_options.get(_SESSION_OPTION)
    session: Session | None = None if reference is None else reference()
    # A connection that was lent to the session outlives its transactions: between them it isn't the session's.
    return session if session is not None and is_hooked(session) and session.in_transaction() else None


def _before_execute(
    connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any
) -> tuple[Any, Any, Any]:
    """
    Runs before every statement of an engine that a hooked session has used; most aren't DML.

    `bulk_save_objects()`, the rows of ``secondary`` tables and DML executed on
    the session's connection come past no event of the session: they do here.
    """
    if OWN_STATEMENT in execution_options:
        return statement, multiparams, params
    sent = statement
    dml = _dml_in(statement)
    if isinstance(dml, UpdateBase) and (session := _hooked_session(execution_options)) is not None:
        _publish_for(session, connection, _tables_in(dml), dml)
        pending = _capture(session, connection, dml, multiparams or [params], execution_options)
        if pending is not None:
            sent = statement if pending.statement is dml else pending.statement
            session.info.setdefault(_PENDING_KEY, []).append((connection, written_table(dml), pending))
    return sent, multiparams, params


def _tables_in(statement: UpdateBase) -> Iterable[Table]:
    """Return the tables that *statement* may write."""
    table = written_table(statement)
    if table is not None and not isinstance(statement, Update):
        return (table,)
    # An UPDATE of MySQL's may set columns of any table that it names, and a DELETE of a join be one of each.
    return {each for each in visitors.iterate(statement) if isinstance(each, Table)} if leading_to_triggers() else ()


def _by_session(statement: UpdateBase) -> tuple[str, ...]:
    """Return the labels whose rows the session records itself, if *statement* writes them."""
    return labels_by_session(written_table(statement), cascades=not isinstance(statement, Insert))


def _publish_for(
    session: Session, connection: Connection, tables: Iterable[Table], statement: UpdateBase | None
) -> None:
    """Tell the database's triggers who writes, before *statement*, or text, that may fire them."""
    leading = leading_to_triggers()
    fired = leading & {*tables} if leading else leading
    if not fired:
        _correct(session, connection)
        return
    config = config_of(session)
    context = _acting(session, connection, config)
    if context.user_id is None and config.require_user:
        _refuse_nobody(session, connection, fired, statement)
    transaction = transaction_of(session)
    flush = current_flush(session)
    by_session = () if statement is None else _by_session(statement)
    if by_session and flush is not None:
        flush.silenced.add(connection)
    try:
        publish(connection, transaction.id, context, transaction.is_running, by_session)
    except DBAPIError as error:
        # SQLite's comes with the triggers. While a table moves, they need not be there yet.
        if not is_missing_table(error, PUBLISHED):
            raise
    # Afterwards: what was read first, SQLite could no longer let write.
    refuse_missing_triggers(connection, config.trail, {table.metadata for table in fired})
    note(session, connection, transaction.id, config, {})


def _refuse_nobody(
    session: Session, connection: Connection, fired: AbstractSet[Table], statement: UpdateBase | None
) -> None:
    """
    Refuse a statement whose rows can't name their actor themselves; if they can, see afterwards whether they do.

    Raises:
        ActorRequiredError: they can't.
    """
    nameless = fired if statement is None else {table for table in fired if _is_nameless(table)}
    if nameless:
        raise ActorRequiredError({label_of(table) for table in nameless})
    session.info.setdefault(_TO_SEE_KEY, weakref.WeakSet()).add(connection)


def _is_nameless(table: Table) -> bool:
    tracking = tracking_of(table)
    return tracking is not None and tracking.user_key is None and tracking_in_session(table) is None


def _refuse_nameless_rows(session: Session, connection: Connection, options: Mapping[str, Any]) -> None:
    """
    Make sure that the rows which triggers have recorded do name their actor, if nobody else has.

    Raises:
        ActorRequiredError: some don't.
    """
    to_see: weakref.WeakSet[Connection] = session.info.get(_TO_SEE_KEY, ())
    if connection not in to_see:
        return
    to_see.discard(connection)
    columns = config_of(session).trail.columns
    query = select(columns.resource_type).distinct()
    query = query.where(columns.transaction_id == transaction_of(session).id, columns.changed_by.is_(None))
    nameless = {*connection.scalars(query, execution_options={**options, **OWN})}
    if nameless:
        raise ActorRequiredError(nameless)


def _acting(session: Session, connection: Connection, config: SQLAuditConfig) -> AuditContext:
    """Return who acts at this moment; one for all of a flush."""
    flush = current_flush(session)
    context = None if flush is None else flush.acting
    if context is None:
        context = acting_context(session, connection, config)
        if flush is not None:
            flush.acting = context
    return context


def _correct(session: Session, connection: Connection) -> None:
    """
    Let the database believe in no actor of before, if it was told one, before a statement that may write anything.

    It may call a function, or fire triggers of the application, which write what ours record.
    """
    if not is_told(connection) or session.info.get(_CORRECTING_KEY):
        return
    # The callback may use the session.
    session.info[_CORRECTING_KEY] = True
    try:
        context = _acting(session, connection, config_of(session))
    except ActorCallbackError:
        # The statement doesn't need to know.
        withdraw(connection)
        return
    finally:
        del session.info[_CORRECTING_KEY]
    transaction = transaction_of(session)
    publish(connection, transaction.id, context, transaction.is_running)


def _dml_in(statement: Any) -> Any:
    """Return the statement that is wrapped by select().from_statement(), or in a lambda."""
    if isinstance(statement, FromStatement):
        statement = statement.element
    return statement._resolved if isinstance(statement, StatementLambdaElement) else statement  # noqa: SLF001 (said nowhere else)


def _capture(
    session: Session, connection: Connection, statement: UpdateBase, parameters: Any, execution_options: Any
) -> Pending | None:
    """Read what *statement* will change; in a flush, take the old images of the objects that it is for."""
    flush = current_flush(session)
    of_a_mapper = False
    if flush is not None:
        of_a_mapper = _is_of_a_mapper(statement, flush, execution_options)
        if of_a_mapper and flush.coming:
            take_old_images(flush)
        if of_a_mapper and isinstance(statement, Update) and (table := written_table(statement)) is not None:
            foresee(flush, connection, table)
    if execution_options.get(OPT_OUT_OPTION, True) is False:
        return None
    # What is left of a statement that failed.
    waiting = session.info.get(_PENDING_KEY)
    if waiting and waiting[-1][0] is connection and waiting[-1][1] is written_table(statement):
        waiting.pop()
    config = config_of(session)
    try:
        pending = read_before(connection, statement, parameters, execution_options, of_a_mapper=of_a_mapper)
    except UncapturedStatementError as refusal:
        _refuse(refusal, config)
        return None
    if pending is not None and pending.is_certain and config.require_user:
        require_actor(session, connection, config, {label_of(written_table(statement))})
    return pending


def _is_of_a_mapper(statement: UpdateBase, flush: Flush, execution_options: Any) -> bool:
    # Mappers send their DML with a statement cache of their own; the rows of a secondary
    # table, and what the application's listeners execute within the flush, come without.
    cache = execution_options.get("compiled_cache")
    if cache is None or is_bulk(statement) or _STATEMENT_OPTION in execution_options:
        return False
    table = written_table(statement)
    if table is None or not flush.expects(table):
        return False
    # The application may have given a cache of its own.
    return any(each.base_mapper._compiled_cache is cache for each in mappers_of(table))  # noqa: SLF001 (said nowhere else)


def _after_execute(
    connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any, result: Any
) -> None:
    """Runs after every statement of such an engine; the result hasn't been handed out yet."""
    dml = _dml_in(statement)
    if (
        OWN_STATEMENT in execution_options
        or not isinstance(dml, UpdateBase)
        or (session := _hooked_session(execution_options)) is None
    ):
        return
    try:
        _record_statement(session, connection, dml, multiparams or [params], execution_options, result)
        if current_flush(session) is None:
            # What the application's own triggers, functions and drivers write is for the triggers again.
            leave_to_session(connection, ())
            _refuse_nameless_rows(session, connection, places_in(execution_options))
    except BaseException:
        result.close()
        # The statement was sent, and its trail wasn't: nothing of this may be committed.
        session.info[_BROKEN_KEY] = weakref.ref(session.get_nested_transaction() or session.get_transaction())
        raise


def _record_statement(
    session: Session, connection: Connection, dml: UpdateBase, parameters: Any, execution_options: Any, result: Any
) -> None:
    flush = current_flush(session)
    if flush is not None and isinstance(dml, Delete) and _is_of_a_mapper(dml, flush, execution_options):
        flush.check_deleted(written_table(dml), parameters, result.rowcount)
    waiting: list[tuple[Connection, Any, Pending]] = session.info.get(_PENDING_KEY, [])
    # Not by the statement: listeners of the application may have put another in its place.
    if not waiting or waiting[-1][0] is not connection or waiting[-1][1] is not written_table(dml):
        return
    *_, pending = waiting.pop()
    batches = tell(pending, connection, result, flush)
    if flush is not None and flush.collects(connection):
        for changes in batches:
            flush.add(connection, written_table(dml), changes)
    else:
        record(session, connection, batches, config_of(session), options=places_in(execution_options))


def _before_cursor_execute(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: Any
) -> None:
    """Runs when the SQL is known: finds DML in text and in common table expressions, where nobody could before."""
    compiled: Any = context.compiled
    # Nothing was compiled of a text of the driver's; what is compiled of DDL has no expressions.
    sent, expressions = getattr(compiled, "statement", None), getattr(compiled, "ctes", None)
    dml = sent if isinstance(sent, UpdateBase) and not expressions else None
    if (dml is not None and not is_told(connection)) or _is_told_nothing(context):
        # Called for each row, where SQLAlchemy inserts one by one.
        return
    session = _hooked_session(context.execution_options)
    if session is None:
        withdraw_stale(connection)
        return
    if dml is not None:
        # What was sent for defaults was for the triggers.
        leave_to_session(connection, _by_session(dml))
        return
    is_text = not isinstance(_dml_in(sent), (UpdateBase, Select, CompoundSelect))
    is_text = is_text or any(not isinstance(each.element, _KNOWN) for each in expressions or ())
    if not is_text and not expressions:
        if is_told(connection) and not is_plain_read(compiled):
            _correct(session, connection)
        return
    if context.execution_options.get(OPT_OUT_OPTION, True) is False:
        _correct(session, connection)
        return
    writes = list(tables_in_text(statement, connection.dialect.name) if is_text else tables_in_expressions(compiled))
    refusal = refusal_of(writes)
    if refusal is not None:
        _refuse(refusal, config_of(session))
    tables = {table for _, table in writes}
    _publish_for(session, connection, tables, sent if isinstance(sent, UpdateBase) else None)


def tells_itself(context: Any) -> bool:
    """Return whether a statement is one of a session's, which says who writes, or needs nobody who does."""
    return _is_told_nothing(context) or _hooked_session(context.execution_options) is not None


def _is_told_nothing(context: Any) -> bool:
    statement = getattr(context.compiled, "statement", None)
    return OWN_STATEMENT in context.execution_options or isinstance(statement, _SAVEPOINTS)


_KNOWN: Final = (UpdateBase, Select, CompoundSelect, Values)
"""What SQLAlchemy writes; anything else in a common table expression is text."""

_SAVEPOINTS: Final = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)
"""They write nothing, and have events of their own."""


def _on_commit(connection: Connection) -> None:
    """Runs before a transaction is committed, by the session or by the connection itself."""
    reference = connection.get_execution_options().get(_SESSION_OPTION)
    session = None if reference is None else reference()
    try:
        if session is not None:
            _refuse_broken(session)
        end_publication(connection)
    except (CaptureError, DBAPIError):
        # For SQLAlchemy, the transaction is over when its commit has failed; for the database it isn't.
        connection.connection.rollback()
        raise


def _on_rollback(connection: Connection) -> None:
    """Runs before a transaction is rolled back."""
    forget(connection)
    forget_left(connection)


def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    """Runs before a savepoint is rolled back."""
    doubt(connection)


def _on_release_savepoint(connection: Connection, name: str, context: None) -> None:
    """Runs before a savepoint is released."""
    end_savepoint(connection)


def _on_reset(dbapi_connection: Any, record: Any, state: Any) -> None:
    """Runs before the pool takes a connection back."""
    if not state.terminate_only:
        withdraw_from_driver(dbapi_connection, record.info)
    deliver_left(record.info)


def _refuse(refusal: UncapturedStatementError, config: SQLAuditConfig) -> None:
    if not config.warn_uncaptured:
        raise refusal
    # A warning is shown once for each place; the log tells each time.
    extra = {"statement": refusal.statement, "table": refusal.table}
    _logger.warning("%s of the tracked table %s left no trail.", refusal.statement, refusal.table, extra=extra)
    warnings.warn(UncapturedStatementWarning(str(refusal)), stacklevel=2)


def is_hooked(session: Session) -> bool:
    """Return whether the hooks are registered for *session*."""
    return hasattr(session, CONFIG_ATTRIBUTE)
