"""What users give and receive: operations, keys, filters, changes."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, runtime_checkable

from sqlalchemy import Table

__all__ = [
    "MASKED",
    "Capture",
    "Change",
    "ChangeFilters",
    "ChangeGroup",
    "FieldChange",
    "Masked",
    "Model",
    "Models",
    "OldNew",
    "Operation",
    "ResourceIdType",
    "SortDirection",
    "SortField",
    "TrailType",
    "UserIdType",
]

ResourceIdType: TypeAlias = Any
"""
The key of a resource: the Python value of its key column, or its text; a
tuple for a key of several columns.
"""

UserIdType: TypeAlias = str | int | uuid.UUID
"""The id of a user, as the application knows it. The trail stores its text."""

Model: TypeAlias = type[Any] | Table
"""A tracked mapped class, or a tracked Core table."""

Models: TypeAlias = Model | Collection[Model] | None
"""One model or several of them; None means all changes that there are."""

ChangeGroup: TypeAlias = Literal["day", "actor", "model", "operation"]
"""What changes can be counted by."""

SortField: TypeAlias = Literal["timestamp", "resource_id", "changed_by", "operation"]
"""What retrieval can sort by. Changes that are equal in it come in the order of time."""

SortDirection: TypeAlias = Literal["asc", "desc"]
"""Oldest or smallest first, or last."""


class Operation(StrEnum):
    """What was done to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    BASELINE = "baseline"
    """The row existed before auditing began; this is its state then."""


class Capture(StrEnum):
    """How the writes to a table are noticed."""

    SESSION = "session"
    """By the session that makes them: no trigger in the database."""
    TRIGGERS = "triggers"
    """By triggers, whoever makes them: raw SQL, other programs, cascades and triggers of the database, too."""
    BOTH = "both"
    """
    What passes through a hooked session is recorded by it, the rest by triggers:
    each change once. To move a live table from one to the other.
    """


class Masked(Enum):
    """The type of `MASKED`: an `Enum` of one, so that Pydantic and its like can serialize it."""

    MASKED = "<masked>"

    def __repr__(self) -> str:
        return "<masked>"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return False


MASKED: Final[Masked] = Masked.MASKED
"""Stands in a field change for a value that was withheld from the trail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """
    The old and new value of one field within one change.

    Detached from any session. Values have the Python types of the model's
    columns; `MASKED` stands for a value that was withheld.
    """

    change_id: int
    """The id of the change that this is a part of; grows in the order of time."""
    transaction_id: uuid.UUID
    """The same for all changes of one database transaction."""
    timestamp: datetime
    """When the row was changed, by the database's clock; aware, in the configured zone."""
    operation: Operation
    resource_type: str
    """The label of the changed table."""
    resource_id: Any
    """The key of the row: a Python value, a tuple if it has several columns."""
    field_name: str
    old_value: Any
    """The value before; None for an insert or a baseline."""
    new_value: Any
    """The value after; None for a delete."""
    changed_by: Any
    """The actor, of the type of the user model's id (str without a user model); None if unknown."""
    impersonated_by: Any
    """Who acted as *changed_by*, if anybody did."""
    reason: str | None
    context: Mapping[str, Any]
    """The extra facts that were given to the audit context."""


class OldNew(NamedTuple):
    """The values of one field before and after a change."""

    old: Any
    """None for an insert or a baseline."""
    new: Any
    """None for a delete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """
    One operation on one row, whole: a row of the trail.

    Detached from any session. Values have the Python types of the model's
    columns; `MASKED` stands for a value that was withheld. What nobody knows the
    type of any more is as it is stored.
    """

    change_id: int
    """Grows in the order of time."""
    transaction_id: uuid.UUID
    """The same for all changes of one database transaction."""
    timestamp: datetime
    """When the row was changed, by the database's clock; aware, in the configured zone."""
    operation: Operation
    model: Model | None
    """The class that owns the changed table, or the Core table; None if nobody knows the label any more."""
    resource_type: str
    """The label of the changed table."""
    resource_id: Any
    """The key of the row: a Python value, a tuple if it has several columns; its text without a *model*."""
    fields: Mapping[str, OldNew]
    """What changed, by attribute name: all tracked fields of an insert, a delete or a baseline."""
    changed_by: Any
    """The actor, of the type of the user model's id (str without a user model); None if unknown."""
    impersonated_by: Any
    """Who acted as *changed_by*, if anybody did."""
    reason: str | None
    context: Mapping[str, Any]
    """The extra facts that were given to the audit context."""


class ChangeFilters(TypedDict, total=False):
    """
    Which changes are wanted: all of the filters that are given must fit.

    None, and leaving a filter out, is the same. An empty list fits nothing.
    """

    resource_ids: ResourceIdType | list[ResourceIdType] | None
    """A key of the model, or a list of keys: the Python value or its text, a tuple for a key of several columns."""
    include: str | Collection[str] | None
    """
    Relationships of the model: the changes of the rows that are, or were at some
    time, related to those of *resource_ids* come, too. The other filters hold for both.
    """
    fields: str | Collection[str] | None
    """
    Attributes, one of which the change tells of; an insert, a delete and a baseline
    tell of all. The changes of a model that has none of them don't fit.
    """
    old: Mapping[str, Any] | None
    """
    Values before the change, by attribute name; all of them must fit, and a field
    that has no old value, as in an insert, fits nothing. None is NULL, and the value
    null of a JSON column; `sqlalchemy.null()` and `JSON.NULL` tell them apart.
    """
    new: Mapping[str, Any] | None
    """Values after the change, in the same way."""
    operations: Operation | str | Collection[Operation | str] | None
    """An operation, or a list of them."""
    user_ids: UserIdType | Collection[UserIdType | None] | None
    """The actor, or a list of them; None in a list is whoever wasn't known."""
    impersonators: UserIdType | Collection[UserIdType | None] | None
    """Who acted as the actor, or a list of them; None in a list is that nobody did."""
    reason: str | None
    """The reason, to the letter."""
    context: Mapping[str, Any] | None
    """Facts of the audit context, all of them, as JSON values. None is a fact that was None."""
    transaction_id: uuid.UUID | str | Collection[uuid.UUID | str] | None
    """A transaction, or a list of them."""
    date_range: tuple[datetime | None, datetime | None] | None
    """From and to, both inclusive; None leaves an end open. Naive datetimes are in the configured zone."""
    id_range: tuple[int | None, int | None] | None
    """From and to a change id, both inclusive; None leaves an end open."""


@runtime_checkable
class TrailType(Protocol):
    """
    A column type that says itself how its values are stored in the trail.

    For types of your own, or of a library, whose values sqlaudit can't store
    exactly by itself: `PickleType`, PostGIS's, those with a ``bind_expression``.
    Give their class these two methods; None, SQL NULL, is never asked about.
    """

    def to_trail(self, value: Any, /) -> Any:
        """Return *value*, as the type reads it, as plain JSON: equal values equally, different ones differently."""

    def from_trail(self, stored: Any, /) -> Any:
        """Return the value of what `to_trail` returned."""
