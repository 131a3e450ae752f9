"""How many changes there are, by group. No session in here."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, Table, case, func, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit._statements import user_id_value
from sqlaudit.codec import Codec
from sqlaudit.types import ChangeGroup, Operation

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_HALF_A_DAY = dt.timedelta(hours=12)

Offsets = Sequence[tuple[dt.datetime, int]]
"""From when on, in UTC, a zone is so many seconds ahead of it: in the order of time."""


def count_all(trail: Table, criterion: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the number of changes."""
    return select(func.count()).select_from(trail).where(criterion)


def count_by(trail: Table, criterion: ColumnElement[bool], group: ChangeGroup, offsets: Offsets) -> Select[Any]:
    """Return the query for the groups that there are, and the number of changes in each."""
    by: ColumnElement[Any] = {
        "actor": trail.c.changed_by,
        "model": trail.c.resource_type,
        "operation": trail.c.operation,
        "day": _day(trail.c.recorded_at, offsets),
    }[group]
    # Grouped by name: the database can't know that two expressions with parameters are one.
    label = by.label("counted")
    columns: list[ColumnElement[Any]] = [label, func.count()]
    return select(*columns).select_from(trail).where(criterion).group_by(label).order_by(label)


def period_of(trail: Table, criterion: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the times of the first and the last change."""
    ends: list[ColumnElement[Any]] = [func.min(trail.c.recorded_at), func.max(trail.c.recorded_at)]
    return select(*ends).where(criterion)


def group_value(group: ChangeGroup, stored: Any, user_codec: Codec | None) -> Any:
    """Return what a group is called."""
    match group:
        case "actor":
            return user_id_value(user_codec, stored)
        case "operation":
            return Operation(stored)
        case "day":
            return _EPOCH.date() + dt.timedelta(days=int(stored))
        case _:
            return stored


# --- days ------------------------------------------------------------------------------------------------------------


def offsets_of(zone: dt.tzinfo, start: dt.datetime, end: dt.datetime) -> Offsets:
    """
    Return how far *zone* is ahead of UTC between two moments, to the second.

    No database is asked: SQLite knows no zones, and others know them in other
    versions than Python. A zone that changes twice within half a day is beyond us.
    """

    def ahead(moment: dt.datetime) -> int:
        offset = moment.astimezone(zone).utcoffset()
        assert offset is not None  # noqa: S101 (of an aware datetime)
        return round(offset.total_seconds())

    moment = start.astimezone(dt.UTC).replace(microsecond=0)
    found = [(moment, ahead(moment))]
    while moment < end:
        following = moment + _HALF_A_DAY
        if ahead(following) != ahead(moment):
            earlier, later = moment, following
            while later - earlier > dt.timedelta(seconds=1):
                middle = earlier + dt.timedelta(seconds=(later - earlier) // dt.timedelta(seconds=2))
                earlier, later = (middle, later) if ahead(middle) == ahead(moment) else (earlier, middle)
            found.append((later, ahead(later)))
        moment = following
    return found


def _day(recorded_at: ColumnElement[Any], offsets: Offsets) -> ColumnElement[int]:
    """Return how many days after 1970-01-01 a change was recorded, by the calendar of a zone."""
    (_, ahead), *later = offsets or [(_EPOCH, 0)]
    if later:
        ends = zip(offsets, later, strict=False)
        branches = [(recorded_at < until, literal(seconds, Integer())) for (_, seconds), (until, _) in ends]
        return _LocalDay(recorded_at, case(*branches, else_=literal(later[-1][1], Integer())))
    return _LocalDay(recorded_at, literal(ahead, Integer()))


class _LocalDay(FunctionElement[int]):
    """The number of a day; its arguments: a moment, and how many seconds the zone is ahead of UTC."""

    type = Integer()
    inherit_cache = True


@compiles(_LocalDay, "postgresql")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    moment, ahead = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"CAST(floor((extract(epoch FROM {moment}) + {ahead}) / 86400) AS INTEGER)"


@compiles(_LocalDay, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    moment, ahead = (compiler.process(clause, **kw) for clause in element.clauses)
    # Without its fraction, which SQLite would round.
    return f"((CAST(strftime('%s', substr({moment}, 1, 19)) AS INTEGER) + {ahead}) / 86400)"


@compiles(_LocalDay, "mysql", "mariadb")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    moment, ahead = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((TIMESTAMPDIFF(SECOND, '1970-01-01', {moment}) + {ahead}) DIV 86400)"
