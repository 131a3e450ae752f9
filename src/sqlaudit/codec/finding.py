"""Which codec a column type has."""

import json
import weakref
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import BindParameter, ColumnClause, bindparam, column, types as sqltypes
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.codec.dialects import CANONICAL, DIALECT_MAKERS
from sqlaudit.codec.generic import GENERIC_MAKERS, PORTABLE, SQLALCHEMYS_DECORATORS, Find, Makers
from sqlaudit.codec.values import Codec, JSONValue
from sqlaudit.exceptions import CaptureError
from sqlaudit.types import TrailType

__all__ = ["codec_of", "is_supported"]

_codecs: weakref.WeakKeyDictionary[Dialect, dict[TypeEngine[Any], Codec]] = weakref.WeakKeyDictionary()


def codec_of(type_: TypeEngine[Any], dialect: Dialect) -> Codec:
    """
    Return the codec of a column type on *dialect*.

    Raises:
        LookupError: its values can't be written exactly.
    """
    cache = _codecs.setdefault(dialect, {})
    if (codec := cache.get(type_)) is None:
        codec = cache[type_] = _find_codec(type_, dialect)
    return codec


def is_supported(type_: TypeEngine[Any]) -> bool:
    """Return whether the values of *type_* can be written exactly; for a type with variants, of all of them."""
    variants = getattr(type_, "_variant_mapping", {}).values()
    try:
        for each in (type_, *variants):
            _find_codec(each, PORTABLE)
    except LookupError:
        return False
    return True


def _find_codec(type_: TypeEngine[Any], dialect: Dialect) -> Codec:
    variant = getattr(type_, "_variant_mapping", {}).get(dialect.name)
    if variant is not None:
        return _find_codec(variant, dialect)
    if isinstance(type_, TrailType):
        return _users_own(type_)
    if _computes(type_):
        # Pgcrypto would leave plaintext in the trail.
        raise LookupError(type_)
    if not isinstance(type_, TypeDecorator) and not (
        _is_known(type_, "bind_processor") and _is_known(type_, "result_processor")
    ):
        # A type of the user's that sends something else than its base type does.
        raise LookupError(type_)
    for known, make in _MAKERS:
        if isinstance(type_, known):
            codec = make(type_, dialect, _find_codec)
            if not _is_altered(type_, dialect):
                return codec
            is_padded = isinstance(type_, (sqltypes.CHAR, sqltypes.NCHAR))
            return replace(codec, is_altered=True, plain=frozenset(), is_padded=is_padded)
    raise LookupError(type_)


def _is_known(type_: Any, method: str) -> bool:
    """Return whether a method is one of SQLAlchemy's own."""
    return next(each for each in type(type_).__mro__ if method in vars(each)).__module__.startswith("sqlalchemy.")


def _computes(type_: TypeEngine[Any]) -> bool:
    """Return whether the database computes what is stored, or what is read; who gives back what it got doesn't."""
    if _is_known(type_, "bind_expression") and _is_known(type_, "column_expression"):
        return False
    sent: BindParameter[Any] = bindparam("value", type_=type_)
    stored: ColumnClause[Any] = column("value", type_)
    asked = (type_.bind_expression(sent), sent), (type_.column_expression(stored), stored)
    return any(answer is not None and answer is not given for answer, given in asked)


def _is_altered(type_: Any, dialect: Dialect) -> bool:
    """Return whether the database may store another value than it is given."""
    if dialect.name == "sqlite":
        # SQLite's own types can be told to leave fractions out; the generic ones keep them.
        return isinstance(type_, (sqlite.DATETIME, sqlite.TIME))
    if isinstance(type_, (sqltypes.CHAR, sqltypes.NCHAR, *CANONICAL)):
        return True
    if dialect.name in ("mysql", "mariadb"):
        # Fractions of seconds are cut off, FLOAT is shown with six digits, BINARY is filled up.
        if isinstance(type_, sqltypes.Float):
            return not isinstance(type_, sqltypes.Double) or getattr(type_, "scale", None) is not None
        return isinstance(type_, (sqltypes.DateTime, sqltypes.Time, sqltypes.Interval, sqltypes.BINARY))
    if isinstance(type_, sqltypes.Float):
        return isinstance(type_, sqltypes.REAL) or (type_.precision is not None and type_.precision <= 24)
    precisions = ("precision", "second_precision", "fsp", "fields")
    return isinstance(type_, (sqltypes.DateTime, sqltypes.Time, sqltypes.Interval, postgresql.INTERVAL)) and any(
        getattr(type_, name, None) is not None for name in precisions
    )


def _users_own(type_: Any) -> Codec:
    """The user's own type, which says how its values are stored."""

    def encode(value: Any) -> JSONValue:
        stored = type_.to_trail(value)
        try:
            return json.loads(json.dumps(stored, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CaptureError(
                f"{type(type_).__name__}.to_trail() gave a {type(stored).__name__} that is no plain JSON ({error}); "
                f"return None, a bool, a number, a string, or lists and dicts of them."
            ) from error

    # Only a decorator is known to send what it was given.
    is_altered = not isinstance(type_, TypeDecorator)
    return Codec(encode, type_.from_trail, as_text=False, one_form=False, is_altered=is_altered)


def _decorated(type_: Any, dialect: Dialect, find: Find) -> Codec:
    """The user's own type: what it would send to the database, by the type underneath."""
    underneath = type_.load_dialect_impl(dialect)
    inner = find(underneath, dialect)
    if _overrides(type_, "bind_processor") or _overrides(type_, "result_processor"):
        # It sends something else than its process_bind_param says.
        raise LookupError(type_)
    # The cache must not keep alive the dialect that is its key. Whoever encodes has a
    # connection, whoever decodes a session: for them it is there.
    living = weakref.ref(dialect)

    def encode(value: Any) -> JSONValue:
        return inner.dump(type_.process_bind_param(value, living()))

    def decode(stored: JSONValue) -> Any:
        return type_.process_result_value(inner.load(stored), living())

    ciphers: list[bool] = []

    def is_changed(value: Any) -> bool:
        # Some ciphers let some values pass: only one that was seen to encrypt is known.
        if not ciphers and encode(value) != encode(value):
            ciphers.append(True)
        return bool(ciphers) or inner.must_be_read(type_.process_bind_param(value, living()))

    return Codec(
        encode if _overrides(type_, "process_bind_param") else inner.dump,
        decode if _overrides(type_, "process_result_value") else inner.load,
        as_text=inner.as_text,
        one_form=False,
        json=inner.json,
        keeps_text=inner.keeps_text,
        is_altered=inner.is_altered,
        is_padded=inner.is_padded,
        longest=None if _overrides(type_, "process_bind_param") else inner.longest,
        sees_null=True,
        raw=(underneath, inner),
        is_changed=is_changed if _overrides(type_, "process_bind_param") else inner.is_changed,
    )


def _overrides(type_: Any, method: str) -> bool:
    return getattr(type(type_), method) is not getattr(TypeDecorator, method)


# The first that fits: decorators of SQLAlchemy's own before the users'.
_MAKERS: Final[Makers] = (
    *SQLALCHEMYS_DECORATORS,
    (TypeDecorator, _decorated),
    *DIALECT_MAKERS,
    *GENERIC_MAKERS,
)
