"""What is done with a session to answer a question to the trail: send it, and tell the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Dialect, Select, Table, func, inspect, select
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from sqlaudit._arguments import whole_number_in
from sqlaudit._changes import Scope, changes_in, criterion_of, scopes_of, select_page, select_wanted
from sqlaudit._counts import Offsets, count_all, count_by, group_value, offsets_of, period_of
from sqlaudit._filters import ChangeFilter, Page
from sqlaudit.codec import Codec, codec_of
from sqlaudit.config import SQLAuditConfig, user_id_column
from sqlaudit.exceptions import RetrievalError
from sqlaudit.types import Change, ChangeGroup, Model


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question to one database."""

    wanted: ChangeFilter
    scopes: Sequence[Scope]
    config: SQLAuditConfig
    bind_arguments: dict[str, Any]
    user_codec: Codec | None

    @classmethod
    def of(cls, session: Session, wanted: ChangeFilter, config: SQLAuditConfig) -> "Prepared":
        """Return the question as the database of *session* understands it."""
        bind_arguments, dialect = _database_of(session, wanted, config.trail)
        user_column = user_id_column(config)
        return cls(
            wanted,
            scopes_of(wanted, dialect, config.trail),
            config,
            bind_arguments,
            None if user_column is None else codec_of(user_column.type, dialect),
        )

    @property
    def select(self) -> Select[Any]:
        """The query for all changes that are wanted."""
        return select_wanted(self.wanted, self.scopes, self.config.trail)

    def rows(self, session: Session, query: Select[Any]) -> Sequence[Any]:
        """Return the rows of *query*; what is pending in the session is written first, if it autoflushes."""
        if session.autoflush:
            session.flush()
        return session.execute(query, bind_arguments=self.bind_arguments).all()

    def changes(self, session: Session, page: Page) -> list[Change]:
        """Return the changes of one page."""
        rows = self.rows(session, select_page(self.select, self.config.trail, page))
        found = list(changes_in(rows, self.scopes, self.user_codec, self.config.zone))
        return found[::-1] if page.from_end else found


def _database_of(session: Session, wanted: ChangeFilter, trail: Table) -> tuple[dict[str, Any], Dialect]:
    """Return how *session* is told which database is meant, and its dialect."""
    models: Sequence[Model] = wanted.models or (trail,)
    arguments: list[dict[str, Any]] = [
        {"clause": each} if isinstance(each, Table) else {"mapper": inspect(each)} for each in models
    ]
    try:
        binds = [session.get_bind(**each) for each in arguments]
    except UnboundExecutionError as error:
        if wanted.models is not None:
            raise
        raise RetrievalError(
            "The session doesn't say in which database the trail is; name a model, whose database is meant."
        ) from error
    if len({id(each.engine) for each in binds}) > 1:
        raise RetrievalError(
            "The models are in several databases, each with a trail of its own; ask for one at a time."
        )
    return arguments[0], binds[0].dialect


def reading(wanted: ChangeFilter, page: Page, config: SQLAuditConfig) -> Callable[[Session], list[Change]]:
    return lambda session: Prepared.of(session, wanted, config).changes(session, page)


@dataclass(frozen=True, slots=True)
class _Position:
    """How far a stream has come."""

    question: Prepared
    page: Page
    """What is still wanted."""


def reading_parts(
    wanted: ChangeFilter, page: Page, batch_size: int, config: SQLAuditConfig
) -> Callable[[Session, _Position | None], tuple[list[Change], _Position | None]]:
    if whole_number_in("batch_size", batch_size, least=1) is None:
        raise RetrievalError("batch_size is None; expected a whole number from 1.")

    def read(session: Session, position: _Position | None) -> tuple[list[Change], _Position | None]:
        if position is None:
            position = _Position(_until_now(session, Prepared.of(session, wanted, config)), page)
        left = position.page.limit
        size = batch_size if left is None else min(left, batch_size)
        part = position.question.changes(session, replace(position.page, limit=size))
        if len(part) < size or size == left:
            return part, None
        rest = replace(position.page, limit=None if left is None else left - size, after=part[-1].change_id)
        return part, replace(position, page=rest)

    return read


def _until_now(session: Session, question: Prepared) -> Prepared:
    """Return *question* for the changes that there are: who writes while reading might never come to an end."""
    newest = question.rows(session, select(func.max(question.config.trail.c.id)))[0][0]
    start, end = question.wanted.id_range
    last = newest or 0
    return replace(question, wanted=replace(question.wanted, id_range=(start, last if end is None else min(last, end))))


def counting(wanted: ChangeFilter, config: SQLAuditConfig) -> Callable[[Session], int]:
    def operation(session: Session) -> int:
        question = Prepared.of(session, wanted, config)
        criterion = criterion_of(wanted, question.scopes, config.trail)
        count: int = question.rows(session, count_all(config.trail, criterion))[0][0]
        return count

    return operation


def counting_by(
    group: ChangeGroup, wanted: ChangeFilter, config: SQLAuditConfig
) -> Callable[[Session], dict[Any, int]]:
    def operation(session: Session) -> dict[Any, int]:
        question = Prepared.of(session, wanted, config)
        criterion = criterion_of(wanted, question.scopes, config.trail)
        offsets: Offsets = ()
        if group == "day":
            first, last = question.rows(session, period_of(config.trail, criterion))[0]
            if first is None:
                return {}
            offsets = offsets_of(config.zone, first, last)
        rows = question.rows(session, count_by(config.trail, criterion, group, offsets))
        # What had another label once is counted with the label of today.
        present = {label: each.resource.label for each in question.scopes for label in each.resource.labels}
        counts: dict[Any, int] = {}
        for stored, count in rows:
            name = present.get(stored, stored) if group == "model" else group_value(group, stored, question.user_codec)
            counts[name] = counts.get(name, 0) + count
        return counts

    return operation
