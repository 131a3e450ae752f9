"""The configuration: a frozen value, and the one default slot that holds it."""

import datetime as dt
import zoneinfo
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper, class_mapper

from sqlaudit._bridge import SessionFactory, check_factory
from sqlaudit.exceptions import ConfigurationError, UnknownFieldError
from sqlaudit.tables import change_table, is_trail
from sqlaudit.types import Capture, UserIdType

__all__ = ["SQLAuditConfig", "clear_config", "get_config", "has_config", "set_config"]

UserIdCallback = Callable[[], UserIdType | Awaitable[UserIdType | None] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLAuditConfig:
    """
    How changes are attributed and read. Every argument is optional.

    Raises:
        ConfigurationError: an argument has a wrong type, the time zone is
            unknown, or the user model has no such field.
    """

    session_factory: SessionFactory | None = None
    """
    Opens a session for retrieval without one: an `async_sessionmaker`, a
    `sessionmaker`, or a (async) generator function such as FastAPI's ``get_db``.
    """
    user_model: type[Any] | None = None
    """The model of the users, so that ``changed_by`` comes back as the type of its id."""
    user_model_user_id_field: str | None = None
    """The field of *user_model* that holds the id; its primary key, if not given."""
    get_user_id_callback: UserIdCallback | None = None
    """
    Returns the id of the acting user, or None. Asked when no context names one,
    in the flush that writes the changes. May be a coroutine function, which an
    `AsyncSession` awaits.
    """
    time_zone: str | dt.tzinfo = "UTC"
    """The zone of the timestamps that retrieval returns, and of the naive datetimes it is given."""
    require_user: bool = False
    """Refuse changes that nobody is known to have made."""
    lock_rows: bool = False
    """
    Read and lock the rows before a flush changes them, one SELECT per table, and
    trust no old value in memory: at READ COMMITTED another transaction may have
    changed or deleted a row since it was loaded.
    """
    warn_uncaptured: bool = False
    """Let statements that can't be captured pass with an `UncapturedStatementWarning`; they are refused otherwise."""
    capture: Capture = Capture.SESSION
    """
    How the writes to tables whose declaration doesn't say are noticed. It counts in
    the default configuration alone: a table has one capture, whatever session writes to it.
    """
    trail: Table = change_table
    """The table that holds the trail: `trail_table` makes one of another name, in a schema or `MetaData` of yours."""
    append_only: bool = False
    """
    Let `create_audit_tables` guard the trail: triggers of the database refuse to
    update, delete or truncate it; `purge_changes` may delete.
    """
    zone: dt.tzinfo = field(init=False, repr=False, compare=False)
    """*time_zone*, resolved."""

    def __post_init__(self) -> None:
        if self.session_factory is not None:
            check_factory(self.session_factory)
        if self.get_user_id_callback is not None and not callable(self.get_user_id_callback):
            raise ConfigurationError(
                f"get_user_id_callback is a {type(self.get_user_id_callback).__name__}; expected a function without "
                f"parameters that returns the id of the acting user."
            )
        for name in ("require_user", "lock_rows", "warn_uncaptured", "append_only"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        if not isinstance(self.capture, Capture):
            raise ConfigurationError(f"capture is {self.capture!r}; expected a Capture, such as Capture.TRIGGERS.")
        if not is_trail(self.trail):
            given = f"the table {self.trail.fullname}" if isinstance(self.trail, Table) else repr(self.trail)
            raise ConfigurationError(f"trail is {given}; expected a table that trail_table() has made.")
        _check_user_model(self.user_model, self.user_model_user_id_field)
        object.__setattr__(self, "zone", _zone(self.time_zone))


_default: SQLAuditConfig | None = None


def set_config(config: SQLAuditConfig) -> None:
    """
    Make *config* the default of this process.

    Raises:
        ConfigurationError: it is no `SQLAuditConfig`.
    """
    if not isinstance(config, SQLAuditConfig):
        raise ConfigurationError(f"config is a {type(config).__name__}; expected a SQLAuditConfig.")
    global _default
    _default = config


def get_config() -> SQLAuditConfig:
    """
    Return the default configuration.

    Raises:
        ConfigurationError: there is none.
    """
    if _default is None:
        raise ConfigurationError("There is no configuration; call set_config(SQLAuditConfig(...)), or give config=.")
    return _default


def has_config() -> bool:
    """Return whether there is a default configuration."""
    return _default is not None


def clear_config() -> None:
    """Forget the default configuration; for tests and shutdown."""
    global _default
    _default = None


def user_id_column(config: SQLAuditConfig) -> Column[Any] | None:
    """Return the column of the user model's id; None without a user model."""
    if config.user_model is None:
        return None
    if config.user_model_user_id_field is not None:
        return _column_of(config.user_model, config.user_model_user_id_field)
    mapper: Mapper[Any] = class_mapper(config.user_model, configure=False)
    return mapper.primary_key[0] if isinstance(mapper.primary_key[0], Column) else None


def _column_of(model: type[Any], name: str) -> Column[Any] | None:
    """Return the column that an attribute of a model stands for; None if it stands for something else."""
    attribute = getattr(model, name, None)
    if not isinstance(attribute, InstrumentedAttribute) or not isinstance(attribute.property, ColumnProperty):
        return None
    column = attribute.property.columns[0]
    return column if isinstance(column, Column) else None


def _check_user_model(model: Any, id_field: Any) -> None:
    if model is None:
        if id_field is not None:
            raise ConfigurationError("user_model_user_id_field is given without user_model; give both.")
        return
    try:
        mapper: Mapper[Any] = class_mapper(model, configure=False)
    except Exception as error:
        raise ConfigurationError(f"user_model is {model!r}; expected a mapped class.") from error
    if id_field is None:
        if len(mapper.primary_key) != 1:
            raise ConfigurationError(
                f"{model.__name__} has a primary key of {len(mapper.primary_key)} columns; name the field that "
                f"identifies a user with user_model_user_id_field."
            )
        return
    if not isinstance(id_field, str):
        raise ConfigurationError(f"user_model_user_id_field is a {type(id_field).__name__}; expected a field's name.")
    known = [key for key in dir(model) if _column_of(model, key) is not None]
    if id_field not in known:
        message = str(UnknownFieldError(model.__name__, "user_model_user_id_field", [id_field], known))
        raise ConfigurationError(message)


def _zone(time_zone: object) -> dt.tzinfo:
    if isinstance(time_zone, dt.tzinfo):
        return time_zone
    if not isinstance(time_zone, str):
        raise ConfigurationError(
            f"time_zone is a {type(time_zone).__name__}; expected an IANA name such as 'Europe/Kyiv', or a tzinfo."
        )
    try:
        return zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"time_zone is {time_zone!r}, which this system doesn't know; expected an IANA name such as 'Europe/Kyiv' "
            f"(without a system database, `pip install tzdata`)."
        ) from error
