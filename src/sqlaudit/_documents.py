"""What is asked of a JSON object in a column: the same on every database. No session in here."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, String, Text, cast, false, func, literal, or_, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean

from sqlaudit.codec import JSONValue


def has_key(document: ColumnElement[Any], key: str) -> ColumnElement[bool]:
    """Return the criterion that a JSON object has *key*, be its value null."""
    return _HasKey(document, literal(key, String()), literal(_path(key), String()))


def has_value(document: ColumnElement[Any], key: str, stored: JSONValue) -> ColumnElement[bool]:
    """
    Return the criterion that a JSON object has the value *stored* under *key*.

    Numbers are compared by value (1 is 1.0, but not true), objects in any order of their keys.
    """
    kind = _HasDocument if isinstance(stored, (dict, list)) else _HasScalar
    return kind(
        document,
        literal(key, String()),
        literal(_path(key), String()),
        literal(json.dumps(stored), String()),
        literal(json.dumps({key: stored}), String()),
    )


def has_padded(document: ColumnElement[Any], key: str, text: str) -> ColumnElement[bool]:
    """Return the criterion that a JSON object has *text* under *key*, whatever blanks are at the end of either."""
    return func.rtrim(text_in(document, key)) == text.rstrip(" ")


def has_values(
    changes: FromClause, renamed: Mapping[str, str], keys: Sequence[str], stored: Sequence[Sequence[Any]]
) -> ColumnElement[bool]:
    """
    Return the criterion that a row has, or had, one of several stored values under *keys*.

    *renamed* has the key of today by that of older changes, which are looked at, too.
    """
    if not stored:
        return false()
    texts = [tuple(part if isinstance(part, str) else json.dumps(part) for part in parts) for parts in stored]
    return or_(
        *(
            places[0].in_([text for (text,) in texts]) if len(places) == 1 else tuple_(*places).in_(texts)
            for places in texts_in(changes, renamed, keys)
        )
    )


def texts_in(
    changes: FromClause, renamed: Mapping[str, str], keys: Sequence[str]
) -> Iterator[list[ColumnElement[str]]]:
    """Yield the places in which the values of *keys* may stand together, as text: in each side, under each name."""
    # As text, whatever the size of a number.
    names = itertools.product(*([key, *(old for old, new in renamed.items() if new == key)] for key in keys))
    for each in names:
        for side in (changes.c.new_values, changes.c.old_values):
            yield [text_in(side, key) for key in each]


def text_in(document: Any, key: str) -> ColumnElement[str]:
    """Return what a JSON object has under *key* as text: a string itself, a number as JSON writes it."""
    return cast(document[key].as_string(), Text)


def _path(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'$."{escaped}"'


class _HasKey(FunctionElement[bool]):
    """Its arguments: document, key, path."""

    type = Boolean()
    inherit_cache = True


class _HasScalar(FunctionElement[bool]):
    """Its arguments: document, key, path, the value as JSON, an object that has it under the key."""

    type = Boolean()
    inherit_cache = True


class _HasDocument(FunctionElement[bool]):
    """The same for an array or object."""

    type = Boolean()
    inherit_cache = True


_DOCUMENT, _KEY, _PATH, _VALUE, _OBJECT = range(5)


def _sql_of(element: Any, arguments: Sequence[int], compiler: Any, kw: dict[str, Any]) -> list[str]:
    """Return the SQL of some of the arguments: those that a database has no use for aren't sent."""
    clauses = list(element.clauses)
    return [compiler.process(clauses[each], **kw) for each in arguments]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@compiles(_HasKey, "postgresql")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, key = _sql_of(element, (_DOCUMENT, _KEY), compiler, kw)
    return f"jsonb_exists({document}, {key})"


@compiles(_HasScalar, "postgresql")
@compiles(_HasDocument, "postgresql")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, key, value = _sql_of(element, (_DOCUMENT, _KEY, _VALUE), compiler, kw)
    return f"(({document} -> {key}) = CAST({value} AS JSONB))"


# --- SQLite ----------------------------------------------------------------------------------------------------------


@compiles(_HasKey, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, path = _sql_of(element, (_DOCUMENT, _PATH), compiler, kw)
    return f"(json_type({document}, {path}) IS NOT NULL)"


def _kind(json_type: str) -> str:
    """Return *json_type*, or 'integer' for any number."""
    return f"(CASE {json_type} WHEN 'real' THEN 'integer' ELSE {json_type} END)"


@compiles(_HasScalar, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, path, value = _sql_of(element, (_DOCUMENT, _PATH, _VALUE), compiler, kw)
    kinds = _kind(f"json_type({document}, {path})"), _kind(f"json_type({value})")
    # IS: two nulls are the same. Of another kind, 1 is as true as true.
    return f"(coalesce({kinds[0]} = {kinds[1]}, 0) AND json_extract({document}, {path}) IS json_extract({value}, '$'))"


@compiles(_HasDocument, "sqlite")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, path, value = _sql_of(element, (_DOCUMENT, _PATH, _OBJECT), compiler, kw)
    # SQLite compares documents as text, in which the order of keys counts: compare the leaves, with their paths.
    its, ours = (f"SELECT fullkey, {_kind('type')}, atom FROM json_tree({each}, {path})" for each in (document, value))  # noqa: S608 (its parts are compiled)
    return (
        f"(json_type({document}, {path}) IS NOT NULL "
        f"AND NOT EXISTS ({its} EXCEPT {ours}) AND NOT EXISTS ({ours} EXCEPT {its}))"
    )


# --- MariaDB and MySQL -----------------------------------------------------------------------------------------------


@compiles(_HasKey, "mysql", "mariadb")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, path = _sql_of(element, (_DOCUMENT, _PATH), compiler, kw)
    return f"json_contains_path({document}, 'one', {path})"


@compiles(_HasScalar, "mysql", "mariadb")
@compiles(_HasDocument, "mysql", "mariadb")
def _(element: Any, compiler: Any, **kw: Any) -> str:
    document, path, value = _sql_of(element, (_DOCUMENT, _PATH, _VALUE), compiler, kw)
    if compiler.dialect.is_mariadb:
        return f"coalesce(json_equals(json_extract({document}, {path}), {value}), 0)"
    return f"coalesce(json_extract({document}, {path}) = CAST({value} AS JSON), 0)"
