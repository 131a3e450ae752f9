"""The model that is measured: eight columns, once tracked and once not."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, ForeignKey, Integer, Numeric, String
from sqlalchemy.orm import DeclarativeBase, mapped_column

__all__ = ["ITEM", "Models", "as_json", "define_models", "values_of"]

ITEM = "bench_item"


@dataclass(frozen=True, slots=True)
class Models:
    """The mapped classes of one contestant."""

    base: Any
    category: Any
    item: Any
    untracked: Any


def define_models(
    *,
    mixins: tuple[type, ...] = (),
    attributes: Mapping[str, Any] | None = None,
    decorate: Callable[[Any], Any] = lambda model: model,
    prepare: Callable[[Any], object] = lambda _: None,
) -> Models:
    """Return the models; the tracked one with what a contestant marks it with."""
    base = type("Base", (DeclarativeBase,), {})
    prepare(base)
    key = mapped_column(Integer, primary_key=True)
    category = type("Category", (base,), {"__tablename__": "bench_category", "id": key})
    item = type("Item", (*mixins, base), {"__tablename__": ITEM, **_columns(), **(attributes or {})})
    untracked = type("Untracked", (base,), {"__tablename__": "bench_untracked", **_columns()})
    return Models(base, category, decorate(item), untracked)


def _columns() -> dict[str, Any]:
    return {
        "id": mapped_column(Integer, primary_key=True),
        "name": mapped_column(String(100), nullable=False),
        "quantity": mapped_column(Integer, nullable=False),
        "price": mapped_column(Numeric(10, 2), nullable=False),
        "due": mapped_column(DateTime(timezone=True), nullable=False),
        "active": mapped_column(Boolean, nullable=False),
        "details": mapped_column(JSON, nullable=False),
        "category_id": mapped_column(ForeignKey("bench_category.id"), nullable=True),
    }


_EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def values_of(number: int) -> dict[str, Any]:
    """Return the values of the object of that number, without its key."""
    return {
        "name": f"Item {number} of the catalogue",
        "quantity": number % 1000,
        "price": Decimal(number % 100_000) / 100,
        "due": _EPOCH + dt.timedelta(minutes=number),
        "active": number % 2 == 0,
        "details": {"colour": "green", "sizes": [1, 2, 3], "number": number},
        "category_id": 1 if number % 3 else None,
    }


def as_json(number: int) -> dict[str, Any]:
    """Return the same values, and the key, as plain JSON."""
    values = values_of(number)
    return {"id": number, **values, "price": f"{values['price']:.2f}", "due": values["due"].isoformat()}
