"""What is audited: declared on a class or table, resolved to a `Tracking` on `Table.info`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Column, Join, Table
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import ColumnProperty, CompositeProperty, Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.types import NullType

from sqlaudit.codec import is_supported
from sqlaudit.exceptions import TrackingError, UnknownFieldError, UnsupportedTypeError
from sqlaudit.types import Capture

__all__ = ["Declaration", "Tracking", "declaration_of", "tracked_tables", "tracking_of"]

_TABLE_KEY: Final = "sqlaudit"
_CLASS_ATTRIBUTE: Final = "__sqlaudit_declaration__"

_tracked: WeakSet[Table] = WeakSet()
_unresolved: WeakSet[Mapper[Any]] = WeakSet()
_declared = 0
_mappers: WeakKeyDictionary[Table, WeakSet[Mapper[Any]]] = WeakKeyDictionary()

MAX_LABEL_LENGTH: Final = 100

_Fields: TypeAlias = dict[str, tuple[Column[Any], ...]]
"""The columns that a declaration may name, by the name it uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the user said shall be audited, in attribute names; not checked against a model yet."""

    tracked_fields: tuple[str, ...] | None = None
    exclude_fields: tuple[str, ...] = ()
    masked_fields: tuple[str, ...] = ()
    table_label: str | None = None
    resource_id_field: str | None = None
    user_id_field: str | None = None
    renamed_fields: tuple[tuple[str, str], ...] = ()
    """The key under which old changes hold a field, and the attribute that it is now."""
    former_labels: tuple[str, ...] = ()
    capture: Capture | None = None

    @classmethod
    def checked(
        cls,
        *,
        tracked_fields: Collection[str] | None,
        exclude_fields: Collection[str],
        masked_fields: Collection[str],
        table_label: str | None,
        resource_id_field: str | None,
        user_id_field: str | None,
        renamed_fields: Mapping[str, str],
        former_labels: Collection[str],
        capture: Capture | None,
    ) -> "Declaration":
        """
        Return the declaration of these arguments.

        Raises:
            TrackingError: one has a wrong type, or two contradict each other.
        """
        for argument, value in (
            ("table_label", table_label),
            ("resource_id_field", resource_id_field),
            ("user_id_field", user_id_field),
        ):
            if value is not None and (not isinstance(value, str) or not value):
                raise TrackingError(f"{argument} is {value!r}; expected a name or None.")
        if table_label is not None and len(table_label) > MAX_LABEL_LENGTH:
            raise TrackingError(
                f"table_label is {len(table_label)} characters long; give one of at most {MAX_LABEL_LENGTH}."
            )
        if tracked_fields is not None and not tracked_fields:
            raise TrackingError("tracked_fields is empty; name at least one field, or None for all of them.")
        tracked = None if tracked_fields is None else _names("tracked_fields", tracked_fields)
        excluded = _names("exclude_fields", exclude_fields)
        masked = _names("masked_fields", masked_fields)
        contradiction = set(excluded) & {*(tracked or ()), *masked}
        if contradiction:
            raise TrackingError(
                f"exclude_fields and tracked_fields or masked_fields both name "
                f"{', '.join(map(repr, sorted(contradiction)))}; leave it out of one of them."
            )
        if capture is not None and not isinstance(capture, Capture):
            raise TrackingError(
                f"capture is {capture!r}; expected a Capture, such as Capture.TRIGGERS, or None for what the "
                f"configuration says."
            )
        former = _names("former_labels", former_labels, "labels")
        if table_label in former:
            raise TrackingError(f"former_labels names {table_label!r}, the label of today; leave it out.")
        return cls(
            tracked_fields=tracked,
            exclude_fields=excluded,
            masked_fields=masked,
            table_label=table_label,
            resource_id_field=resource_id_field,
            user_id_field=user_id_field,
            renamed_fields=_renamed(renamed_fields),
            former_labels=former,
            capture=capture,
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A many-to-many relationship whose additions and removals belong to the history of a row."""

    attribute: str
    table: Table
    """The association table, itself tracked."""
    own_keys: tuple[str, ...]
    """Its columns that hold the key of the row, in the order of the resource id."""
    other_keys: tuple[str, ...]
    """Its columns that hold the key of what is added or removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """What is audited of one table, in column keys."""

    label: str
    """The `resource_type` of its changes."""
    fields: tuple[str, ...]
    """The audited columns, in the order of the table."""
    recorded: tuple[str, ...]
    """The audited columns and the primary key, in the order of the table."""
    masked: frozenset[str]
    """Those of *fields* whose values are withheld."""
    resource_key: tuple[str, ...]
    """The columns that make the resource id: the primary key, unless the user named another."""
    user_key: str | None
    """The column that holds the actor when nobody else knows one."""
    links: tuple[Link, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The column of today by the key that it had in older changes."""
    former_labels: tuple[str, ...] = ()
    capture: Capture | None = None
    """None: what the configuration says."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every `resource_type` that its changes have had, the one of today first."""
        return (self.label, *self.former_labels)

    @property
    def key_columns(self) -> frozenset[str]:
        """The columns that say which resource a change is of, and who made it."""
        return frozenset(self.resource_key if self.user_key is None else (*self.resource_key, self.user_key))


def tracking_of(table: Any) -> Tracking | None:
    """Return what is audited of *table*; None for nothing, or for something that is no table."""
    return table.info.get(_TABLE_KEY) if isinstance(table, Table) else None


def label_of(table: Table | None) -> str:
    """Return the label of *table*'s changes, or its name if it isn't tracked."""
    tracking = tracking_of(table)
    return str(table) if tracking is None else tracking.label


def all_tracked() -> Collection[Table]:
    """Return every audited table there is: text that is sent names tables, and says nothing of their `MetaData`."""
    return _tracked


def tracked_tables(mapper: Mapper[Any]) -> Iterator[tuple[Table, Tracking]]:
    """Yield the audited tables that the rows of *mapper* are in, base tables first."""
    for table in written_tables(mapper):
        if (tracking := tracking_of(table)) is not None:
            yield table, tracking


def note_mapper(mapper: Mapper[Any]) -> None:
    """Remember with its tables that objects of *mapper* have rows in them."""
    for table in written_tables(mapper):
        _mappers.setdefault(table, WeakSet()).add(mapper)


def mappers_of(table: Table) -> Collection[Mapper[Any]]:
    """Return the mappers whose objects have rows in a tracked table; none for a secondary table."""
    return _mappers.get(table, ())


def written_tables(mapper: Mapper[Any]) -> list[Table]:
    """Return the tables that *mapper*'s objects have rows in, base tables first."""
    tables: list[Table] = []
    for each in mapper.iterate_to_root():
        local = each.local_table
        # An alias or a union is read, as that of an abstract concrete base; it isn't written.
        joined = list(each.tables) if isinstance(local, Join) else [local]
        tables = [*(table for table in joined if isinstance(table, Table) and table not in tables), *tables]
        if each.concrete:
            break
    return tables


# --- declaring -------------------------------------------------------------------------------------------------------


def declare_class(cls: type, declaration: Declaration) -> None:
    """
    Remember *declaration* on a class; its subclasses inherit it.

    Raises:
        TrackingError: the class has one already.
    """
    if _CLASS_ATTRIBUTE in vars(cls):
        raise TrackingError(f"{cls.__name__} is tracked already; decorate it with @track_table() once.")
    setattr(cls, _CLASS_ATTRIBUTE, declaration)


def declaration_of(cls: type) -> Declaration | None:
    """Return the declaration of a class, its own or inherited."""
    return getattr(cls, _CLASS_ATTRIBUTE, None)


def await_configuration(mapper: Mapper[Any]) -> None:
    """Remember that *mapper* has a declaration that isn't resolved yet."""
    global _declared
    _unresolved.add(mapper)
    _declared += 1


def declared_so_far() -> int:
    """Return how often something was declared: what is known of all tracked tables holds while it stays the same."""
    return _declared


def resolve_all() -> None:
    """
    Configure the mappers that have a declaration.

    SQLAlchemy does it when the ORM is first used; a Core statement of a tracked
    table may be earlier.
    """
    while _unresolved:
        _unresolved.pop().registry.configure(cascade=True)


def resolve_mapper(mapper: Mapper[Any]) -> None:
    """
    Resolve the declaration that *mapper*'s class has, if any, for each of its tables.

    Raises:
        UnknownFieldError: it names a field that the model doesn't have.
        UnsupportedTypeError: the values of a column can't be stored exactly.
        TrackingError: a label is taken, or a table has no primary key.
    """
    _unresolved.discard(mapper)
    declaration = declaration_of(mapper.class_)
    if declaration is None:
        return
    fields = _attribute_columns(mapper)
    names = declaration.tracked_fields or ()
    known = {each.key: each for each in mapper.iterate_properties if isinstance(each, RelationshipProperty)}
    relationships = [known[name] for name in names if name in known]
    columns = tuple(name for name in names if name not in known)
    if relationships and not columns:
        raise TrackingError(
            f"tracked_fields of {mapper.class_.__name__} names relationships alone; name at least one column, too."
        )
    if relationships:
        declaration = replace(declaration, tracked_fields=columns)
    chosen = _choose(declaration, fields, f"the model {mapper.class_.__name__}")
    tables = written_tables(mapper)
    if not tables and not issubclass(mapper.class_, AbstractConcreteBase):
        raise TrackingError(
            f"{mapper.class_.__name__} is mapped to a select, so its columns are no table's; give the table to track()."
        )
    for table in tables:
        _resolve(table, _owner_label(mapper, table), chosen, _owner_former_labels(mapper, table))
    for relationship in relationships:
        _resolve_link(mapper, relationship)


def resolve_table(table: Table, declaration: Declaration) -> None:
    """
    Resolve *declaration*, which speaks of column keys, for a Core table.

    Raises:
        UnknownFieldError: it names a column that the table doesn't have.
        UnsupportedTypeError: the values of a column can't be stored exactly.
        TrackingError: the label is taken, or the table has no primary key.
    """
    fields: _Fields = {key: (column,) for key, column in table.columns.items()}
    chosen = _choose(declaration, fields, f"the table {table.fullname}")
    _resolve(table, declaration.table_label or table.name, chosen, declaration.former_labels)


# --- resolving -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The columns that a declaration is about."""

    fields: frozenset[Column[Any]]
    masked: frozenset[Column[Any]]
    resource_key: tuple[Column[Any], ...]
    user_key: tuple[Column[Any], ...]
    renamed: tuple[tuple[str, Column[Any]], ...]
    """Keys of older changes, and the columns that they are now."""
    capture: Capture | None


def _attribute_columns(mapper: Mapper[Any]) -> _Fields:
    """Return the names that a declaration may use for the columns of *mapper*'s tables."""
    tables = {*written_tables(mapper)}
    columns: _Fields = {}
    # Mapper.attrs would be remembered, and no longer configure the mappers that come later.
    properties = {attribute.key: attribute for attribute in mapper.iterate_properties}
    for attribute in properties.values():
        named: Iterable[Any] = ()
        if isinstance(attribute, ColumnProperty):
            named = attribute.columns
        elif isinstance(attribute, CompositeProperty):
            named = [column for part in attribute.props for column in part.columns]
        elif isinstance(attribute, SynonymProperty):
            target = properties.get(attribute.name)
            named = target.columns if isinstance(target, ColumnProperty) else ()
        # A column_property() of an SQL expression is computed, not stored.
        stored = tuple(column for column in named if isinstance(column, Column) and column.table in tables)
        if stored:
            columns[attribute.key] = stored
    return columns


def _resolve_link(mapper: Mapper[Any], relationship: RelationshipProperty[Any]) -> None:
    """Track the association table of a many-to-many relationship, and note it with the table that it belongs to."""
    secondary, name = relationship.secondary, f"{mapper.class_.__name__}.{relationship.key}"
    if not isinstance(secondary, Table):
        raise TrackingError(
            f"{name} is a relationship without a secondary table; its changes are those of a foreign key: name the "
            f"column that holds it, in the model that has it."
        )
    if tracking_of(secondary) is None:
        resolve_table(secondary, Declaration())
    in_secondary: dict[Any, Any] = {local: remote.key for local, remote in relationship.synchronize_pairs}
    others: list[Any] = [remote.key for _, remote in relationship.secondary_synchronize_pairs or ()]
    for table, tracking in tracked_tables(mapper):
        own: list[Any] = [in_secondary.get(table.columns[key]) for key in tracking.resource_key]
        if relationship.key in (link.attribute for link in tracking.links) or None in own:
            continue
        link = Link(relationship.key, secondary, tuple(own), tuple(others))
        table.info[_TABLE_KEY] = replace(tracking, links=(*tracking.links, link))
        return
    if not any(link.attribute == relationship.key for _, tracking in tracked_tables(mapper) for link in tracking.links):
        raise TrackingError(
            f"{name} can't be shown in the history of its rows: its secondary table doesn't refer to their resource "
            f"id; audit the secondary table with track()."
        )


def _choose(declaration: Declaration, fields: _Fields, owner: str) -> _Chosen:
    def columns_of(argument: str, names: Iterable[str]) -> frozenset[Column[Any]]:
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise UnknownFieldError(owner, argument, unknown, fields)
        return frozenset(column for name in names for column in fields[name])

    named: Collection[str] | None = declaration.tracked_fields
    if named is None:
        named = [name for name, columns in fields.items() if not any(map(_is_sentinel, columns))]
    excluded = columns_of("exclude_fields", declaration.exclude_fields)
    masked = columns_of("masked_fields", declaration.masked_fields)
    tracked = (columns_of("tracked_fields", named) | masked) - excluded
    if excluded and not tracked:
        raise TrackingError(
            f"exclude_fields leaves nothing of {owner} to audit; leave at least one field out of it, or don't track it."
        )
    resource_id_field, user_id_field = declaration.resource_id_field, declaration.user_id_field
    if resource_id_field is not None:
        columns_of("resource_id_field", [resource_id_field])
    if user_id_field is not None:
        columns_of("user_id_field", [user_id_field])
    renamed = tuple((old, column) for old, name in _present(declaration, fields, owner) for column in fields[name])
    return _Chosen(
        fields=tracked,
        masked=masked,
        resource_key=fields[resource_id_field] if resource_id_field is not None else (),
        user_key=fields[user_id_field] if user_id_field is not None else (),
        renamed=renamed,
        capture=declaration.capture,
    )


def _is_sentinel(column: Column[Any]) -> bool:
    """Return whether *column* holds the counter of ``insert_sentinel()``, and nothing of the application's."""
    return column.default is not None and column.default.is_sentinel


def _present(declaration: Declaration, fields: _Fields, owner: str) -> tuple[tuple[str, str], ...]:
    """Return the renamed fields of *declaration*, which name attributes that there are."""
    unknown = {name: old for old, name in declaration.renamed_fields if name not in fields}
    for name, old in unknown.items():
        if old in fields:
            raise TrackingError(
                f"renamed_fields of {owner} says that {old!r} is now {name!r}, but {old!r} is the one that there is; "
                f"the old name goes first: {{{name!r}: {old!r}}}."
            )
    if unknown:
        raise UnknownFieldError(owner, "renamed_fields", unknown, fields)
    return declaration.renamed_fields


def _resolve(table: Table, label: str, chosen: _Chosen, former_labels: tuple[str, ...]) -> None:
    earlier = tracking_of(table)
    fields = {column.key for column in chosen.fields if column.table is table}
    masked = {column.key for column in chosen.masked if column.table is table}
    if earlier is not None:
        # Another class of the same table, or the same class under more columns: both hold.
        fields, masked = fields | {*earlier.fields}, masked | earlier.masked
    if not fields:
        return
    primary_key = tuple(column.key for column in table.primary_key)
    if not primary_key:
        raise TrackingError(
            f"The table {table.fullname} has no primary key, so its rows can't be told apart; "
            f"give it one, or leave it untracked."
        )
    resource_key = tuple(column.key for column in chosen.resource_key if column.table is table)
    if not resource_key:
        resource_key = earlier.resource_key if earlier is not None else primary_key
    hidden = masked & {*primary_key, *resource_key}
    if hidden:
        raise TrackingError(
            f"masked_fields names {', '.join(map(repr, sorted(hidden)))} of {table.fullname}, its key, "
            f"which the resource id of every change shows; leave it out of masked_fields, or name another "
            f"resource_id_field."
        )
    user_key = next((column.key for column in chosen.user_key if column.table is table), None)
    recorded = {*fields, *primary_key}
    for key in {*recorded, *resource_key} - masked:
        column = table.columns[key]
        # A foreign key has no type before the table that it refers to is there.
        is_open = isinstance(column.type, NullType) and column.foreign_keys
        if not is_open and not is_supported(column.type):
            raise UnsupportedTypeError(f"{table.fullname}.{key}", repr(column.type))
    renamed = _renamed_columns(table, chosen, {} if earlier is None else earlier.renamed)
    if earlier is not None:
        label, former_labels = earlier.label, tuple(dict.fromkeys((*earlier.former_labels, *former_labels)))
    tracking = Tracking(
        label=label,
        fields=tuple(key for key in table.columns.keys() if key in fields),
        recorded=tuple(key for key in table.columns.keys() if key in recorded),
        masked=frozenset(masked),
        resource_key=resource_key,
        user_key=user_key if user_key is not None or earlier is None else earlier.user_key,
        links=() if earlier is None else earlier.links,
        renamed=renamed,
        former_labels=former_labels,
        capture=chosen.capture if earlier is None or chosen.capture is not None else earlier.capture,
    )
    _refuse_taken_label(table, tracking)
    global _declared
    _tracked.add(table)
    _declared += 1
    table.info[_TABLE_KEY] = tracking


def _renamed_columns(table: Table, chosen: _Chosen, earlier: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of *table* by the keys that they had in older changes."""
    renamed = dict(earlier)
    for old, column in chosen.renamed:
        if column.table is not table:
            continue
        if old in table.columns:
            raise TrackingError(
                f"renamed_fields says that {old!r} is now {column.key!r}, but {table.fullname} still has a column "
                f"{old!r}; leave it out."
            )
        if renamed.setdefault(old, column.key) != column.key:
            raise TrackingError(
                f"renamed_fields says that {old!r} of {table.fullname} is now {renamed[old]!r}, and {column.key!r}; "
                f"leave one of them out."
            )
    return renamed


def _owner_label(mapper: Mapper[Any], table: Table) -> str:
    """Return the label of the class that owns *table*."""
    owner = _owner(mapper, table)
    if owner is None:
        return table.name
    own: Declaration | None = vars(owner).get(_CLASS_ATTRIBUTE)
    return own.table_label if own is not None and own.table_label else owner.__name__


def _owner_former_labels(mapper: Mapper[Any], table: Table) -> tuple[str, ...]:
    """Return the former labels of the class that owns *table*: they are of that class alone, as its label is."""
    owner = _owner(mapper, table)
    own: Declaration | None = None if owner is None else vars(owner).get(_CLASS_ATTRIBUTE)
    return () if own is None else own.former_labels


def _owner(mapper: Mapper[Any], table: Table) -> type | None:
    """Return the first class in the hierarchy that is mapped to *table*; None for a part of a join."""
    owners = [each.class_ for each in mapper.iterate_to_root() if each.local_table is table]
    return owners[-1] if owners else None


def _refuse_taken_label(table: Table, tracking: Tracking) -> None:
    if tracking.label in tracking.former_labels:
        raise TrackingError(
            f"former_labels of {table.fullname} names {tracking.label!r}, its label of today; leave it out."
        )
    for other in table.metadata.tables.values():
        its = tracking_of(other)
        if other is table or its is None:
            continue
        if its.label == tracking.label:
            raise TrackingError(
                f"The tables {other.fullname} and {table.fullname} both have the label {its.label!r}; give one of them "
                f"another with table_label=."
            )
        if shared := {*its.labels} & {*tracking.labels}:
            raise TrackingError(
                f"The tables {other.fullname} and {table.fullname} both have, or had, the label "
                f"{', '.join(map(repr, sorted(shared)))}; its changes can be of one of them alone: leave it out of the "
                f"former_labels of the other."
            )


def _renamed(renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(renamed, Mapping) or not all(isinstance(name, str) for pair in renamed.items() for name in pair):
        raise TrackingError(
            f"renamed_fields is {renamed!r}; expected a mapping of old names to the names of today's attributes."
        )
    return tuple(renamed.items())


def _names(argument: str, names: Collection[str], kind: str = "field names") -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TrackingError(f"{argument} is {names!r}; expected a list of {kind}.")
    return tuple(dict.fromkeys(names))
