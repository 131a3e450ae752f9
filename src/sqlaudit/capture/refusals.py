"""DML that can't be captured, or may be hidden, found in what is about to be sent."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import CompoundSelect, Select, Table
from sqlalchemy.sql.dml import UpdateBase

from sqlaudit.capture.division import leading_to_triggers, tracking_in_session
from sqlaudit.capture.statements import written_table
from sqlaudit.exceptions import UncapturedStatementError
from sqlaudit.tracking import all_tracked

__all__ = ["is_plain_read", "refusal_of", "tables_in_expressions", "tables_in_text"]


_TOKENS: Final = re.compile(
    r"""(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`)"""
    r"""|\bE'(?:[^'\\]|\\.|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/""",
    re.DOTALL | re.IGNORECASE,
)
"""Quoted names; literals and comments, in which nothing is done."""
_DEFINES_CODE: Final = re.compile(
    r"\s*(?:create|alter)\b(?:\s+or\s+replace\b)?"
    r"(?:\s+(?:temp|temporary|constraint|aggregate|definer\s*=\s*\S+(?:\s*@\s*\S+)?))*"
    r"\s+(?:trigger|function|procedure|package|event|rule)\b",
    re.IGNORECASE,
)
"""A trigger's body may write; defining it doesn't."""
_RUNS_LITERAL: Final = re.compile(r"(?:^|;)\s*do\b|\bexecute\s+immediate\b|\bprepare\s+\S+\s+from\b", re.IGNORECASE)
"""What is in its literals is executed."""
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
_MYSQL_DEFINITIONS: Final = re.compile(r"(?:^|(?<=;))\s*(?:create|alter|drop)\b[^;]*", re.IGNORECASE)
"""ON DELETE and ON UPDATE of a foreign key would be taken for DML of several tables."""
_MYSQL_HINTS: Final = re.compile(r"/\*M?!\d*")
"""What is in such a comment is executed."""
_TRUNCATES: Final = re.compile(r"\btruncate\b(?:\s+table\b)?([^;]*)", re.IGNORECASE)


def tables_in_text(sql: str, dialect: str) -> Iterator[tuple[str, Table]]:
    """Yield what textual SQL writes, verb and table, of the tables that a capture has to know of."""
    names: dict[str, set[Table]] = {}
    for table in {*all_tracked(), *leading_to_triggers()}:
        names.setdefault(table.name.lower(), set()).add(table)
    is_mysql = dialect in ("mysql", "mariadb")
    if is_mysql:
        sql = _MYSQL_HINTS.sub(" ", sql)
    code = _TOKENS.sub(lambda token: token["name"] or " ", sql)
    if _DEFINES_CODE.match(code):
        return
    if not _RUNS_LITERAL.search(code):
        sql = _MYSQL_DEFINITIONS.sub(" ", code) if is_mysql else code
    written = [(verb.split()[0], name) for verb, name in _WRITES.findall(sql)]
    written += [("truncate", name) for listed in _TRUNCATES.findall(sql) for name in re.findall(_NAME, listed)]
    if is_mysql:
        written += _MYSQL_INSERTS.findall(sql) + _MYSQL_LOADS.findall(sql)
        # Of a join, any table may be what is written.
        for verb, tables in (*_MYSQL_UPDATES.findall(sql), *_MYSQL_DELETES.findall(sql)):
            written += [(verb, name) for name in re.findall(_NAME, tables)]
    for verb, name in written:
        for table in names.get(name.strip('"`[]').replace('""', '"').lower(), ()):
            yield f"{verb.upper()} in text", table


def tables_in_expressions(compiled: Any) -> Iterator[tuple[str, Table]]:
    """Yield what the common table expressions of a statement write."""
    for cte in compiled.ctes:
        table = written_table(cte.element) if isinstance(cte.element, UpdateBase) else None
        if table is not None:
            yield "DML in a common table expression", table


def refusal_of(writes: Iterable[tuple[str, Table]]) -> UncapturedStatementError | None:
    """Return why writes that no statement capture sees are refused; None if sessions have nothing to record of them."""
    for what, table in writes:
        if tracking_in_session(table) is not None:
            remedy = "use insert(), update() or delete() of SQLAlchemy as a statement of its own"
            return UncapturedStatementError(what, table.name, remedy)
    return None


_CALLS: Final = re.compile(
    r"""(?<![\w$])(?!(?:all|and|any|as|between|by|case|cast|distinct|else|except|exists|filter|from|group|having|in"""
    r"""|intersect|join|lateral|like|not|on|or|over|select|then|union|using|values|when|where|with|within"""
    r"""|char|decimal|numeric|varchar"""
    r"""|abs|avg|coalesce|count|length|lower|max|min|nullif|row_number|sum|trim|upper)\s*\()[\w$]+\s*\(|\.\s*[\w$]+\s*\(|["`]\s*\(""",
    re.IGNORECASE,
)
"""A function, unless it is known to write nothing."""

_plain: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def is_plain_read(compiled: Any) -> bool:
    """Return whether a compiled statement is a SELECT, or the like, that calls no function that may write."""
    known = _plain.get(compiled)
    if known is None:
        is_select = isinstance(getattr(compiled, "statement", None), (Select, CompoundSelect))
        known = _plain[compiled] = is_select and _CALLS.search(compiled.string) is None
    return known
