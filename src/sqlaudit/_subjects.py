"""Of what the past is asked, and when: a model as a session sees it, and a moment of its trail."""

import datetime as dt
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, FromClause, Table, func, inspect, select, true
from sqlalchemy.orm import Mapper, Session

from sqlaudit._sources import names_of
from sqlaudit._statements import Resource, resource_of
from sqlaudit.codec import key_text, key_value
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import RetrievalError, UnknownFieldError, UntrackedError
from sqlaudit.tracking import Tracking, tracked_tables, tracking_of

__all__ = ["At", "Moment", "Part", "Subject", "check_model", "subject_of"]

At: TypeAlias = dt.datetime | int | uuid.UUID | None
"""
A moment: a datetime, inclusive, naive ones in the configured zone; the id of a
change, for the state just after it; the id of a transaction, for the state
after its last change; None for now.
"""

# --- of what ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of the tracked tables that objects of a model have rows in."""

    table: Table
    tracking: Tracking
    resource: Resource

    def text_of(self, resource_id: Any) -> str:
        """
        Return the text of a key.

        Raises:
            RetrievalError: it is no key of the table.
        """
        return key_text(self.resource.key_parts(resource_id))

    def key_of(self, text: str) -> Any:
        """Return the Python value of a key's text."""
        return key_value(self.resource.key_codecs, text)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model as a session sees it."""

    model: type[Any] | Table
    mapper: Mapper[Any] | None
    parts: tuple[Part, ...]
    """Base tables first, those of subclasses last."""
    config: SQLAuditConfig
    bind_arguments: Mapping[str, Any]

    @property
    def trail(self) -> Table:
        """The table that holds the trail."""
        return self.config.trail

    @property
    def base(self) -> Part:
        """The part that every object of the model has, and that names the resource."""
        return self.parts[0]


def check_model(model: Any) -> None:
    """
    Refuse what isn't tracked.

    Raises:
        RetrievalError: it is neither a mapped class nor a table.
        UntrackedError: it isn't tracked.
    """
    if isinstance(model, Table):
        if tracking_of(model) is None:
            raise UntrackedError(f"The table {model.fullname}", is_table=True)
        return
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise RetrievalError(f"model is {model!r}; expected a mapped class or a tracked Table.")
    # Declarations are resolved when the mappers are configured.
    mapper.registry.configure(cascade=True)
    if not any(tracked_tables(mapper)):
        raise UntrackedError(model.__name__)


def subject_of(model: type[Any] | Table, session: Session, config: SQLAuditConfig) -> Subject:
    """
    Return *model*, with what reading its trail needs.

    Raises:
        RetrievalError: its tables are identified by different fields.
    """
    check_model(model)
    if isinstance(model, Table):
        bind_arguments: dict[str, Any] = {"clause": model}
        tables = {model: {key: key for key in model.columns.keys()}}
        mapper = None
    else:
        mapper = inspect(model)
        bind_arguments = {"mapper": mapper}
        tables = {}
        for each in _sharing_rows(mapper):
            for table, _ in tracked_tables(each):
                tables.setdefault(table, {}).update(names_of(each, table))
    dialect = session.get_bind(**bind_arguments).dialect
    parts = []
    for table, names in tables.items():
        tracking = tracking_of(table)
        if tracking is not None:
            parts.append(Part(table, tracking, resource_of(table, tracking, names, dialect)))
    identified_by = {tuple(part.resource.names.get(key, key) for key in part.tracking.resource_key) for part in parts}
    if len(parts) > 1 and len(identified_by) > 1:
        raise RetrievalError(
            f"The tables of {getattr(model, '__name__', model)} are identified by different fields in the trail, so "
            f"their changes can't be put together; leave out the resource_id_field of joined inheritance."
        )
    return Subject(model, mapper, tuple(parts), config, bind_arguments)


def _sharing_rows(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    """Yield *mapper* and its subclasses, without those that have a table, and keys, of their own."""
    yield mapper
    for each in mapper.self_and_descendants:
        ancestors = list(each.iterate_to_root())
        if each is not mapper and not any(one.concrete for one in ancestors[: ancestors.index(mapper)]):
            yield each


def tracked_names(subject: Subject) -> set[str]:
    """Return the tracked attributes of a model and its subclasses."""
    return {part.resource.names.get(key, key) for part in subject.parts for key in part.tracking.fields}


def check_names(subject: Subject, argument: str, names: Collection[str]) -> None:
    """
    Refuse names of what isn't tracked.

    Raises:
        UnknownFieldError: there is no such field.
    """
    known = tracked_names(subject)
    if unknown := set(names) - known:
        raise UnknownFieldError(f"the trail of {subject.base.tracking.label}", argument, unknown, known)


# --- when ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment that the trail can be cut at."""

    at: At
    change_id: int | None = None
    time: dt.datetime | None = None

    def includes(self, trail: FromClause) -> ColumnElement[bool]:
        """Return the criterion that a change had been made."""
        if self.change_id is not None:
            return trail.c.id <= self.change_id
        return true() if self.time is None else trail.c.recorded_at <= self.time

    def excludes(self, trail: FromClause) -> ColumnElement[bool]:
        """Return the criterion that a change was made later."""
        return ~self.includes(trail)


def checked_at(at: Any, zone: dt.tzinfo, argument: str = "at") -> At:
    """
    Return a moment, aware if it is a datetime.

    Raises:
        RetrievalError: it is none.
    """
    if isinstance(at, bool) or not (at is None or isinstance(at, (dt.datetime, int, uuid.UUID))):
        raise RetrievalError(
            f"{argument} is a {type(at).__name__}; expected a datetime, the id of a change (int) or of a transaction "
            f"(UUID), or None for now."
        )
    return at.replace(tzinfo=zone) if isinstance(at, dt.datetime) and at.tzinfo is None else at


def moment_of(at: At, session: Session, subject: Subject) -> Moment:
    """
    Return the moment *at* of the trail.

    Raises:
        RetrievalError: the trail has no such transaction.
    """
    if isinstance(at, dt.datetime):
        return Moment(at, time=at)
    if isinstance(at, uuid.UUID):
        trail = subject.trail
        last = select(func.max(trail.c.id)).where(trail.c.transaction_id == at)
        change_id = session.execute(last, bind_arguments=dict(subject.bind_arguments)).scalar()
        if change_id is None:
            raise RetrievalError("at is the id of a transaction that the trail has no change of.")
        return Moment(at, change_id)
    return Moment(at, at)


def first_moment(at: At, session: Session, subject: Subject) -> Moment:
    """Return the moment *at*; now is fixed, so that every page is of the same moment."""
    if at is not None:
        return moment_of(at, session, subject)
    last = select(func.max(subject.trail.c.id))
    return Moment(None, session.execute(last, bind_arguments=dict(subject.bind_arguments)).scalar() or 0)
