"""The tracked tables that the rows of a model are in, and which of their changes are its own. No session in here."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Table, inspect
from sqlalchemy.orm import Mapper

from sqlaudit._statements import Resource, of_identities, of_subclass, resource_of
from sqlaudit.codec import codec_of
from sqlaudit.exceptions import RetrievalError, UntrackedError
from sqlaudit.tracking import Tracking, all_tracked, mappers_of, resolve_all, tracked_tables, tracking_of
from sqlaudit.types import Model


@dataclass(slots=True)
class Source:
    """A tracked table in which rows of the model are."""

    table: Table
    tracking: Tracking
    names: dict[str, str]
    """Attribute name by column key."""
    inherited: set[str]
    """Attributes that a base table shows already."""
    owner: Model
    """The class that owns the table, or the table itself."""

    @property
    def field_names(self) -> dict[str, str]:
        """The column key of each audited field, by the name that users give."""
        return {self.names.get(key, key): key for key in self.tracking.fields}

    def resource(
        self, dialect: Dialect, *, inherited: Collection[str] = (), members: ColumnElement[bool] | None = None
    ) -> Resource:
        """Return what retrieval needs to know of the table; *inherited* attributes are shown by another."""
        return resource_of(self.table, self.tracking, self.names, dialect, inherited=inherited, members=members)


def sources_of(model: Any) -> list[Source]:
    """
    Return the tracked tables of *model* and its subclasses, with attribute names by column key.

    Raises:
        UntrackedError: there is none.
        RetrievalError: it is no model.
    """
    if isinstance(model, Table):
        tracking = tracking_of(model)
        if tracking is None:
            raise UntrackedError(f"The table {model.fullname}", is_table=True)
        return [Source(model, tracking, {key: key for key in model.columns.keys()}, set(), model)]
    mapper = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        raise RetrievalError(f"model_class is {model!r}; expected a mapped class or a tracked Table.")
    # Declarations are resolved when the mappers are configured.
    mapper.registry.configure(cascade=True)
    sources: dict[Table, Source] = {}
    for each in mapper.self_and_descendants:
        shown: set[str] = set()
        for table, tracking in tracked_tables(each):
            names = names_of(each, table)
            if table not in sources:
                sources[table] = Source(table, tracking, {}, set(shown), _owner(each, table))
            sources[table].names.update(names)
            shown.update(names[key] for key in tracking.fields if key in names)
    if not sources:
        raise UntrackedError(model.__name__)
    return list(sources.values())


def names_of(mapper: Mapper[Any], table: Table) -> dict[str, str]:
    """Return the attributes of a class by the keys of the columns of one of its tables."""
    attributes = {column: name.key for name in mapper.column_attrs for column in name.columns}
    return {column.key: attributes[column] for column in table.columns if column in attributes}


def all_sources() -> list[Source]:
    """Return every tracked table there is; those of several `MetaData` may have the same label."""
    resolve_all()
    roots = {mapper.base_mapper for table in all_tracked() for mapper in mappers_of(table)}
    mapped = {source.table: source for mapper in roots for source in sources_of(mapper.class_)}
    return [mapped.get(table) or sources_of(table)[0] for table in all_tracked()]


def _owner(mapper: Mapper[Any], table: Table) -> type[Any]:
    """Return the class that owns *table*: the first in the hierarchy that is mapped to it."""
    owners = [each.class_ for each in mapper.iterate_to_root() if each.local_table is table]
    return owners[-1] if owners else mapper.class_


def members_of(model: Any, source: Source, dialect: Dialect, trail: Table) -> ColumnElement[bool] | None:
    """
    Return which changes of a table are of *model*'s rows, if it shares the table with its base classes.

    Raises:
        RetrievalError: the trail can't tell.
    """
    if isinstance(model, Table):
        return None
    mapper: Mapper[Any] = inspect(model)
    if mapper.inherits is None or source.table not in mapper.inherits.tables:
        return None
    own = tracking_of(mapper.local_table)
    if own is not None and mapper.local_table is not source.table and mapper.local_table not in mapper.inherits.tables:
        return of_subclass(trail, own)
    discriminator = mapper.polymorphic_on
    for table, tracking in tracked_tables(mapper):
        for key in tracking.recorded:
            if table.columns[key] is discriminator:
                identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
                codec = codec_of(table.columns[key].type, dialect)
                return of_identities(
                    trail, tracking, key, [codec.dump(each) for each in identities if each is not None]
                )
    raise RetrievalError(
        f"The trail can't tell the rows of {mapper.class_.__name__} from those of its base class, because their "
        f"discriminator isn't tracked; ask for {mapper.inherits.class_.__name__}, or track the discriminator."
    )
