"""DML that can't be captured, found in what is about to be sent."""

import re
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.sql.dml import UpdateBase

from sqlaudit.capture.statements import written_table
from sqlaudit.exceptions import UncapturedStatementError
from sqlaudit.tracking import all_tracked, tracking_of

__all__ = ["find_hidden_dml", "find_text_dml"]


_TOKENS: Final = re.compile(
    r"""(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`)"""
    r"""|\bE'(?:[^'\\]|\\.|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/""",
    re.DOTALL | re.IGNORECASE,
)
"""Quoted names; literals and comments, in which nothing is done."""
_DEFINES: Final = re.compile(r"\s*(?:create|alter|drop|comment)\b", re.IGNORECASE)
"""A trigger's body may write; defining it doesn't."""
_NAME: Final = r"""(?:"(?:[^"]|"")+"|`[^`]+`|\[[^\]]+\]|[\w$]+)"""
_PATH: Final = rf"(?:only\b\s*)?\(?\s*(?:{_NAME}\s*\.\s*)*({_NAME})"
_WRITES: Final = re.compile(
    r"\b(insert\s+(?:or\s+\w+\s+|ignore\s+)?into|replace\s+into|update(?:\s+or\s+\w+)?|delete\s+from|merge\s+into|copy)\b\s*"
    + _PATH,
    re.IGNORECASE,
)
_MODIFIERS: Final = r"(?:(?:low_priority|high_priority|delayed|quick|ignore)\s+)*"
_MYSQL_INSERTS: Final = re.compile(rf"^\s*(insert|replace)\s+{_MODIFIERS}(?:into\s+)?{_PATH}", re.IGNORECASE)
_MYSQL_UPDATES: Final = re.compile(rf"\b(update)\s+{_MODIFIERS}(.+?)\bset\b", re.IGNORECASE | re.DOTALL)
_MYSQL_DELETES: Final = re.compile(
    rf"\b(delete)\s+{_MODIFIERS}(.+?)(?:\bwhere\b|\border\s+by\b|\blimit\b|\breturning\b|;|$)",
    re.IGNORECASE | re.DOTALL,
)
_MYSQL_LOADS: Final = re.compile(rf"\b(load)\s+(?:data|xml)\b.*?\binto\s+table\s+{_PATH}", re.IGNORECASE | re.DOTALL)
_MYSQL_HINTS: Final = re.compile(r"/\*M?!\d*")
"""What is in such a comment is executed."""
_TRUNCATES: Final = re.compile(r"\btruncate\b(?:\s+table\b)?([^;]*)", re.IGNORECASE)


def find_text_dml(sql: str, dialect: str) -> UncapturedStatementError | None:
    """Return the refusal of textual SQL that names a tracked table as what it writes; None if it doesn't."""
    names = {table.name.lower(): table for table in list(all_tracked())}
    is_mysql = dialect in ("mysql", "mariadb")
    if is_mysql:
        sql = _MYSQL_HINTS.sub(" ", sql)
    sql = _TOKENS.sub(lambda token: token["name"] or " ", sql)
    if _DEFINES.match(sql):
        return None
    written = [(verb.split()[0], name) for verb, name in _WRITES.findall(sql)]
    written += [("truncate", name) for listed in _TRUNCATES.findall(sql) for name in re.findall(_NAME, listed)]
    if is_mysql:
        written += _MYSQL_INSERTS.findall(sql) + _MYSQL_LOADS.findall(sql)
        # Of a join, any table may be what is written.
        for verb, tables in (*_MYSQL_UPDATES.findall(sql), *_MYSQL_DELETES.findall(sql)):
            written += [(verb, name) for name in re.findall(_NAME, tables)]
    for verb, name in written:
        table = names.get(name.strip('"`[]').replace('""', '"').lower())
        if table is not None:
            return _refusal(f"{verb.upper()} in text", table)
    return None


def find_hidden_dml(compiled: Any) -> UncapturedStatementError | None:
    """Return the refusal of a statement with DML of a tracked table in a common table expression; None without."""
    for cte in compiled.ctes:
        element = cte.element
        table = written_table(element) if isinstance(element, UpdateBase) else None
        if table is not None and tracking_of(table) is not None:
            return _refusal("DML in a common table expression", table)
    return None


def _refusal(what: str, table: Table) -> UncapturedStatementError:
    return UncapturedStatementError(
        what, table.name, "use insert(), update() or delete() of SQLAlchemy as a statement of its own"
    )
