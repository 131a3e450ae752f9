"""What is asked of the trail, as a `Select`; and what it answers, as values. No session in here."""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Dialect, Row, Select, String, Table, and_, false, literal, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean

from sqlaudit.codec import Codec, codec_of, decode_value, key_text, key_value
from sqlaudit.exceptions import RetrievalError
from sqlaudit.tables import change_table
from sqlaudit.tracking import Tracking
from sqlaudit.types import FieldChange, Operation, SortDirection, SortField

DateRange = tuple[dt.datetime | None, dt.datetime | None]

_SORT_COLUMNS: Final[Mapping[str, ColumnElement[Any]]] = {
    "timestamp": change_table.c.id,
    "resource_id": change_table.c.resource_id,
    "changed_by": change_table.c.changed_by,
    "operation": change_table.c.operation,
}


@dataclass(frozen=True, slots=True)
class Resource:
    """A tracked table as retrieval sees it: how its keys and values are read and named."""

    label: str
    key_codecs: tuple[Codec, ...]
    codecs: Mapping[str, Codec | None]
    """By column key; None for a masked column."""
    names: Mapping[str, str]
    """Attribute name by column key."""
    hidden: frozenset[str]
    """Columns that are recorded for the sake of replay alone: keys that aren't tracked."""

    def resource_id(self, value: Any) -> str:
        """
        Return the canonical text of a key as the user gives it.

        Raises:
            RetrievalError: it is no key of this table.
        """
        width = len(self.key_codecs)
        parts = value if isinstance(value, tuple) else (value,)
        if len(parts) != width:
            expected = "one value" if width == 1 else f"a tuple of {width} values"
            raise RetrievalError(f"{self.label} is identified by {expected}; a key of {len(parts)} was given.")
        try:
            return key_text([_encode_key(codec, part) for codec, part in zip(self.key_codecs, parts, strict=True)])
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise RetrievalError(f"A resource id of {self.label} can't be read from this {kinds}: {error}.") from error


def _encode_key(codec: Codec, value: Any) -> Any:
    if value is None:
        raise ValueError("a key is never None")
    if isinstance(value, str) and codec.as_text:
        try:
            # Text is accepted for any key, in the form in which it is stored.
            return codec.dump(codec.load(value))
        except (TypeError, ValueError, ArithmeticError, LookupError):
            return codec.dump(value)
    return codec.dump(value)


def resource_of(table: Table, tracking: Tracking, names: Mapping[str, str], dialect: Dialect) -> Resource:
    """Return what retrieval needs to know of *table*."""
    codecs = {
        key: None if key in tracking.masked else codec_of(table.columns[key].type, dialect) for key in tracking.recorded
    }
    return Resource(
        label=tracking.label,
        key_codecs=tuple(codec_of(table.columns[key].type, dialect) for key in tracking.resource_key),
        codecs=codecs,
        names=names,
        hidden=frozenset(tracking.recorded) - frozenset(tracking.fields),
    )


# --- questions -------------------------------------------------------------------------------------------------------


def select_field_changes(
    resources: Sequence[tuple[Resource, Collection[Any] | None, Collection[str] | None]],
    *,
    user_ids: Collection[str] | None,
    date_range: DateRange,
    sort_by: SortField,
    sort_direction: SortDirection,
    limit: int | None,
) -> Select[Any]:
    """
    Return the query for the changes of *resources*, each with its ids and column keys; None means all of them.

    *limit* is how many changes at most are needed, whatever their fields.
    """
    columns = change_table.c
    query = select(change_table).where(
        or_(*(_is_of(resource, ids, keys) for resource, ids, keys in resources)) if resources else false()
    )
    if user_ids is not None:
        query = query.where(columns.changed_by.in_(sorted(user_ids)))
    start, end = date_range
    if start is not None:
        query = query.where(columns.recorded_at >= start)
    if end is not None:
        query = query.where(columns.recorded_at <= end)
    order = [_SORT_COLUMNS[sort_by], columns.id] if sort_by != "timestamp" else [columns.id]
    query = query.order_by(*(column.desc() if sort_direction == "desc" else column.asc() for column in order))
    return query if limit is None else query.limit(limit)


def _is_of(resource: Resource, ids: Collection[Any] | None, keys: Collection[str] | None) -> ColumnElement[bool]:
    columns = change_table.c
    criteria = [columns.resource_type == resource.label]
    if ids is not None:
        criteria.append(columns.resource_id.in_(sorted({resource.resource_id(each) for each in ids})))
    if keys is not None:
        criteria.append(
            or_(*(_HasKey(side, key) for key in sorted(keys) for side in (columns.new_values, columns.old_values)))
        )
    return and_(*criteria)


class _HasKey(FunctionElement[bool]):
    """Whether a JSON object has a key, be its value null."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, document: ColumnElement[Any], key: str) -> None:
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        super().__init__(document, literal(key, String()), literal(f'$."{escaped}"', String()))


@compiles(_HasKey, "postgresql")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, key, _ = element.clauses
    return f"jsonb_exists({compiler.process(document, **kw)}, {compiler.process(key, **kw)})"


@compiles(_HasKey, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, _, path = element.clauses
    return f"(json_type({compiler.process(document, **kw)}, {compiler.process(path, **kw)}) IS NOT NULL)"


@compiles(_HasKey, "mysql", "mariadb")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, _, path = element.clauses
    return f"json_contains_path({compiler.process(document, **kw)}, 'one', {compiler.process(path, **kw)})"


# --- answers ---------------------------------------------------------------------------------------------------------


def field_changes(
    rows: Iterable[Row[Any]],
    resources: Mapping[str, tuple[Resource, Collection[str] | None]],
    user_codec: Codec | None,
    zone: dt.tzinfo,
) -> Iterator[FieldChange]:
    """Yield the field changes of stored changes: by label, the resource and the column keys that are wanted."""
    for row in rows:
        resource, wanted = resources[row.resource_type]
        old, new = row.old_values or {}, row.new_values or {}
        for key in (*resource.codecs, *sorted((old.keys() | new.keys()) - resource.codecs.keys())):
            if key in resource.hidden or (key not in old and key not in new):
                continue
            if wanted is not None and key not in wanted:
                continue
            codec = resource.codecs.get(key)
            yield FieldChange(
                change_id=row.id,
                transaction_id=row.transaction_id,
                timestamp=row.recorded_at.astimezone(zone),
                operation=Operation(row.operation),
                resource_type=row.resource_type,
                resource_id=key_value(resource.key_codecs, row.resource_id),
                field_name=resource.names.get(key, key),
                old_value=decode_value(codec, old[key]) if key in old else None,
                new_value=decode_value(codec, new[key]) if key in new else None,
                changed_by=user_id_value(user_codec, row.changed_by),
                impersonated_by=user_id_value(user_codec, row.impersonated_by),
                reason=row.reason,
                context=row.context or {},
            )


def user_id_value(codec: Codec | None, text: str | None) -> Any:
    """Return a stored user id as the type of the user model's id; its text, if it isn't one."""
    if text is None or codec is None:
        return text
    try:
        return key_value([codec], text)
    except (TypeError, ValueError, ArithmeticError, LookupError):
        # Before there was this user model, or a system user beside it: still who it was.
        return text
