"""Writing a past state back, through the ORM."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import ClauseElement, Column, inspect, null, select
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import flag_modified, set_committed_value
from sqlalchemy.types import JSON

from sqlaudit._snapshots import Past, StoredField, read_past
from sqlaudit._sources import names_of
from sqlaudit._subjects import Moment, Subject
from sqlaudit.capture.rows import audited_table, read_images
from sqlaudit.codec import JSON_NULL
from sqlaudit.context import AuditContextManager, context_of
from sqlaudit.exceptions import RestoreError, UnknownFieldError
from sqlaudit.tracking import written_tables

__all__ = ["restore"]


def restore(
    session: Session,
    subject: Subject,
    resource_id: Any,
    moment: Moment,
    names: Collection[str] | None,
    values: Mapping[str, Any],
    *,
    delete: bool,
) -> Any:
    """
    Write back what an object was, flush, and return it; None if there is none.

    Raises:
        UnknownStateError: the trail doesn't tell what it was.
        RestoreError: it can't be written back.
    """
    past = read_past(session, subject, resource_id, moment)
    label = subject.base.tracking.label
    instance = find_object(session, subject, past.text)
    with default_reason(session, f"restored {label} {past.text} to {_told(moment)}"):
        if past.fields is None:
            if instance is not None and not delete:
                raise RestoreError(f"{label} {past.text} didn't exist at that moment; delete it with delete=True.")
            if instance is not None:
                remove(session, instance)
                session.flush()
            return None
        if instance is None:
            if names is not None:
                raise RestoreError(
                    f"{label} {past.text} is gone, so that single fields of it can't be restored; leave fields out."
                )
            instance = recreate(session, past, values)
            written: Collection[str] = ()
        else:
            written = write_back(session, subject, instance, past, names)
        session.flush()
        make_current(session, instance, written)
    return instance


def _told(moment: Moment) -> str:
    if isinstance(moment.at, dt.datetime):
        return moment.at.isoformat()
    if isinstance(moment.at, uuid.UUID):
        return f"transaction {moment.at}"
    return "now" if moment.at is None else f"change {moment.at}"


@contextlib.contextmanager
def default_reason(session: Session, reason: str) -> Iterator[None]:
    """Give what is written in the block a reason, if the audit context has none."""
    if context_of(session).reason is not None:
        yield
        return
    with AuditContextManager(reason=reason):
        yield


# --- finding ---------------------------------------------------------------------------------------------------------


def root_of(mapper: Mapper[Any]) -> Mapper[Any]:
    """Return the mapper whose objects have a row in the same first table."""
    while mapper.inherits is not None and not mapper.concrete:
        mapper = mapper.inherits
    return mapper


def find_object(session: Session, subject: Subject, text: str) -> Any:
    """Return the object of a key, as the database has it now; None if there is none."""
    if subject.mapper is None:
        return None
    # A row that is of another class now is a row all the same.
    root = root_of(subject.mapper)
    base = subject.base
    key = base.key_of(text)
    values = dict(zip(base.tracking.resource_key, key if len(base.tracking.resource_key) > 1 else (key,), strict=True))
    columns = [base.table.columns[each] for each in values]
    query = select(root.class_).where(
        *(
            root.get_property_by_column(column).class_attribute == value
            for column, value in zip(columns, values.values(), strict=True)
        )
    )
    options = {"populate_existing": True}
    return session.scalars(query, execution_options=options).unique().one_or_none()


# --- writing ---------------------------------------------------------------------------------------------------------


def write_back(
    session: Session, subject: Subject, instance: Any, past: Past, names: Collection[str] | None
) -> Collection[str]:
    """
    Set the attributes of *instance* that differ from *past*; return their names.

    Raises:
        RestoreError: it is of another class now, or a field can't be written.
    """
    mapper: Mapper[Any] = inspect(instance).mapper
    if past.mapper is not None and mapper is not past.mapper:
        raise RestoreError(
            f"{subject.base.tracking.label} {past.text} is a {mapper.class_.__name__} now, and was a "
            f"{past.mapper.class_.__name__}; an object's class can't be changed: delete it, and restore it then."
        )
    fields = past.fields or {}
    withheld = [name for name in names or () if name not in fields or fields[name].codec is None]
    if withheld:
        raise RestoreError(
            f"The trail doesn't hold {', '.join(map(repr, sorted(withheld)))} as of then; leave them out of fields."
        )
    chosen = {
        name: each
        for name, each in fields.items()
        if (names is None or name in names) and _is_writable(mapper, each) and not _column(each).primary_key
    }
    current = _current(session, mapper, instance, chosen)
    differing = {name for name, each in chosen.items() if not _is_stored(each, current)}
    # What the database or the model would set by itself on an update is held.
    held = {name for name, each in chosen.items() if differing and _is_set_by_updates(_column(each))}
    for name in differing | held:
        _assign(instance, name, settable(chosen[name]))
        # What is in memory may be equal, and out of date; or mean another NULL.
        flag_modified(instance, name)
    return differing


def _assign(instance: Any, name: str, value: Any) -> None:
    """Set an attribute, as the application would."""
    if value is JSON_NULL or isinstance(value, ClauseElement):
        # Validators and mutable types know None; which NULL it is, is between us and the database.
        setattr(instance, name, None)
        set_committed_value(instance, name, value)
    else:
        setattr(instance, name, value)


def _is_writable(mapper: Mapper[Any], each: StoredField) -> bool:
    column = _column(each)
    return (
        each.codec is not None
        and column.computed is None
        and column is not mapper.version_id_col
        and column is not mapper.polymorphic_on
    )


def _is_set_by_updates(column: Column[Any]) -> bool:
    return column.onupdate is not None or column.server_onupdate is not None


def _column(each: StoredField) -> Column[Any]:
    return each.part.table.columns[each.key]


def _current(
    session: Session, mapper: Mapper[Any], instance: Any, fields: Mapping[str, StoredField]
) -> dict[tuple[Any, str], Any]:
    """Return what the row of *instance* holds now, as it would be stored, by table and column key."""
    connection = session.connection(bind_arguments={"mapper": mapper})
    found: dict[tuple[Any, str], Any] = {}
    for part in {each.part for each in fields.values()}:
        audited = audited_table(part.table, part.tracking, connection.dialect)
        names = names_of(mapper, part.table)
        key = tuple(getattr(instance, names[column.key]) for column in part.table.primary_key)
        for image in read_images(connection, audited, None, [key]).values():
            found.update({(part.table, name): stored for name, stored in image.items()})
    return found


def _is_stored(each: StoredField, current: Mapping[tuple[Any, str], Any]) -> bool:
    where = (each.part.table, each.key)
    if where not in current or each.codec is None:
        return False
    try:
        return each.codec.same(current[where], each.stored)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        # It was stored when the column was of another type.
        return False


def settable(each: StoredField) -> Any:
    """
    Return what an attribute, or a column of an INSERT, is set to, so that it is stored as it was.

    Raises:
        RestoreError: the column is of another type now, which has no such value.
    """
    codec, type_ = each.codec, _column(each).type
    if codec is None:
        raise RestoreError(f"{each.part.tracking.label}.{each.key} is masked: the trail doesn't hold its values.")
    try:
        value = codec.load(each.stored)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise RestoreError(
            f"{each.part.tracking.label}.{each.key} was of another type then, and its value is none of {type_!r}; "
            f"leave it out, naming the others in fields."
        ) from error
    if value is None and isinstance(type_, JSON):
        is_json_null = each.stored is not None
        if type_.none_as_null:
            return JSON_NULL if is_json_null else None
        return None if is_json_null else null()
    return value


def recreate(session: Session, past: Past, values: Mapping[str, Any]) -> Any:
    """
    Add an object that is what *past* was, under its old key; ``__init__`` isn't called.

    Raises:
        UnknownFieldError: *values* names what the model doesn't have.
        RestoreError: required values aren't known.
    """
    mapper = past.mapper
    if mapper is None or past.fields is None:
        raise RestoreError(f"There is nothing that {past.text} could be made anew from.")
    known = {each.key for each in mapper.iterate_properties}
    if unknown := values.keys() - known:
        raise UnknownFieldError(mapper.class_.__name__, "values", unknown, known)
    fields = {name: each for name, each in past.fields.items() if name not in values and _is_writable(mapper, each)}
    missing = [name for name in _required(mapper) if name not in fields and name not in values]
    if missing:
        raise RestoreError(
            f"{mapper.class_.__name__} {past.text} is gone, and the trail doesn't hold {', '.join(map(repr, missing))}"
            f", which a new row needs; give values={{...}} to restore_resource()."
        )
    instance = mapper.class_manager.new_instance()
    discriminator = mapper.polymorphic_on
    if isinstance(discriminator, Column) and mapper.polymorphic_identity is not None:
        setattr(instance, mapper.get_property_by_column(discriminator).key, mapper.polymorphic_identity)
    for name, each in fields.items():
        value, column = settable(each), _column(each)
        has_default = column.default is not None or column.server_default is not None
        # None would give way to the column's default.
        _assign(instance, name, null() if value is None and each.stored is None and has_default else value)
    for name, value in values.items():
        setattr(instance, name, value)
    session.add(instance)
    return instance


def _required(mapper: Mapper[Any]) -> Iterator[str]:
    """Yield the attributes without which a row can't be inserted."""
    tables = written_tables(mapper)
    for attribute in mapper.column_attrs:
        for column in attribute.columns:
            if not isinstance(column, Column) or column.table not in tables or column.nullable:
                continue
            is_given = (
                column.default is not None
                or column.server_default is not None
                or column is mapper.version_id_col
                or column is mapper.polymorphic_on
                or column.table.autoincrement_column is column
            )
            if not is_given:
                yield attribute.key
                break


def remove(session: Session, instance: Any) -> None:
    """Delete an object: its cascades see what the database holds, not what was loaded once."""
    loaded = [each.key for each in inspect(instance).mapper.relationships if each.key in inspect(instance).dict]
    if loaded:
        session.expire(instance, loaded)
    session.delete(instance)


def make_current(session: Session, instance: Any, written: Collection[str]) -> None:
    """Load what the flush has expired, or made out of date: whoever awaits can't do it by reading attributes."""
    state = inspect(instance)
    mapper = state.mapper
    columns = {mapper.columns[name] for name in written}
    stale = [
        each.key
        for each in mapper.relationships
        if each.key in state.dict and columns & set(each.local_columns) and not each.viewonly
    ]
    expired = [name for name in mapper.column_attrs.keys() if name in state.expired_attributes]
    if stale or expired:
        session.refresh(instance, [*stale, *expired])
