"""The images of a row before and after a write, and the changes that they tell. No session in here."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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

from sqlaudit.capture.reuse import reusable
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
    "narrowed_table",
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
        if len(values) == 1 and type(values[0]) is int and int in self.key_codecs[0].plain:
            # Most keys are: this is asked for several times for each row.
            return str(values[0])
        return key_text([codec.as_key(codec.dump(value)) for codec, value in zip(self.key_codecs, values, strict=True)])

    def changes(self, operation: Operation, old: Image, new: Image) -> Sequence[RowChange]:
        """
        Return what happened to a row: nothing if it is the same, two changes if its key is another.

        *old* and *new* hold every recorded column for an insert, a delete or
        another key; for an update those that may have changed, and the resource key.
        """
        if operation is Operation.DELETE:
            return (self._change(operation, self.resource_id(old), self._stored(old), None, old),)
        if operation is not Operation.UPDATE:
            return (self._change(operation, self.resource_id(new), None, self._stored(new), new),)
        after = self.resource_id(new)
        is_same_key = [old[key] for key in self.tracking.resource_key] == [
            new[key] for key in self.tracking.resource_key
        ]
        if not is_same_key and (before := self.resource_id(old)) != after:
            return (
                self._change(Operation.DELETE, before, self._stored(old), None, old),
                self._change(Operation.INSERT, after, None, self._stored(new), new),
            )
        changed = {
            key: old[key]
            for key in self.tracking.recorded
            if key in old and key in new and not self.codecs[key].same(old[key], new[key])
        }
        if not changed:
            return ()
        return (
            self._change(
                operation, after, self._stored(changed), self._stored({key: new[key] for key in changed}), new
            ),
        )

    def _change(
        self, operation: Operation, resource_id: str, old: Image | None, new: Image | None, row: Image
    ) -> RowChange:
        user_key = self.tracking.user_key
        user_id = None
        if user_key is not None and row.get(user_key) is not None:
            user_id = self.codecs[user_key].decode(row[user_key])
        return RowChange(operation, self.tracking.label, resource_id, old, new, user_id)

    def _stored(self, image: Image) -> Image:
        masked, recorded = self.tracking.masked, self.tracking.recorded
        if not masked and tuple(image) == recorded:
            return image
        return {key: MASK if key in masked else image[key] for key in recorded if key in image}

    def resource_id(self, image: Image) -> str:
        """Return the canonical text of the key that names a row in the trail."""
        resource_key = self.tracking.resource_key
        if len(resource_key) == 1 and type(part := image[resource_key[0]]) is int:
            return str(part)
        parts = [self.codecs[key].as_key(image[key]) for key in resource_key]
        # SQLite lets a primary key be NULL, in part or all of it.
        if None in parts and resource_key != self.primary_key:
            raise CaptureError(
                f"A row of {self.tracking.label} has no {' and '.join(resource_key)}, which identifies "
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


def narrowed_table(table: Table, tracking: Tracking, dialect: Dialect, keys: Collection[str]) -> AuditedTable | None:
    """Return *table* as a database has it that lacks columns: None if it lacks its key."""
    needed = {*tracking.key_columns, *(column.key for column in table.primary_key)}
    fields = tuple(key for key in tracking.fields if key in keys)
    if not fields or not needed.issubset(keys):
        return None
    recorded = tuple(key for key in tracking.recorded if key in keys)
    if recorded == tracking.recorded:
        return audited_table(table, tracking, dialect)
    return _audited_table(table, replace(tracking, fields=fields, recorded=recorded), dialect)


def _audited_table(table: Table, tracking: Tracking, dialect: Dialect) -> AuditedTable:
    keys = {*tracking.recorded, *tracking.key_columns}
    codecs = {
        key: _OPAQUE if key in tracking.masked else codec_of(column.type, dialect)
        for key, column in table.columns.items()
        if key in keys
    }
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
    _codecs: tuple[tuple[str, Codec], ...]
    _ambiguous: tuple[str, ...]

    def decode(self, row: Row[Any]) -> tuple[tuple[Any, ...], Image]:
        """Return the primary key and the image of a row that was selected."""
        values = tuple(row)
        width, end = len(self.primary_key), len(self.primary_key) + len(self._codecs)
        image = {
            key: value if type(value) in codec.plain else codec.dump(value)
            for (key, codec), value in zip(self._codecs, values[width:end], strict=True)
        }
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
    codecs = tuple((key, audited.codecs[key].as_read) for key in wanted)
    return ImageQuery(audited, query.with_for_update(key_share=True, of=source), primary_key, codecs, ambiguous)


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


@lru_cache(maxsize=256)
def _images_by_keys(audited: AuditedTable, keys: frozenset[str] | None, *, in_array: bool) -> ImageQuery:
    """Return the query for the rows whose primary keys are the parameter *keys*: a list of values, or of tuples."""
    query = select_images(audited, keys)
    columns = query.primary_key
    criterion: ColumnElement[bool]
    if in_array:
        # One parameter, and one text for any number of them, take a third of the time of a thousand.
        criterion = columns[0] == any_(bindparam("keys", type_=postgresql.ARRAY(columns[0].type)))
    else:
        key = columns[0] if len(columns) == 1 else tuple_(*columns)
        criterion = key.in_(bindparam("keys", expanding=True))
    return replace(query, select=reusable(query.select.where(criterion)))


def read_images(
    connection: Connection,
    audited: AuditedTable,
    keys: Collection[str] | None,
    rows: Collection[tuple[Any, ...]],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Image]:
    """Return the columns *keys* of the rows with these primary keys, by `AuditedTable.row_key`."""
    images: dict[str, Image] = {}
    columns = audited.table.primary_key.columns.values()
    may_be_array = connection.dialect.name == "postgresql" and len(columns) == 1 and type(columns[0].type) in _IN_ARRAYS
    wanted = None if keys is None else frozenset(keys)
    for chunk in batched(rows, ROWS_PER_SELECT):
        values = [value for (value,) in chunk] if len(columns) == 1 else chunk
        in_array = may_be_array and len({*map(type, values)}) == 1
        query = _images_by_keys(audited, wanted, in_array=in_array)
        for row in connection.execute(query.select, {"keys": values}, execution_options=options or {}):
            key, image = query.decode(row)
            images[audited.row_key(key)] = image
    return images


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield *items* in lists of at most *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
