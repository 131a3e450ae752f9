"""
How SQLite itself writes the values of a column as JSON: the codec of each type, in SQL.

An encoding makes of an SQL expression one that gives the JSON text of its value.
The value may be of another storage class than the column's type says: SQLite lets
raw SQL put text into a column of integers. It is recorded as it is then: a number,
a text, or ``{"$hex": "…"}`` for bytes.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Dialect, types as sqltypes
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.capture.triggers.sqlite_floats import ONCE, float_repr
from sqlaudit.codec import codec_of
from sqlaudit.types import TrailType

__all__ = ["Encoding", "encoding_of", "literal", "quoted"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the values of one column type are written."""

    json: Callable[[str], str]
    """Of an expression: the expression of its JSON text, ``null`` for NULL."""
    is_same: Callable[[str, str], str] | None = None
    """Of two JSON texts that differ: the criterion that they are one value; None: they never are."""
    is_as_it_is: bool = False
    """Values are written as what they are for SQLite."""
    has_one_form: bool = True
    """Values that are the same in the database have one JSON text."""


def literal(text: str) -> str:
    """Return *text* as SQL."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """Return an identifier as SQL."""
    return '"' + name.replace('"', '""') + '"'


def encoding_of(type_: TypeEngine[Any], dialect: Dialect) -> Encoding:
    """
    Return the encoding of a column type.

    Raises:
        LookupError: SQL can't write its values exactly.
    """
    codec = codec_of(type_, dialect)
    type_ = getattr(type_, "_variant_mapping", {}).get(dialect.name, type_)
    if isinstance(type_, TrailType):
        # Python alone knows what its values are in the trail.
        raise LookupError(type_)
    if isinstance(type_, TypeDecorator) and codec.raw is not None:
        return encoding_of(codec.raw[0], dialect)
    type_ = type_.dialect_impl(dialect) if isinstance(type_, _WITH_FORMATS) else type_
    for known, make in _MAKERS:
        if isinstance(type_, known):
            return make(type_)
    raise LookupError(type_)


# --- what is of no type's own ----------------------------------------------------------------------------------------


def _as_it_is(value: str) -> str:
    """Any value: a number, a text, NULL, or the bytes in a mark; exact, though a float may have more digits."""
    return (
        f"CASE typeof({value}) WHEN 'blob' THEN '{{\"$hex\":\"' || hex({value}) || '\"}}' "
        f"WHEN 'real' THEN replace(printf('%!.20g', {value}), 'Inf', '9e999') ELSE json_quote({value}) END"
    )


def _when(storage: str, value: str, then: str) -> str:
    """What a value of the storage class that the type makes is written as; others as they are."""
    return f"CASE WHEN typeof({value}) = '{storage}' THEN {then} ELSE {_as_it_is(value)} END"


# --- numbers ---------------------------------------------------------------------------------------------------------

_INFINITE: Final = "abs({0}) > 1.7976931348623157e308"


def _float_json(value: str) -> str:
    return (
        f"CASE WHEN {_INFINITE.format(value)} THEN CASE WHEN {value} > 0 THEN '\"inf\"' ELSE '\"-inf\"' END "
        f"ELSE {float_repr(value)} END"
    )


def _fixed(value: str, scale: int) -> str:
    """
    A finite float with *scale* decimals, rounded as Python rounds: what it is exactly, halves to even.

    The fraction is taken in limbs of 26 bits, so that nothing is lost.
    """
    if scale > _MAX_EXACT_SCALE:
        return f"printf('%!.{scale}f', {value})"
    unit = 10**scale
    even = "whole" if scale == 0 else "decimals"
    decimals = f"|| '.' || printf('%0{scale}d', decimals % {unit})" if scale else ""
    return f"""(WITH
        number AS (SELECT CAST(abs({value}) AS INTEGER) AS whole, abs({value}) - CAST(abs({value}) AS INTEGER) AS f1),
        first AS (SELECT whole, CAST(f1 * 67108864.0 AS INTEGER) AS l1,
            f1 * 67108864.0 - CAST(f1 * 67108864.0 AS INTEGER) AS f2 FROM number {ONCE}),
        second AS (SELECT whole, l1, CAST(f2 * 67108864.0 AS INTEGER) AS l2,
            f2 * 67108864.0 - CAST(f2 * 67108864.0 AS INTEGER) AS f3 FROM first {ONCE}),
        third AS (SELECT whole, l1, l2, CAST(f3 * 67108864.0 AS INTEGER) AS l3,
            CAST((f3 * 67108864.0 - CAST(f3 * 67108864.0 AS INTEGER)) * 67108864.0 AS INTEGER) * {unit} AS b4
            FROM second {ONCE}),
        carried AS (SELECT whole, l1, l2 * {unit} + (l3 * {unit} + (b4 >> 26) >> 26) AS b2,
            (l3 * {unit} + (b4 >> 26) | b4) & 67108863 AS b3 FROM third {ONCE}),
        cut AS (SELECT whole, l1 * {unit} + (b2 >> 26) AS b1, (b2 | b3) & 67108863 AS rest FROM carried {ONCE}),
        fraction AS (SELECT whole, b1 >> 26 AS decimals, b1 & 67108863 AS half, rest FROM cut {ONCE}),
        rounded AS (SELECT whole,
            decimals + (half > 33554432 OR half = 33554432 AND (rest <> 0 OR {even} & 1)) AS decimals FROM fraction {ONCE})
        SELECT CASE WHEN abs({value}) >= 9e15 THEN printf('%!.{scale}f', {value})
            ELSE CASE WHEN {value} < 0 AND (whole <> 0 OR decimals <> 0) THEN '-' ELSE '' END
            || (whole + decimals / {unit}) {decimals} END FROM rounded)"""


_MAX_EXACT_SCALE: Final = 11
"""A limb times so many tens is an integer of 64 bits. Python's own `repr` of a float has no more than 17 digits."""


def _integer(type_: Any) -> Encoding:
    return Encoding(_as_it_is, is_as_it_is=True)


def _boolean(type_: Any) -> Encoding:
    return Encoding(
        lambda value: _when("integer", value, f"CASE {value} WHEN 0 THEN 'false' ELSE 'true' END"), has_one_form=False
    )


def _float(type_: Any) -> Encoding:
    # SQLAlchemy rounds what it reads as decimals.
    scale = type_._effective_decimal_return_scale if type_.asdecimal else None  # noqa: SLF001 (as the codec does)

    def json(value: str) -> str:
        number = f"CAST({value} AS REAL)"
        if scale is not None:
            number = f"CAST({_fixed(number, scale)} AS REAL)"
        shown = f"(SELECT {_float_json('number')} FROM (SELECT {number} AS number))"
        if scale is not None:
            shown = f"CASE WHEN {_INFINITE.format(value)} THEN {_float_json(value)} ELSE {shown} END"
        return f"CASE WHEN typeof({value}) IN ('real', 'integer') THEN {shown} ELSE {_as_it_is(value)} END"

    return Encoding(json, has_one_form=scale is None)


def _numeric(type_: Any) -> Encoding:
    scale = type_._effective_decimal_return_scale if type_.asdecimal else None  # noqa: SLF001 (as the codec does)

    def json(value: str) -> str:
        if scale is None:
            large = _positional(f"CAST({value} AS REAL)")
            integer = f"CASE WHEN abs({value}) < 10000000000000000 THEN {value} || '.0' ELSE {large} END"
            real = _positional(value)
        else:
            integer = f"{value} || '.{'0' * scale}'" if scale else f"{value} || ''"
            real = _fixed(value, scale)
        return (
            f"CASE typeof({value}) WHEN 'integer' THEN '\"' || {integer} || '\"' WHEN 'real' THEN "
            f"'\"' || CASE WHEN {_INFINITE.format(value)} THEN CASE WHEN {value} > 0 THEN 'Infinity' ELSE '-Infinity' END "
            f"ELSE {real} END || '\"' ELSE {_as_it_is(value)} END"
        )

    return Encoding(json, has_one_form=scale is None)


def _positional(value: str) -> str:
    """A finite float as Python shows it, without an exponent."""
    return f"""(WITH
        shown AS (SELECT {float_repr(value)} AS shown {ONCE}),
        parts AS (SELECT shown, replace(replace(substr(shown, 1, instr(shown, 'e') - 1), '.', ''), '-', '')
            AS digits, CAST(substr(shown, instr(shown, 'e') + 1) AS INTEGER) AS exponent FROM shown {ONCE})
        SELECT CASE WHEN instr(shown, 'e') = 0 THEN shown
            ELSE CASE WHEN {value} < 0 THEN '-' ELSE '' END || CASE WHEN exponent < 0
            THEN '0.' || substr(printf('%0400d', 0), 1, -exponent - 1) || digits
            ELSE digits || substr(printf('%0400d', 0), 1, exponent + 1 - length(digits)) END END FROM parts)"""


# --- texts and bytes -------------------------------------------------------------------------------------------------


def _text(type_: Any) -> Encoding:
    return Encoding(_as_it_is, is_as_it_is=True)


def _binary(type_: Any) -> Encoding:
    def json(value: str) -> str:
        # A text isn't taken for base64 when it is read.
        return (
            f"CASE typeof({value}) WHEN 'blob' THEN '\"' || {_base64(value)} || '\"' "
            f"WHEN 'text' THEN '{{\"$hex\":\"' || hex({value}) || '\"}}' ELSE {_as_it_is(value)} END"
        )

    return Encoding(json)


def _base64(blob: str) -> str:
    """
    Bytes in base64, which SQLite has no function for: three at a time, by their hexadecimal digits.

    From chunks, as a large value isn't read anew for every three bytes.
    """
    alphabet = literal("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    number = " + ".join(
        f"(instr('123456789ABCDEF', substr(hex, {1 + place}, 1)) << {20 - 4 * place})" for place in range(6)
    )
    first, second, third, fourth = (f"substr({alphabet}, (number >> {bits} & 63) + 1, 1)" for bits in (18, 12, 6, 0))
    return f"""(WITH RECURSIVE
            chunks (start, chunk) AS (
                SELECT 1, substr({blob}, 1, {_CHUNK}) UNION ALL
                SELECT start + {_CHUNK}, substr({blob}, start + {_CHUNK}, {_CHUNK}) FROM chunks
                WHERE start + {_CHUNK} <= length({blob})),
            places (place) AS (
                SELECT 1 UNION ALL SELECT place + 3 FROM places
                WHERE place + 3 <= min({_CHUNK}, length({blob}))),
            triples AS MATERIALIZED (
                SELECT hex(substr(chunk, place, 3)) || '0000' AS hex, min(length(chunk) - place, 2) AS more
                FROM chunks CROSS JOIN places WHERE place <= length(chunk)),
            numbers AS MATERIALIZED (SELECT {number} AS number, more FROM triples)
            SELECT coalesce(group_concat({first} || {second}
                || CASE WHEN more > 0 THEN {third} ELSE '=' END
                || CASE WHEN more > 1 THEN {fourth} ELSE '=' END, ''), '') FROM numbers)"""


_CHUNK: Final = 3000
"""Bytes; a multiple of three."""


def _uuid(type_: Any) -> Encoding:
    def json(value: str) -> str:
        hexadecimal = f"lower(replace({value}, '-', ''))"
        parts = " || '-' || ".join(
            f"substr({hexadecimal}, {start}, {size})" for start, size in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
        )
        is_uuid = f"length({hexadecimal}) = 32 AND NOT {hexadecimal} GLOB '*[^0-9a-f]*'"
        return (
            f"CASE WHEN typeof({value}) = 'text' AND {is_uuid} THEN '\"' || {parts} || '\"' ELSE {_as_it_is(value)} END"
        )

    return Encoding(json, has_one_form=False)


# --- times -----------------------------------------------------------------------------------------------------------

_DATE: Final = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_TIME: Final = "[0-9][0-9]:[0-9][0-9]:[0-9][0-9]"

_FORMATS: Final = {
    sqlite.DATETIME: sqlite.DATETIME._storage_format,  # noqa: SLF001 (nothing else says it)
    sqlite.DATE: sqlite.DATE._storage_format,  # noqa: SLF001
    sqlite.TIME: sqlite.TIME._storage_format,  # noqa: SLF001
}


def _refuse_formats(type_: Any) -> None:
    """Refuse a type whose texts are in a format of the application's: only its regular expression can read them."""
    usual = next((text for known, text in _FORMATS.items() if isinstance(type_, known)), None)
    given = getattr(type_, "_storage_format", usual)
    if getattr(type_, "_reg", None) is not None or usual is None or given not in (usual, str(usual).partition(".")[0]):
        raise LookupError(type_)


def _seconds(value: str, place: int) -> str:
    """The criterion that the time at *place* of a text has seconds, and a fraction if any; and the time in full."""
    return f"substr(substr({value}, {place}) || CASE WHEN length({value}) = {place + 7} THEN '.' ELSE '' END || '000000', 1, 15)"


def _has_fraction(value: str, place: int) -> str:
    fraction = f"substr({value}, {place + 8})"
    return f"({fraction} = '' OR {fraction} GLOB '.[0-9]*' AND NOT substr({fraction}, 2) GLOB '*[^0-9]*')"


def _datetime(type_: Any) -> Encoding:
    _refuse_formats(type_)

    def json(value: str) -> str:
        return (
            f"CASE WHEN {value} GLOB '{_DATE}[ T]{_TIME}*' AND {_has_fraction(value, 12)} "
            f"THEN '\"' || substr({value}, 1, 10) || 'T' || {_seconds(value, 12)} || '\"' ELSE {_as_it_is(value)} END"
        )

    return Encoding(json, has_one_form=False)


def _date(type_: Any) -> Encoding:
    _refuse_formats(type_)
    return Encoding(_as_it_is, is_as_it_is=True)


def _time(type_: Any) -> Encoding:
    _refuse_formats(type_)

    def json(value: str) -> str:
        return (
            f"CASE WHEN {value} GLOB '{_TIME}*' AND {_has_fraction(value, 1)} "
            f"THEN '\"' || {_seconds(value, 1)} || '\"' ELSE {_as_it_is(value)} END"
        )

    return Encoding(json, has_one_form=False)


def _interval(type_: Any) -> Encoding:
    if type_.epoch != sqltypes.Interval.epoch or sqltypes.Interval.epoch != dt.datetime(1970, 1, 1):  # noqa: DTZ001
        raise LookupError(type_)

    def json(value: str) -> str:
        size = (
            f"(SELECT CASE WHEN size < 0 THEN '\"-P' ELSE '\"P' END || (abs(size) / 86400000000) || 'DT' "
            f"|| (abs(size) / 1000000 % 86400) || printf('.%06dS\"', abs(size) % 1000000) "
            f"FROM (SELECT CAST(strftime('%s', substr({value}, 1, 19)) AS INTEGER) * 1000000 "
            f"+ CAST(substr({_seconds(value, 12)}, 10) AS INTEGER) AS size))"
        )
        return (
            f"CASE WHEN {value} GLOB '{_DATE}[ T]{_TIME}*' AND {_has_fraction(value, 12)} "
            f"THEN {size} ELSE {_as_it_is(value)} END"
        )

    return Encoding(json, has_one_form=False)


# --- documents -------------------------------------------------------------------------------------------------------


def _json(type_: Any) -> Encoding:
    def json(value: str) -> str:
        # A number is one for SQLite, too: the type JSON has numeric affinity.
        real = (
            f"(SELECT CASE WHEN abs({value}) >= 1e16 THEN '{{\"$json_text\":\"' || trim(shown, '\"') || '\"}}' ELSE shown END "
            f"FROM (SELECT {_float_json(value)} AS shown))"
        )
        large = (
            f"{value} GLOB '*[0-9][eE]*' "
            f"AND EXISTS (SELECT 1 FROM json_tree({value}) WHERE type = 'real' AND abs(atom) >= 1e16)"
        )
        return (
            f"CASE WHEN typeof({value}) = 'real' THEN {real} WHEN typeof({value}) <> 'text' THEN {_as_it_is(value)} "
            f"WHEN NOT json_valid({value}) OR {large} THEN '{{\"$json_text\":' || json_quote({value}) || '}}' "
            f"ELSE {_marked_document(value)} END"
        )

    return Encoding(json, is_same=_is_same_document, has_one_form=False)


def _marked_document(text: str) -> str:
    """
    Minified JSON with its characters as they are, escaped only where they must be, as the recorder writes it.

    One escape is looked for, and replaced wherever it is, then the next. Documents
    have no control characters: they keep apart what is done with. Halves of
    characters stay escaped. What could be taken for a mark of the trail's is in one.
    """
    quoted = "json_quote(json_extract('\"' || sequence || '\"', '$'))"
    return f"""(WITH RECURSIVE unescaped (document, sequence) AS (
            SELECT replace(replace(json({text}), '\\\\', char(1)), '\\/', '/'), NULL
            UNION ALL
            SELECT CASE
                WHEN sequence IS NULL THEN document
                WHEN sequence GLOB '\\u[dD][89a-fA-F]??' OR sequence = '\\u0000'
                    THEN replace(document, sequence, char(2) || lower(substr(sequence, 2)))
                ELSE replace(document, sequence, replace(substr({quoted}, 2, length({quoted}) - 2), '\\', char(2))) END,
            CASE WHEN sequence IS NULL THEN substr(document, instr(document, '\\u'), CASE
                WHEN substr(document, instr(document, '\\u'), 12) GLOB '\\u[dD][89abAB]??\\u[dD][c-fC-F]??' THEN 12
                ELSE 6 END) END
            FROM unescaped WHERE sequence IS NOT NULL OR instr(document, '\\u') > 0),
        plain AS MATERIALIZED (
            SELECT replace(replace(document, char(1), '\\\\'), char(2), '\\') AS document FROM unescaped
            WHERE sequence IS NULL AND instr(document, '\\u') = 0)
        SELECT CASE WHEN document = 'null' OR document LIKE '{{%' AND document LIKE '%"$%'
            AND EXISTS (SELECT 1 FROM json_each(document) WHERE key LIKE '$%')
            THEN '{{"$json":' || document || '}}' ELSE document END FROM plain)"""


def _is_same_document(one: str, other: str) -> str:
    """Documents that differ in the order of keys alone, so that they are of one length."""
    leaves = "SELECT fullkey, type, atom FROM json_tree({})"
    return (
        f"(length({one}) = length({other}) "
        f"AND NOT EXISTS ({leaves.format(one)} EXCEPT {leaves.format(other)}) "
        f"AND NOT EXISTS ({leaves.format(other)} EXCEPT {leaves.format(one)}))"
    )


_WITH_FORMATS: Final = (sqltypes.DateTime, sqltypes.Date, sqltypes.Time)

_MAKERS: Final[tuple[tuple[type, Callable[[Any], Encoding]], ...]] = (
    (sqltypes.Interval, _interval),
    (sqltypes.Boolean, _boolean),
    (sqltypes.Integer, _integer),
    (sqltypes.Float, _float),
    (sqltypes.Numeric, _numeric),
    (sqltypes.String, _text),
    (sqltypes.LargeBinary, _binary),
    (sqltypes.BINARY, _binary),
    (sqltypes.VARBINARY, _binary),
    (sqltypes.DateTime, _datetime),
    (sqltypes.Date, _date),
    (sqltypes.Time, _time),
    (sqltypes.Uuid, _uuid),
    (sqltypes.JSON, _json),
)
"""The first that fits: subclasses stand before their bases, as in the codec. An Enum is a String."""
