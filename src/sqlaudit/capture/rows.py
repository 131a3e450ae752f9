"""The images of a row before and after a write, and the changes that they tell. No session in here."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Integer,
    Row,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    any_,
    bindparam,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql

from sqlaudit.codec import JSON_NULL, MASK, Codec, JSONValue, codec_of, key_text
from sqlaudit.exceptions import CaptureError
from sqlaudit.tracking import Tracking
from sqlaudit.types import Operation

__all__ = [
    "ROWS_PER_SELECT",
    "AuditedTable",
    "Image",
    "ParameterSets",
    "RowChange",
    "among",
    "audited_table",
    "batched",
    "inserted_image",
    "read_images",
    "select_images",
]


Image: TypeAlias = dict[str, JSONValue]
"""The encoded values of a row by column key. A key that is missing: nobody knows, or nobody asked."""

ParameterSets: TypeAlias = Sequence[Mapping[str, Any]]
"""What a statement is executed with: one set, or many."""

ROWS_PER_SELECT: Final = 1000

_AUDITED_KEY: Final = "sqlaudit.audited"

Item = TypeVar("Item")

# A masked column's values are compared, never stored: any type will do.
_OPAQUE: Final = Codec(lambda value: value, lambda stored: stored)


class RowChange(NamedTuple):
    """One operation on one row, ready to be stored."""

    operation: Operation
    resource_type: str
    resource_id: str
    old_values: Image | None
    new_values: Image | None
    user_id: Any
    """The actor that the row itself names, if the model has a user_id_field."""


@dataclass(frozen=True, slots=True, eq=False)
class AuditedTable:
    """A tracked table as one dialect sees it."""

    table: Table
    tracking: Tracking
    codecs: Mapping[str, Codec]
    """Of every column that a change of the table may need."""
    primary_key: tuple[str, ...]

    key_codecs: tuple[Codec, ...]
    """Of the primary key."""
    made_of_zero: str | None
    """The column in which MariaDB and MySQL make a key of their own of 0."""

    def row_key(self, values: tuple[Any, ...]) -> str:
        """Return the canonical text of a primary key."""
        if len(values) == 1 and type(values[0]) is int:
            # Most keys are: this is asked for several times for each row.
            return key_text([self.key_codecs[0].dump(values[0])])
        return key_text([codec.as_key(codec.dump(value)) for codec, value in zip(self.key_codecs, values, strict=True)])

    def changes(self, operation: Operation, old: Image, new: Image) -> Iterator[RowChange]:
        """
        Yield what happened to a row: nothing if it is the same, two changes if its key is another.

        *old* and *new* hold every recorded column for an insert, a delete or
        another key; for an update those that may have changed, and the resource key.
        """
        if operation is Operation.UPDATE:
            after = self.resource_id(new)
            is_same_key = all(old[key] == new[key] for key in self.tracking.resource_key)
            if not is_same_key and (before := self.resource_id(old)) != after:
                yield self._change(Operation.DELETE, before, old, None, old)
                yield self._change(Operation.INSERT, after, None, new, new)
                return
            changed = [
                key
                for key in self.tracking.recorded
                if key in old and key in new and not self.codecs[key].same(old[key], new[key])
            ]
            if changed:
                yield self._change(
                    operation, after, {key: old[key] for key in changed}, {key: new[key] for key in changed}, new
                )
        elif operation is Operation.DELETE:
            yield self._change(operation, self.resource_id(old), old, None, old)
        else:
            yield self._change(operation, self.resource_id(new), None, new, new)

    def _change(
        self, operation: Operation, resource_id: str, old: Image | None, new: Image | None, row: Image
    ) -> RowChange:
        user_key = self.tracking.user_key
        user_id = None
        if user_key is not None and row.get(user_key) is not None:
            user_id = self.codecs[user_key].decode(row[user_key])
        return RowChange(
            operation, self.tracking.label, resource_id, self._stored(old), self._stored(new), user_id=user_id
        )

    def _stored(self, image: Image | None) -> Image | None:
        if image is None:
            return None
        masked = self.tracking.masked
        return {key: MASK if key in masked else image[key] for key in self.tracking.recorded if key in image}

    def resource_id(self, image: Image) -> str:
        """Return the canonical text of the key that names a row in the trail."""
        parts = [self.codecs[key].as_key(image[key]) for key in self.tracking.resource_key]
        # SQLite lets a primary key be NULL, in part or all of it.
        if None in parts and self.tracking.resource_key != self.primary_key:
            raise CaptureError(
                f"A row of {self.tracking.label} has no {' and '.join(self.tracking.resource_key)}, which identifies "
                f"it in the trail; a resource_id_field is never NULL."
            )
        return key_text(parts)


class _ByDialect(WeakKeyDictionary[Dialect, AuditedTable]):
    """What is known of a table. It isn't a part of the table: a pickled one, or a deep copy, starts anew."""

    def __reduce__(self) -> Any:
        return _ByDialect, ()


def audited_table(table: Table, tracking: Tracking, dialect: Dialect) -> AuditedTable:
    """Return *table* with the codecs of its columns on *dialect*."""
    by_dialect: _ByDialect | None = table.info.get(_AUDITED_KEY)
    if by_dialect is None:
        by_dialect = table.info[_AUDITED_KEY] = _ByDialect()
    known = by_dialect.get(dialect)
    # A copy of the table, as to_metadata() makes one, has its info, too.
    if known is None or known.tracking is not tracking or known.table is not table:
        known = by_dialect[dialect] = _audited_table(table, tracking, dialect)
    return known


def _audited_table(table: Table, tracking: Tracking, dialect: Dialect) -> AuditedTable:
    keys = {*tracking.recorded, *tracking.key_columns}
    codecs = {key: _OPAQUE if key in tracking.masked else codec_of(table.columns[key].type, dialect) for key in keys}
    primary_key = tuple(column.key for column in table.primary_key)
    generated = table.autoincrement_column if dialect.name in ("mysql", "mariadb") else None
    return AuditedTable(
        table,
        tracking,
        codecs,
        primary_key,
        tuple(codecs[key] for key in primary_key),
        made_of_zero=None if generated is None else generated.key,
    )


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """A SELECT of rows' primary keys and images, without a criterion yet."""

    audited: AuditedTable
    select: Select[Any]
    primary_key: tuple[ColumnElement[Any], ...]
    _dumps: tuple[tuple[str, Callable[[Any], JSONValue]], ...]
    _ambiguous: tuple[str, ...]

    def decode(self, row: Row[Any]) -> tuple[tuple[Any, ...], Image]:
        """Return the primary key and the image of a row that was selected."""
        values = tuple(row)
        width, end = len(self.primary_key), len(self.primary_key) + len(self._dumps)
        image = {key: dump(value) for (key, dump), value in zip(self._dumps, values[width:end], strict=True)}
        for key, is_null in zip(self._ambiguous, values[end:], strict=True):
            if image[key] is None and not is_null:
                image[key] = self.audited.codecs[key].as_read.dump(JSON_NULL)
        return values[:width], image


def select_images(
    audited: AuditedTable, keys: Collection[str] | None = None, target: FromClause | None = None
) -> ImageQuery:
    """
    Return the query for the columns *keys*, all that are audited if not given, of a table, or of its alias *target*.

    It reads with Core: no object is loaded, expired or refreshed. The rows are
    locked as an UPDATE would, so that what was read is what will be changed.
    """
    source = audited.table if target is None else target
    columns = source.columns
    primary_key = tuple(columns[key] for key in audited.primary_key)
    wanted = tuple(key for key in audited.table.columns.keys() if key in (audited.codecs if keys is None else keys))
    # Python reads the SQL NULL and the JSON value null both as None: ask which it is.
    ambiguous = tuple(key for key in wanted if audited.codecs[key].as_read.json)
    query = select(
        *primary_key,
        *(audited.codecs[key].readable(columns[key]) for key in wanted),
        *(columns[key].is_(None) for key in ambiguous),
    )
    dumps = tuple((key, audited.codecs[key].as_read.dump) for key in wanted)
    return ImageQuery(audited, query.with_for_update(key_share=True, of=source), primary_key, dumps, ambiguous)


def inserted_image(images: Mapping[str, Image], audited: AuditedTable, key: tuple[Any, ...]) -> Image:
    """
    Return what an inserted row holds, of those that were read.

    Raises:
        CaptureError: it isn't there under the key that SQLAlchemy knows.
    """
    image = images.get(audited.row_key(key))
    if image is None:
        raise CaptureError(
            f"A row that was inserted into {audited.table.name} isn't there under its key: the database has made "
            f"another of it, as MariaDB does of 0, or a trigger has; let the database make the key, or give another."
        )
    return image


_IN_ARRAYS: Final = frozenset({Integer, BigInteger, SmallInteger, String, Text, Uuid})


def among(columns: Sequence[ColumnElement[Any]], rows: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Return the criterion that *columns* have the values of one of *rows*."""
    if len(columns) == 1:
        return columns[0].in_([value for (value,) in rows])
    return tuple_(*columns).in_(rows)


def _among_keys(
    columns: Sequence[ColumnElement[Any]], rows: Sequence[tuple[Any, ...]], dialect: Dialect
) -> ColumnElement[bool]:
    """Return the same for many keys as they are in objects and rows."""
    is_array = dialect.name == "postgresql" and len(columns) == 1 and type(columns[0].type) in _IN_ARRAYS
    if not is_array or len({type(value) for (value,) in rows}) > 1:
        return among(columns, rows)
    # One parameter, and one text for any number of them, take a third of the time of a thousand.
    values = [value for (value,) in rows]
    return columns[0] == any_(bindparam(None, values, type_=postgresql.ARRAY(columns[0].type)))


def read_images(
    connection: Connection,
    audited: AuditedTable,
    keys: Collection[str] | None,
    rows: Collection[tuple[Any, ...]],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Image]:
    """Return the columns *keys* of the rows with these primary keys, by `AuditedTable.row_key`."""
    query = select_images(audited, keys)
    images: dict[str, Image] = {}
    for chunk in batched(rows, ROWS_PER_SELECT):
        select_chunk = query.select.where(_among_keys(query.primary_key, chunk, connection.dialect))
        for row in connection.execute(select_chunk, execution_options=options or {}):
            key, image = query.decode(row)
            images[audited.row_key(key)] = image
    return images


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield *items* in lists of at most *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
