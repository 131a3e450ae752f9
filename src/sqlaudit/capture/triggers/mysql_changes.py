"""The bodies of MariaDB's triggers: what happened to a row, as a row of the trail."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Column, Dialect, Table, types as sqltypes
from sqlalchemy.types import TypeDecorator

from sqlaudit.capture.rows import AuditedTable
from sqlaudit.capture.triggers.mysql_values import (
    Encoder,
    encoder_of,
    identifier,
    json_text,
    literal,
    masked_encoder,
)
from sqlaudit.exceptions import TrackingError
from sqlaudit.types import Operation

__all__ = ["Place", "Row", "Writer", "row"]


class Place(NamedTuple):
    """A table of the database."""

    schema: str
    name: str


Row: TypeAlias = Callable[[str], str]
"""The SQL of a row's value, by the name of the column."""

Source: TypeAlias = tuple[str, str] | None
"""What a SELECT begins and ends with, of rows that are recorded; None: the row of the trigger."""


def row(name: str, changed: Mapping[str, str] | None = None) -> Row:
    """Return the row that SQL calls *name*, with other values in some of its columns."""
    others = changed or {}
    return lambda column: others.get(column) or f"{name}.{identifier(column)}"


_OLD: Final = row("OLD")
_NEW: Final = row("NEW")


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """Writes the SQL that records the changes of one table."""

    place: Place
    audited: AuditedTable
    trail: Table
    trail_place: Place
    dialect: Dialect
    _encoders: dict[str, Encoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse at once what can't be written."""
        tracking = self.audited.tracking
        for key in {*tracking.recorded, *tracking.resource_key}:
            column = self.audited.table.columns[key]
            make = masked_encoder if key in tracking.masked else encoder_of
            self._encoders[key] = make(column, self.dialect)
        if tracking.user_key is not None:
            self._encoders.setdefault(tracking.user_key, self._user_encoder(tracking.user_key))

    @property
    def primary_key(self) -> list[str]:
        """The names of the columns of the primary key."""
        return [column.name for column in self.audited.table.primary_key]

    def insert(self) -> str:
        """Return the body of the trigger after an INSERT."""
        return self._body("inserts", self.inserted(_NEW))

    def delete(self) -> str:
        """Return the body of the trigger after a DELETE."""
        return self._body("deletes", self.deleted(_OLD))

    def update(self) -> str:
        """Return the body of the trigger after an UPDATE."""
        other_key = self.other_key(_OLD, _NEW)
        return self._body(
            "updates",
            f"IF {other_key} THEN\n"
            f"{indent(self.deleted(_OLD), '  ')}\n"
            f"{indent(self.inserted(_NEW), '  ')}\n"
            f"ELSEIF {self.differs(_OLD, _NEW)} THEN\n"
            f"{indent(self.updated(_OLD, _NEW), '  ')}\n"
            f"END IF;",
        )

    def _body(self, what: str, statements: str) -> str:
        label = " ".join(self.audited.tracking.label.split())
        recorded = self.unless_by_session(BEGINNING + "\n" + statements)
        return (
            f"BEGIN\n"
            f"  -- sqlaudit, version 1: records the {what} of {' '.join(self.place.name.split())} as changes of {label}\n"
            f"{DECLARED}\n"
            f"{indent(recorded, '  ')}\n"
            f"END"
        )

    def unless_by_session(self, statements: str) -> str:
        """Return *statements* under the condition that no session records the rows of the table itself."""
        # JSON may write a label in two ways.
        label = self.audited.tracking.label
        forms = dict.fromkeys((json_text(label), json.dumps(label)))
        silent = " OR ".join(f"JSON_CONTAINS(published, {literal(form)}, '$.by_session')" for form in forms)
        return f"IF published IS NULL OR NOT COALESCE({silent}, FALSE) THEN\n{indent(statements, '  ')}\nEND IF;"

    def inserted(self, new: Row, source: Source = None) -> str:
        """Return the INSERT of the change that a row of this table came; of each row of *source*."""
        return self._recorded(Operation.INSERT, new, "NULL", self._image(new), source)

    def deleted(self, old: Row, source: Source = None) -> str:
        """Return the INSERT of the change that a row went."""
        return self._recorded(Operation.DELETE, old, self._image(old), "NULL", source)

    def updated(self, old: Row, new: Row, source: Source = None) -> str:
        """Return the INSERT of the change that a row became another."""
        sides = self._changed(old, old, new), self._changed(new, old, new)
        return self._recorded(Operation.UPDATE, new, *sides, source)

    def _recorded(self, operation: Operation, of_row: Row, old_values: str, new_values: str, source: Source) -> str:
        tracking = self.audited.tracking
        columns = self.trail.columns
        user = "JSON_VALUE(published, '$.user')"
        if tracking.user_key is not None:
            user = f"COALESCE({user}, {self._text(tracking.user_key, of_row)})"
        values: dict[Any, str] = {
            columns.transaction_id: self._transaction(),
            columns.recorded_at: _CLOCK,
            columns.operation: literal(operation.value),
            columns.resource_type: literal(tracking.label),
            columns.resource_id: self.resource_id(of_row),
            columns.changed_by: user,
            columns.impersonated_by: "JSON_VALUE(published, '$.impersonator')",
            columns.reason: "JSON_VALUE(published, '$.reason')",
            columns.context: _FACTS,
            columns.old_values: old_values,
            columns.new_values: new_values,
        }
        names = ", ".join(identifier(column.name) for column in values)
        listed = indent(",\n".join(values.values()), "  ")
        # What foreign keys do is recorded by a trigger of another table, which may be in another schema.
        is_near = source is None and self.trail_place.schema == self.place.schema
        target = identifier(None if is_near else self.trail_place.schema, self.trail_place.name)
        if source is None:
            return f"INSERT INTO {target} ({names})\nVALUES (\n{listed}\n);"
        beginning, end = source
        return f"INSERT INTO {target} ({names})\n{beginning}SELECT\n{listed}\n{end};"

    def _transaction(self) -> str:
        # Without a type for it, SQLAlchemy stores the digits alone.
        kind = self.trail.columns.transaction_id.type.compile(dialect=self.dialect)
        return _TRANSACTION if kind == "UUID" else f"REPLACE({_TRANSACTION}, '-', '')"

    def differs(self, old: Row, new: Row) -> str:
        """Return whether something that is recorded differs."""
        return "\n  OR ".join(self._differs(key, old, new) for key in self.audited.tracking.recorded)

    def other_key(self, old: Row, new: Row) -> str:
        """Return whether two rows are two resources."""
        return f"NOT (BINARY {self.resource_id(old)} <=> BINARY {self.resource_id(new)})"

    def resource_id(self, of_row: Row) -> str:
        """Return the text of the key that names a row in the trail."""
        keys = self.audited.tracking.resource_key
        if len(keys) == 1:
            return self._text(keys[0], of_row)
        parts = ", ',', ".join(self._json(key, of_row, is_key=True) for key in keys)
        return f"CONCAT('[', {parts}, ']')"

    def _image(self, of_row: Row) -> str:
        members = [
            f"{literal(('{' if place == 0 else ',') + json_text(key) + ':')}, {self._stored(key, of_row)}"
            for place, key in enumerate(self.audited.tracking.recorded)
        ]
        listed = indent(",\n".join(members), "  ")
        return f"CONCAT(\n{listed}, '}}'\n)"

    def _changed(self, of_row: Row, old: Row, new: Row) -> str:
        members = [
            f"IF({self._differs(key, old, new)}, CONCAT({literal(',' + json_text(key) + ':')}, "
            f"{self._stored(key, of_row)}), '')"
            for key in self.audited.tracking.recorded
        ]
        listed = indent(",\n".join(members), "  ")
        return f"CONCAT('{{', SUBSTRING(CONCAT(\n{listed}\n), 2), '}}')"

    def _stored(self, key: str, of_row: Row) -> str:
        if key in self.audited.tracking.masked:
            return """'{"$masked":true}'"""
        return self._json(key, of_row)

    def _value(self, key: str, of_row: Row, *, is_key: bool = False) -> str:
        column = self.audited.table.columns[key]
        value = of_row(column.name)
        return f"RTRIM({value})" if is_key and self.audited.codecs[key].is_padded else value

    def _json(self, key: str, of_row: Row, *, is_key: bool = False) -> str:
        return self._encoders[key].json(self._value(key, of_row, is_key=is_key))

    def _text(self, key: str, of_row: Row) -> str:
        return self._encoders[key].text(self._value(key, of_row, is_key=True))

    def _differs(self, key: str, old: Row, new: Row) -> str:
        return self._encoders[key].differs(self._value(key, old), self._value(key, new))

    def _user_encoder(self, key: str) -> Encoder:
        column: Column[Any] = self.audited.table.columns[key]
        if not isinstance(column.type, (sqltypes.Integer, sqltypes.String, sqltypes.Uuid)) or isinstance(
            column.type, (sqltypes.Enum, TypeDecorator)
        ):
            raise TrackingError(
                f"Triggers can't write {self.audited.table.fullname}.{key} as a user's id, as Python would: its type "
                f"is {column.type!r}; use Capture.SESSION for the table, or leave out user_id_field."
            )
        return encoder_of(column, self.dialect)


DECLARED: Final = "  DECLARE published LONGTEXT CHARACTER SET utf8mb4 DEFAULT @sqlaudit_published;"

BEGINNING: Final = """\
IF JSON_VALUE(published, '$.transaction') IS NULL AND NOT (NOW(6) <=> @sqlaudit_statement) THEN
  -- Nobody says which statements are of one transaction: each is one of its own.
  SET @sqlaudit_statement = NOW(6), @sqlaudit_random = MD5(UUID());
  SET @sqlaudit_transaction = CONCAT(
    LPAD(LOWER(HEX(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000)), 12, '0'),
    '7', LEFT(@sqlaudit_random, 3),
    SUBSTRING('89ab', 1 + (ASCII(SUBSTRING(@sqlaudit_random, 4)) & 3), 1), SUBSTRING(@sqlaudit_random, 5, 15)
  );
  SET @sqlaudit_transaction = INSERT(INSERT(@sqlaudit_transaction, 13, 0, '-'), 9, 0, '-');
  SET @sqlaudit_transaction = INSERT(INSERT(@sqlaudit_transaction, 24, 0, '-'), 19, 0, '-');
END IF;"""

# Of a variable that was never set, nobody knows the character set.
_TRANSACTION: Final = "COALESCE(JSON_VALUE(published, '$.transaction'), CONVERT(@sqlaudit_transaction USING utf8mb4))"

# NOW() is the beginning of the statement, which may have waited for a lock; SYSDATE() isn't, but is local time.
_CLOCK: Final = "UTC_TIMESTAMP(6) + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND"

_FACTS: Final = """\
IF(
  published IS NULL,
  CONCAT(
    '{"database_user": ',
    JSON_QUOTE(LEFT(USER(), CHAR_LENGTH(USER()) - CHAR_LENGTH(SUBSTRING_INDEX(USER(), '@', -1)) - 1)),
    ', "client_address": ', JSON_QUOTE(SUBSTRING_INDEX(USER(), '@', -1)), '}'
  ),
  NULLIF(JSON_EXTRACT(published, '$.facts'), 'null')
)"""
