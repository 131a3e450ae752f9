"""Which changes are wanted, as one checked value. No session in here."""

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.orm import Mapper, RelationshipProperty

from sqlaudit._arguments import (
    check_truth,
    date_range_in,
    id_range_in,
    mapping_in,
    names_in,
    operations_in,
    resource_ids_in,
    transaction_ids_in,
    user_ids_in,
    whole_number_in,
)
from sqlaudit._statements import DateRange
from sqlaudit.exceptions import RetrievalError, UnknownFieldError
from sqlaudit.types import ChangeFilters, Model, Models, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFilter:
    """Which changes are wanted; None, or nothing in a mapping, means that it doesn't matter."""

    models: tuple[Model, ...] | None
    resource_ids: tuple[Any, ...] | None
    include: tuple[str, ...]
    fields: frozenset[str] | None
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    operations: frozenset[Operation] | None
    user_ids: frozenset[str | None] | None
    impersonators: frozenset[str | None] | None
    reason: str | None
    context: Mapping[str, Any]
    transaction_ids: frozenset[uuid.UUID] | None
    date_range: DateRange
    id_range: tuple[int | None, int | None]

    @property
    def field_names(self) -> frozenset[str]:
        """Every field that is named."""
        return frozenset({*(self.fields or ()), *self.old, *self.new})

    @property
    def asks_for_all(self) -> bool:
        """Whether it doesn't matter which model a change is of."""
        return self.models is None and self.fields is None and not self.field_names


def checked_filter(
    model: Models,
    zone: dt.tzinfo,
    *,
    resource_ids: Any = None,
    include: Any = None,
    fields: Any = None,
    old: Any = None,
    new: Any = None,
    operations: Any = None,
    user_ids: Any = None,
    impersonators: Any = None,
    reason: Any = None,
    context: Any = None,
    transaction_id: Any = None,
    date_range: Any = None,
    id_range: Any = None,
    **unknown: Any,
) -> ChangeFilter:
    """
    Return the filter of these arguments; what they mean is said by `ChangeFilters`.

    Raises:
        RetrievalError: one of them makes no sense.
        UnknownFieldError: there is no such relationship.
        TypeError: there is no such filter.
    """
    if unknown:
        known = ", ".join(ChangeFilters.__annotations__)
        raise TypeError(f"There is no filter {', '.join(map(repr, unknown))}; the filters are {known}.")
    models = _models(model)
    if resource_ids is not None and models is None:
        raise RetrievalError("resource_ids is given without a model; name the model that they are keys of.")
    names = sorted(names_in("include", include) or ())
    if names:
        check_include(models, names, resource_ids)
    if reason is not None and not isinstance(reason, str):
        raise RetrievalError(f"reason is a {type(reason).__name__}; expected a str or None.")
    ids = resource_ids_in(resource_ids)
    return ChangeFilter(
        models=models,
        resource_ids=None if ids is None else tuple(ids),
        include=tuple(names),
        fields=names_in("fields", fields),
        old=mapping_in("old", old),
        new=mapping_in("new", new),
        operations=operations_in(operations),
        user_ids=user_ids_in("user_ids", user_ids),
        impersonators=user_ids_in("impersonators", impersonators),
        reason=reason,
        context=mapping_in("context", context),
        transaction_ids=transaction_ids_in(transaction_id),
        date_range=date_range_in("date_range", date_range, zone),
        id_range=id_range_in("id_range", id_range),
    )


def _models(model: Any) -> tuple[Model, ...] | None:
    if model is None:
        return None
    models = model if isinstance(model, Collection) and not isinstance(model, (type, Table, str)) else [model]
    for each in models:
        if not isinstance(each, (type, Table)) or (isinstance(each, type) and inspect(each, raiseerr=False) is None):
            raise RetrievalError(f"model is {each!r}; expected a mapped class or a tracked Table, or a list of them.")
    return tuple(models)


def check_include(models: tuple[Model, ...] | None, names: Collection[str], resource_ids: Any) -> None:
    """
    Refuse relationships that can't be followed.

    Raises:
        RetrievalError: there isn't one model with such, or no row of it is named.
        UnknownFieldError: the model has no such relationship.
    """
    if models is None or len(models) != 1 or not isinstance(models[0], type):
        raise RetrievalError("include names relationships of one mapped class; give it as the model.")
    if resource_ids is None:
        raise RetrievalError("include is given without resource_ids; name the rows whose related rows are wanted.")
    known = relationships_of(models[0])
    unknown = set(names) - known.keys()
    if unknown:
        raise UnknownFieldError(models[0].__name__, "include", unknown, known)


def relationships_of(model: Any) -> dict[str, RelationshipProperty[Any]]:
    """Return the relationships of a mapped class, by attribute name."""
    mapper: Mapper[Any] = inspect(model)
    return {each.key: each for each in mapper.relationships}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    Which part of an ordered list of changes is wanted.

    *after* and *before* are change ids, in the order of the list: the page that
    follows one, or that ends right before one. They need not be in the list.
    """

    limit: int | None = None
    after: int | None = None
    before: int | None = None
    newest_first: bool = True

    @property
    def from_end(self) -> bool:
        """Whether the last changes of the list are wanted, not the first."""
        return self.before is not None and self.after is None


def checked_page(limit: Any, after: Any, before: Any, newest_first: Any) -> Page:
    """
    Return the page of these arguments.

    Raises:
        RetrievalError: one of them makes no sense.
    """
    check_truth("newest_first", newest_first)
    return Page(
        limit=whole_number_in("limit", limit),
        after=whole_number_in("after", after),
        before=whole_number_in("before", before),
        newest_first=newest_first,
    )
