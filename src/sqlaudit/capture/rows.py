"""The images of a row before and after a write, and the changes that they tell. No session in here."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Dialect, Table, select, tuple_

from sqlaudit.codec import JSON_NULL, MASK, Codec, JSONValue, codec_of, key_text
from sqlaudit.tracking import Tracking
from sqlaudit.types import Operation

Image: TypeAlias = dict[str, JSONValue]
"""The encoded values of a row by column key. A key that is missing: nobody knows, or nobody asked."""

ROWS_PER_SELECT: Final = 1000

# A masked column's values are compared, never stored: any type will do.
_OPAQUE: Final = Codec(lambda value: value, lambda stored: stored)


@dataclass(frozen=True, slots=True)
class RowChange:
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

    def row_key(self, values: tuple[Any, ...]) -> str:
        """Return the canonical text of a primary key."""
        return key_text([self.codecs[key].dump(value) for key, value in zip(self.primary_key, values, strict=True)])

    def changes(self, operation: Operation, old: Image, new: Image) -> Iterator[RowChange]:
        """
        Yield what happened to a row: nothing if it is the same, two changes if its key is another.

        *old* and *new* hold every recorded column for an insert, a delete or
        another key; for an update those that may have changed, and the resource key.
        """
        if operation is Operation.UPDATE:
            before, after = self._resource_id(old), self._resource_id(new)
            if before != after:
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
            yield self._change(operation, self._resource_id(old), old, None, old)
        else:
            yield self._change(operation, self._resource_id(new), None, new, new)

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

    def _resource_id(self, image: Image) -> str:
        return key_text([image[key] for key in self.tracking.resource_key])


def audited_table(table: Table, tracking: Tracking, dialect: Dialect) -> AuditedTable:
    """Return *table* with the codecs of its columns on *dialect*."""
    keys = {*tracking.recorded, *tracking.key_columns}
    codecs = {key: _OPAQUE if key in tracking.masked else codec_of(table.columns[key].type, dialect) for key in keys}
    return AuditedTable(table, tracking, codecs, tuple(column.key for column in table.primary_key))


def read_images(
    connection: Connection, audited: AuditedTable, keys: Collection[str], rows: Collection[tuple[Any, ...]]
) -> dict[str, Image]:
    """
    Return the columns *keys* of the rows with these primary keys, by `AuditedTable.row_key`.

    Reads with Core: no object is loaded, expired or refreshed. The rows are
    locked as an UPDATE would, so that what was read is what will be changed.
    """
    columns = audited.table.columns
    primary_key = [columns[key] for key in audited.primary_key]
    wanted = [key for key in columns.keys() if key in keys]
    # Python reads the SQL NULL and the JSON value null both as None: ask which it is.
    ambiguous = [key for key in wanted if audited.codecs[key].json and not audited.codecs[key].sees_null]
    query = select(
        *primary_key, *(columns[key] for key in wanted), *(columns[key].is_(None) for key in ambiguous)
    ).with_for_update(key_share=True)

    images: dict[str, Image] = {}
    ordered = list(rows)
    for start in range(0, len(ordered), ROWS_PER_SELECT):
        chunk = ordered[start : start + ROWS_PER_SELECT]
        criterion = (
            primary_key[0].in_([key for (key,) in chunk]) if len(primary_key) == 1 else tuple_(*primary_key).in_(chunk)
        )
        for row in connection.execute(query.where(criterion)):
            key_values, rest = tuple(row[: len(primary_key)]), row[len(primary_key) :]
            values = dict(zip(wanted, rest, strict=False))
            for key, is_null in zip(ambiguous, rest[len(wanted) :], strict=True):
                if values[key] is None and not is_null:
                    values[key] = JSON_NULL
            images[audited.row_key(key_values)] = {
                key: audited.codecs[key].dump(value) for key, value in values.items()
            }
    return images
