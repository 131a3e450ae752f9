"""The documents of JSON columns: which Python values are plain JSON, and what marks one that isn't."""

import math
from decimal import Decimal
from typing import Any, Final

from sqlalchemy.types import JSON

__all__ = [
    "JSON_NULL",
    "as_jsonb_reads",
    "as_sqlite_keeps",
    "has_large_float",
    "is_plain",
    "is_same_document",
    "refuse_constant",
    "unwrapped",
    "wrapped",
]

JSON_NULL: Final = JSON.NULL
"""In place of a value: the JSON value null, which Python, too, calls None."""


def is_plain(value: object) -> bool:
    """Return whether JSON gives back a value as it is: no tuples, no keys but strings, no classes of the user's."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is dict:
        for key, each in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or (type(each) not in _SCALARS and not is_plain(each)):
                return False
        return True
    if kind is list:
        return all(type(each) in _SCALARS or is_plain(each) for each in value)  # type: ignore[attr-defined]
    return kind is float and math.isfinite(value) and not _is_large(value)  # type: ignore[arg-type]


_SCALARS: Final = frozenset({str, int, bool, type(None)})


def has_large_float(document: Any) -> bool:
    """Return whether there is a float in it that a jsonb writes as a whole number, and so gives back as an int."""
    if isinstance(document, dict):
        return any(map(has_large_float, document.values()))
    if isinstance(document, list):
        return any(map(has_large_float, document))
    return isinstance(document, float) and _is_large(document)


def as_jsonb_reads(text: str) -> int | float:
    """Return the number of a document as PostgreSQL's jsonb gives it back: without an exponent."""
    number = float(text)
    return int(Decimal(text)) if _is_large(number) else number


def as_sqlite_keeps(number: float) -> float:
    """Return what a column of SQLite's makes of a document that is a number: the type JSON has numeric affinity."""
    if isinstance(number, int):
        return number if -(2**63) <= number < 2**63 else float(number)
    return int(number) if number.is_integer() and -(2**63) <= number < 2**63 else number


def _is_large(number: float) -> bool:
    return "e+" in repr(number)


def refuse_constant(name: str) -> None:
    """Refuse NaN and the infinities, which SQLite keeps in a document although JSON has none."""
    raise ValueError(name)


def wrapped(document: Any) -> Any:
    """Return a document as it is stored: null, and what looks like one of our marks, in a mark of its own."""
    if document is None:
        return {"$json": None}
    if isinstance(document, dict):
        for key in document:
            if key.startswith("$"):
                return {"$json": document}
    return document


def unwrapped(stored: Any) -> Any:
    """Return the document of what `wrapped` returned."""
    return stored["$json"] if isinstance(stored, dict) and stored.keys() == {"$json"} else stored


def is_same_document(one: Any, other: Any, *, keeps_text: bool) -> bool:
    """Return whether two documents are equal, in any order of keys; unlike for Python, true isn't 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            is_same_document(value, other[key], keeps_text=keeps_text) for key, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            is_same_document(each, its, keeps_text=keeps_text) for each, its in zip(one, other, strict=True)
        )
    return bool(one == other) and (type(one) is type(other) or not keeps_text)
