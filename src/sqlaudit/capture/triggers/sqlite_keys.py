"""By what the rows of a table of SQLite's are unique, as the database has it."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from sqlaudit.capture.triggers.sqlite_values import quoted
from sqlaudit.exceptions import TrackingError

__all__ = ["UniqueKey", "row_name", "unique_keys"]


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A unique index: of a constraint, the primary key, or an index of its own."""

    columns: tuple[str, ...]
    """Its plain columns."""
    parts: tuple[tuple[str, str], ...]
    """Column or expression of each part, quoted, and its collation."""
    where: str | None
    """The criterion of a partial index."""
    fresh: str
    """A source in which the columns of the new row have their names."""

    @property
    def is_computed(self) -> bool:
        """Whether more than the plain columns decides."""
        return self.where is not None or len(self.columns) < len(self.parts)

    def is_met(self, row: str) -> str:
        """Return the criterion that *row*, an alias of the table, has the key of the new row."""
        criteria = []
        for part, collation in self.parts:
            new = f"NEW.{part}" if part in self._quoted else f"(SELECT {part} FROM {self.fresh})"
            old = f"{row}.{part}" if part in self._quoted else f"({part})"
            criteria.append(f"{old} = {new} COLLATE {quoted(collation)}")
        if self.where is not None:
            criteria.append(f"({self.where}) AND (SELECT {self.where} FROM {self.fresh})")
        return " AND ".join(criteria)

    @property
    def _quoted(self) -> Collection[str]:
        return {quoted(name) for name in self.columns}


def unique_keys(connection: Connection, table: str, columns: Sequence[str]) -> Iterator[UniqueKey]:
    """Yield the unique indexes of a table; the rowid is none."""
    fresh = "(SELECT " + ", ".join(f"NEW.{quoted(name)} AS {quoted(name)}" for name in columns) + ")"
    listed = 'SELECT name, partial FROM pragma_index_list(?) WHERE "unique" ORDER BY seq DESC'
    for name, is_partial in connection.exec_driver_sql(listed, (table,)).all():
        parts_query = "SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno"
        parts = connection.exec_driver_sql(parts_query, (name,)).all()
        expressions: Sequence[str] = ()
        where = None
        if is_partial or any(cid == -2 for cid, *_ in parts):
            query = "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?"
            expressions, where = _parsed(str(connection.exec_driver_sql(query, (name,)).scalar_one()))
        yield UniqueKey(
            columns=tuple(column for cid, column, _ in parts if cid >= 0),
            parts=tuple(
                (quoted(column) if cid >= 0 else expressions[place], collation)
                for place, (cid, column, collation) in enumerate(parts)
            ),
            where=where,
            fresh=fresh,
        )


def row_name(connection: Connection, table: str, columns: Collection[str]) -> str | None:
    """
    Return what a table calls its rowid, which isn't one of its *columns*, by lower name; None for WITHOUT ROWID.

    Raises:
        TrackingError: columns have all the names.
    """
    own = "SELECT name FROM pragma_index_list(?) WHERE origin = 'pk'"
    for index in connection.exec_driver_sql(own, (table,)).scalars().all():
        query = "SELECT count(*) FROM pragma_index_xinfo(?) WHERE cid = -1"
        if connection.exec_driver_sql(query, (index,)).scalar_one() == 0:
            return None
    for name in ("rowid", "_rowid_", "oid"):
        if name not in columns:
            return name
    raise TrackingError(
        f"The table {table} has columns called rowid, _rowid_ and oid, so its triggers can't name its rows; call one of "
        f"them otherwise, or record the table with capture=Capture.SESSION."
    )


_TOKENS: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|\s+|.""", re.DOTALL
)


def _parsed(definition: str) -> tuple[list[str], str | None]:
    """Return the parts of a CREATE INDEX, without collation and direction, and its criterion."""
    depth = 0
    parts: list[list[str]] = [[]]
    rest: list[str] = []
    is_listed = is_past = False
    for token in _TOKENS.findall(definition):
        if token.startswith(("--", "/*")):
            continue
        if is_past:
            rest.append(token)
            continue
        depth += (token == "(") - (token == ")")
        if not is_listed:
            is_listed = depth == 1
        elif depth == 0:
            is_past = True
        elif token == "," and depth == 1:
            parts.append([])
        else:
            parts[-1].append(token)
    expressions = [_SUFFIX.sub("", "".join(part).strip()) for part in parts]
    _, found, where = "".join(rest).strip().partition(" ") if rest else ("", "", "")
    return expressions, where.strip() if found else None


_SUFFIX: Final = re.compile(r"""(\s+COLLATE\s+("(?:[^"]|"")*"|\w+))?(\s+(ASC|DESC))?\s*$""", re.IGNORECASE)
