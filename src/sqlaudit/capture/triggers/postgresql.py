"""
The triggers of PostgreSQL: one for each operation, with a function of its own, which writes the trail.

They fire once for a statement, with its rows before and after in transition
tables, and write the changes of all of them with one INSERT. Where that can't
tell in which order the rows were changed, they fire for each row: see `Firing`.
The functions are in the schema of the table, and go with it.
"""

import enum
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Enum, Integer, String, Table, TypeDecorator, Uuid, text

from sqlaudit._places import schema_of
from sqlaudit.capture.rows import AuditedTable, batched
from sqlaudit.capture.triggers.objects import GUARD, DatabaseObject, no_table
from sqlaudit.capture.triggers.postgresql_values import HELPERS, ValueSQL, literal, quoted, value_sql, withheld_sql
from sqlaudit.exceptions import TrackingError
from sqlaudit.tracking import all_tracked

__all__ = ["guards", "place_of", "standing", "wanted"]

# PostgreSQL fires triggers in the order of their names: what the application's do comes after what caused it.
_TRIGGER_PREFIX: Final = "00_sqlaudit_"
_FUNCTION_PREFIX: Final = "sqlaudit_"
_MARK: Final = "-- sqlaudit, version 1: "
_MAX_NAME: Final = 63
_MAX_PAIRS: Final = 50
"""A function has at most a hundred arguments."""


def wanted(connection: Connection, tables: Sequence[AuditedTable], trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what should stand for those of *tables* that are in the database, in the order of creation.

    Raises:
        TrackingError: PostgreSQL can't write the values of a column as the session would, or a table is a view.
    """
    shown = {"lc_monetary": connection.scalar(text(_LC_MONETARY)), "extra_float_digits": "1"}
    trail_sql = quoted(*place_of(connection, trail))
    yielded: set[tuple[str, str]] = set()
    for audited in tables:
        relation = _relation(connection, audited.table)
        if relation is None:
            continue
        recording = _recording(audited, relation, trail_sql, connection.dialect)
        for name in sorted(recording.helpers):
            if (relation.schema, name) not in yielded:
                yielded.add((relation.schema, name))
                yield _helper(relation.schema, name).as_object()
        # What is planned without nested loops looks dear: it would be compiled anew for every statement.
        settings = {"search_path": "pg_catalog, pg_temp", "jit": "off"}
        settings |= {name: shown[name] for name in recording.settings}
        for operation, body in _bodies(recording):
            function = _Function(
                schema=relation.schema,
                name=_short(f"{_FUNCTION_PREFIX}{operation}_{relation.name}"),
                head="() RETURNS trigger LANGUAGE plpgsql VOLATILE",
                # Plans are kept: one for a single row must not be that of a million.
                settings=settings | ({"enable_nestloop": "off"} if operation == "update" else {}),
                body=body,
                writes_trail=True,
            )
            yield function.as_object()
            for schema, name in relation.places_of(operation):
                yield _trigger(operation, relation.firing, function).as_object(
                    schema, name, (relation.schema, relation.name)
                )


def guards(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """Yield what refuses to update, delete and truncate what *trail* holds."""
    schema, name = place_of(connection, trail)
    function = _Function(
        schema=schema,
        name=_short(f"{GUARD}_{name}"),
        head="() RETURNS trigger LANGUAGE plpgsql VOLATILE",
        settings={"search_path": "pg_catalog, pg_temp"},
        body=_GUARD,
    )
    yield function.as_object()
    for event in ("update", "delete", "truncate"):
        yield _Trigger(
            name=f"{_TRIGGER_PREFIX}guard_{event}",
            timing="BEFORE",
            event=event.upper(),
            level="STATEMENT",
            old_table=None,
            new_table=None,
            function=function,
        ).as_object(schema, name, (schema, name))


_GUARD: Final = f"""
{_MARK}the trail is only added to
BEGIN
  IF TG_OP = 'DELETE' AND nullif(current_setting('sqlaudit.published', true), '')::jsonb -> 'retention' = 'true' THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION 'the audit trail is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'insufficient_privilege', HINT = 'purge_changes() deletes old changes';
END
"""


def standing(connection: Connection, trail: Table) -> Iterator[DatabaseObject]:
    """
    Yield what stands there of ours.

    Functions are looked for where the connection looks for tables, where tracked ones are, and *trail*; their
    triggers everywhere: partitions may be in any schema.
    """
    schemas = {schema_of(connection, table) for table in (trail, *all_tracked())} - {None}
    found = connection.execute(text(_STANDING_FUNCTIONS), {"schemas": [*schemas], "mark": f"\n{_MARK}"})
    functions: dict[int, _Function] = {}
    for oid, schema, name, head, config, is_definer, is_public, body in found:
        settings = dict(setting.split("=", 1) for setting in config or ())
        functions[oid] = _Function(
            schema=schema,
            name=name,
            head=head,
            settings=settings,
            body=body,
            writes_trail=is_definer,
            is_public=is_definer and is_public,
        )
        yield functions[oid].as_object()
    # One that was renamed still writes.
    ours = {"schemas": [*schemas], "prefix": _TRIGGER_PREFIX, "functions": [*functions]}
    triggers = connection.execute(text(_STANDING_TRIGGERS), ours)
    for schema, table, name, type_, old, new, is_plain, function_oid, root_schema, root in triggers:
        trigger = _Trigger(
            name=name,
            timing="BEFORE" if type_ & 2 else "AFTER",
            event=next((event for bit, event in _EVENTS if type_ & bit), ""),
            level="ROW" if type_ & 1 else "STATEMENT",
            old_table=old,
            new_table=new,
            function=functions.get(function_oid),
            is_plain=is_plain,
        )
        yield trigger.as_object(schema, table, (root_schema, root))


_LC_MONETARY: Final = "SELECT reset_val FROM pg_settings WHERE name = 'lc_monetary'"

_EVENTS: Final = ((4, "INSERT"), (16, "UPDATE"), (8, "DELETE"), (32, "TRUNCATE"))

_SCHEMAS: Final = "(SELECT unnest(current_schemas(false)) UNION SELECT unnest(CAST(:schemas AS name[])))"

_STANDING_FUNCTIONS: Final = f"""
SELECT p.oid, n.nspname, p.proname,
  concat('(', pg_get_function_arguments(p.oid), ') RETURNS ', pg_get_function_result(p.oid), ' LANGUAGE ', l.lanname,
    CASE p.provolatile WHEN 'i' THEN ' IMMUTABLE' WHEN 's' THEN ' STABLE' ELSE ' VOLATILE' END),
  p.proconfig, p.prosecdef, has_function_privilege('public', p.oid, 'EXECUTE'), p.prosrc
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang
WHERE n.nspname IN {_SCHEMAS} AND starts_with(ltrim(p.prosrc, E' \\n'), ltrim(CAST(:mark AS text), E' \\n'))
ORDER BY p.prosecdef, n.nspname, p.proname
"""

_STANDING_TRIGGERS: Final = f"""
SELECT n.nspname, c.relname, t.tgname, t.tgtype, t.tgoldtable, t.tgnewtable,
  t.tgqual IS NULL AND t.tgnargs = 0 AND t.tgconstraint = 0 AND cardinality(CAST(t.tgattr AS int2[])) = 0
  AND NOT EXISTS (
    SELECT FROM pg_trigger AS each WHERE each.tgfoid = t.tgfoid AND each.tgname = t.tgname AND each.tgenabled <> 'O'
  ),
  t.tgfoid, root_place.nspname, root.relname
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_class AS root ON root.oid = coalesce(pg_partition_root(c.oid), c.oid)
JOIN pg_namespace AS root_place ON root_place.oid = root.relnamespace
WHERE t.tgparentid = 0 AND NOT t.tgisinternal AND (
  t.tgfoid = ANY(CAST(:functions AS oid[]))
  OR n.nspname IN {_SCHEMAS} AND starts_with(CAST(t.tgname AS text), CAST(:prefix AS text))
)
ORDER BY n.nspname, c.relname, t.tgname
"""


# --- tables, functions and triggers ----------------------------------------------------------------------------------


class Firing(enum.Enum):
    """How the triggers of a table fire."""

    STATEMENT = "once for a statement"
    FIRST_ROW = "for the first row, to record all rows of the statement"
    """
    The application has triggers for each row, and what they write in the same
    table shall be told after what caused it: they come after ours, which has the
    rows of the whole statement.
    """
    ROW = "for each row"
    """
    Partitions get these triggers with their parent, also those that are made
    later. And only they tell the order of what several foreign keys do to a row.
    """


@dataclass(frozen=True, slots=True)
class _Relation:
    """A tracked table as it is in the database."""

    schema: str
    name: str
    is_partitioned: bool
    firing: Firing
    leaves: tuple[tuple[str, str], ...]
    """Schema and name of its partitions that hold rows."""

    @property
    def sql(self) -> str:
        return quoted(self.schema, self.name)

    def places_of(self, operation: str) -> tuple[tuple[str, str], ...]:
        """Return schema and name of the tables that need a trigger: partitions inherit all but this one."""
        own = ((self.schema, self.name),)
        return (*own, *self.leaves) if operation == "truncate" else own


def place_of(connection: Connection, table: Table) -> tuple[str, str]:
    """Return schema and name of a table, also of one that isn't there yet."""
    schema = schema_of(connection, table)
    if schema is not None:
        return schema, table.name
    query = """
        SELECT coalesce(min(n.nspname), current_schema())
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:name)
    """
    return str(connection.scalar(text(query), {"name": _plainly_quoted(table.name)})), table.name


def _plainly_quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _relation(connection: Connection, table: Table) -> _Relation | None:
    schema, name = place_of(connection, table)
    query = """
        SELECT c.oid, c.relkind = 'p', c.relkind IN ('r', 'p'),
          c.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid) OR (
            SELECT count(*) > 1 AND bool_or(k.confdeltype = 'c') FROM pg_constraint AS k
            WHERE k.conrelid = c.oid AND k.contype = 'f'
              AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
          ),
          EXISTS (
            SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
              AND t.tgtype & 67 = 1 AND NOT starts_with(CAST(t.tgname AS text), CAST(:prefix AS text))
          )
        FROM pg_class AS c WHERE c.oid = to_regclass(:name)
    """
    parameters = {"name": _plainly_quoted(schema, name), "prefix": _TRIGGER_PREFIX}
    found = connection.execute(text(query), parameters).one_or_none()
    if found is None:
        return None
    oid, is_partitioned, is_table, needs_rows, has_triggers = found
    if not is_table:
        raise no_table(table)
    leaves = """
        SELECT n.nspname, c.relname FROM pg_partition_tree(CAST(:oid AS oid)) AS p
        JOIN pg_class AS c ON c.oid = p.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE p.isleaf AND c.relkind = 'r' AND c.oid <> :oid ORDER BY n.nspname, c.relname
    """
    partitions = connection.execute(text(leaves), {"oid": oid}).all() if is_partitioned else ()
    return _Relation(
        schema,
        name,
        is_partitioned,
        Firing.ROW if needs_rows else Firing.FIRST_ROW if has_triggers else Firing.STATEMENT,
        tuple((row[0], row[1]) for row in partitions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    schema: str
    name: str
    head: str
    """Its arguments, its result, its language and volatility."""
    settings: Mapping[str, str]
    body: str
    writes_trail: bool = False
    """It does so with the rights of its owner."""
    is_public: bool = False
    """Anybody can make a trigger of it, for a table of his own: he could write into the trail what he likes."""

    @property
    def definition(self) -> str:
        """All that counts, the same whether it was written or read."""
        settings = [f"SET {name} = {value}" for name, value in sorted(self.settings.items())]
        rights = ["SECURITY DEFINER"] * self.writes_trail + ["EXECUTE FOR PUBLIC"] * self.is_public
        return "\n".join((self.head, *rights, *settings, self.body))

    def as_object(self) -> DatabaseObject:
        """Return it as an object of the database."""
        name = quoted(self.schema, self.name)
        options = ["SECURITY DEFINER"] if self.writes_trail else []
        options += [f"SET {key} = {_setting(key, value)}" for key, value in sorted(self.settings.items())]
        create = "\n".join(
            (f"CREATE OR REPLACE FUNCTION {name} {self.head}", *options, f"AS {_dollar_quoted(self.body)}")
        )
        if self.writes_trail:
            revoke = f"REVOKE EXECUTE ON FUNCTION {name}() FROM PUBLIC"
            create = "DO " + _dollar_quoted(f"\nBEGIN\n{create};\n{revoke};\nEND\n", "install")
        return DatabaseObject(
            kind="function",
            schema=self.schema,
            table=None,
            name=self.name,
            definition=self.definition,
            create=create,
            drop=f"DROP FUNCTION IF EXISTS {name}",
        )


def _setting(key: str, value: str) -> str:
    # A search_path in quotes would be one schema.
    return value if key == "search_path" else literal(value)


def _dollar_quoted(code: str, word: str = "sqlaudit") -> str:
    while f"${word}$" in code:
        word += "_"
    return f"${word}${code}${word}$"


def _helper(schema: str, name: str) -> _Function:
    head, settings, body = HELPERS[name]
    return _Function(
        schema=schema, name=name, head=head, settings=settings, body=body(lambda each: quoted(schema, each))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trigger:
    name: str
    timing: str
    event: str
    level: str
    old_table: str | None
    new_table: str | None
    function: _Function | None
    is_plain: bool = True
    """It is enabled, and fires whatever changes."""

    def as_object(self, schema: str, table: str, recorded: tuple[str, str]) -> DatabaseObject:
        """Return it as an object of the database: it fires for a table, which may be a partition of the *recorded* one."""
        tables = {"OLD": self.old_table, "NEW": self.new_table}
        references = " ".join(f"{side} TABLE AS {name}" for side, name in tables.items() if name)
        calls = "" if self.function is None else quoted(self.function.schema, self.function.name)
        on = quoted(schema, table)
        parts = [f"{self.timing} {self.event} ON {on}"]
        parts += [f"REFERENCING {references}"] if references else []
        parts += [f"FOR EACH {self.level} EXECUTE FUNCTION {calls}()"]
        fires = "\n".join(parts)
        return DatabaseObject(
            kind="trigger",
            schema=schema,
            table=table,
            name=self.name,
            # A function is dropped with its trigger: where that is another, so is this.
            definition=f"{fires}\n{self.is_plain}\n{self.function and self.function.definition}",
            create=f"CREATE TRIGGER {quoted(self.name)}\n{fires}",
            drop=f"DROP TRIGGER IF EXISTS {quoted(self.name)} ON {on}",
            serves=frozenset({recorded}),
        )


def _trigger(operation: str, firing: Firing, function: _Function) -> _Trigger:
    is_row = firing is not Firing.STATEMENT and operation != "truncate"
    has_tables = firing is not Firing.ROW and operation != "truncate"
    return _Trigger(
        name=f"{_TRIGGER_PREFIX}{operation}",
        timing="BEFORE" if operation == "truncate" else "AFTER",
        event=operation.upper(),
        level="ROW" if is_row else "STATEMENT",
        old_table="old_rows" if has_tables and operation != "insert" else None,
        new_table="new_rows" if has_tables and operation != "delete" else None,
        function=function,
    )


def _short(name: str) -> str:
    """Return *name*, cut off and with a hash if it is longer than PostgreSQL's names are."""
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:10]
    return f"{encoded[: _MAX_NAME - len(digest) - 1].decode(errors='ignore')}_{digest}"


# --- what the functions do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """A recorded column: its key in the trail, its name in the table, and the SQL of its values."""

    key: str
    name: str
    value: ValueSQL

    def of(self, row: str) -> str:
        """Return the SQL of the column in a row."""
        return f"{row}.{quoted(self.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """What is recorded of a table, and where."""

    relation: _Relation
    trail: str
    label: str
    recorded: tuple[_Column, ...]
    key: tuple[_Column, ...]
    user: _Column | None

    @property
    def settings(self) -> frozenset[str]:
        """The settings that the values are shown by."""
        return frozenset().union(*(column.value.settings for column in self.recorded + self.key))

    @property
    def helpers(self) -> frozenset[str]:
        """The functions that are called."""
        return frozenset().union(*(column.value.helpers for column in self.recorded + self.key))

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are read."""
        used = (*self.recorded, *self.key, *(() if self.user is None else (self.user,)))
        return list(dict.fromkeys(column.name for column in used))

    def document(self, row: str) -> str:
        """Return the SQL of all that is recorded of a row."""
        pairs = [f"{literal(column.key)}, {column.value.document(column.of(row))}" for column in self.recorded]
        return "\n|| ".join(
            "jsonb_build_object(\n  " + ",\n  ".join(some) + "\n)" for some in batched(pairs, _MAX_PAIRS)
        )

    def resource_id(self, row: str) -> str:
        """Return the SQL of the canonical text of a row's key."""
        if len(self.key) == 1:
            return _text_of(self.key[0], row)
        parts = [
            f"to_json({_text_of(column, row)})::text"
            if column.value.is_text
            else f"replace({_text_of(column, row)}, ' ', '')"
            for column in self.key
        ]
        return "'[' || " + " || ',' || ".join(parts) + " || ']'"

    def actor(self, row: str) -> str:
        """Return the SQL of the user that a row names."""
        return "NULL" if self.user is None else _text_of(self.user, row)


def _text_of(column: _Column, row: str) -> str:
    assert column.value.text is not None  # noqa: S101 (others were refused)
    return column.value.text(column.of(row))


def _recording(audited: AuditedTable, relation: _Relation, trail: str, dialect: Dialect) -> _Recording:
    """
    Return what is recorded of a table.

    Raises:
        TrackingError: PostgreSQL can't write the values of a column as the session would.
    """
    tracking, columns = audited.tracking, audited.table.columns

    def column_of(key: str, use: str) -> _Column:
        column = columns[key]
        make = withheld_sql if key in tracking.masked else value_sql
        try:
            value = make(column.type, dialect, lambda name: quoted(relation.schema, name))
        except LookupError:
            raise _refused(audited, key, use) from None
        if value.text is None and use != "":
            raise _refused(audited, key, use)
        return _Column(key, column.name, value)

    user_key = tracking.user_key
    if user_key is not None and not _is_actor(columns[user_key].type):
        raise _refused(audited, user_key, " as the actor")
    return _Recording(
        relation=relation,
        trail=trail,
        label=tracking.label,
        recorded=tuple(column_of(key, "") for key in tracking.recorded),
        key=tuple(column_of(key, " as a part of the resource id") for key in tracking.resource_key),
        user=None if user_key is None else column_of(user_key, " as the actor"),
    )


def _is_actor(type_: Any) -> bool:
    """Return whether the text of a user's id in the database is that of its Python value."""
    if isinstance(type_, TypeDecorator):
        is_decoded = type(type_).process_result_value is not TypeDecorator.process_result_value
        return not is_decoded and _is_actor(type_.impl_instance)
    is_member = isinstance(type_, Enum) and type_.enum_class is not None
    return isinstance(type_, (Integer, String, Uuid)) and not is_member


def _refused(audited: AuditedTable, key: str, use: str) -> TrackingError:
    return TrackingError(
        f"{audited.table.fullname}.{key} is of type {audited.table.columns[key].type!r}, whose values PostgreSQL can't "
        f"write{use} as Python does; record the table with capture=Capture.SESSION, or leave the column out with "
        f"exclude_fields."
    )


def _bodies(recording: _Recording) -> Iterator[tuple[str, str]]:
    """Yield each operation and the body of the function that records it."""
    relation, firing = recording.relation, recording.relation.firing
    for operation in ("insert", "update", "delete", "truncate"):
        mark = f"{_MARK}records {operation.upper()} of {relation.sql} as {recording.label}"
        is_first = _IS_FIRST.get(operation) if firing is Firing.FIRST_ROW else None
        rows = _updated(recording) if operation == "update" else _written(recording, operation)
        yield (
            operation,
            _BODY.format(
                mark=" ".join(mark.replace("%", "_").split()),
                label=literal(recording.label),
                guard="" if is_first is None else _FIRST_ROW_ALONE.format(condition=is_first),
                trail=recording.trail,
                rows=_indented(rows, 2),
            ),
        )


_BODY: Final = """
{mark}
<<writer>>
DECLARE
  published jsonb := nullif(current_setting('sqlaudit.published', true), '')::jsonb;
  transaction_id uuid;
  own_transaction text;
  actor text;
  impersonator text;
  reason text;
  context jsonb;
BEGIN{guard}
  IF published IS NULL THEN
    context := jsonb_strip_nulls(jsonb_build_object(
      'database_user', session_user,
      'application_name', nullif(current_setting('application_name'), ''),
      'client_address', host(inet_client_addr())
    ));
  ELSE
    IF jsonb_exists(published -> 'by_session', {label}) THEN
      RETURN NULL;
    END IF;
    transaction_id := published ->> 'transaction';
    actor := published ->> 'user';
    impersonator := published ->> 'impersonator';
    reason := published ->> 'reason';
    context := nullif(published -> 'facts', 'null');
  END IF;
  IF transaction_id IS NULL THEN
    -- A UUID of version 7: the time at which the transaction began, and what nobody else has.
    own_transaction := encode(sha256(convert_to(concat_ws(
      ' ', pg_current_xact_id(), extract(epoch FROM now()), pg_backend_pid(), current_database()
    ), 'UTF8')), 'hex');
    transaction_id := concat(
      lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0'),
      '7', left(own_transaction, 3), '8', right(own_transaction, 15)
    );
  END IF;
  INSERT INTO {trail} (
    transaction_id, recorded_at, operation, resource_type, resource_id,
    changed_by, impersonated_by, reason, context, old_values, new_values
  )
{rows};
  RETURN NULL;
END
"""

_FIRST_ROW_ALONE: Final = """
  -- The first row records those of the whole statement.
  IF NOT ({condition}) THEN
    RETURN NULL;
  END IF;"""

_IS_FIRST: Final = {
    "insert": "SELECT each *= NEW FROM new_rows AS each LIMIT 1",
    "delete": "SELECT each *= OLD FROM old_rows AS each LIMIT 1",
    "update": "(SELECT each *= OLD FROM old_rows AS each LIMIT 1) AND (SELECT each *= NEW FROM new_rows AS each LIMIT 1)",
}


def _written(recording: _Recording, operation: str) -> str:
    """Return the SELECT of what is written of rows that were inserted or deleted."""
    relation = recording.relation
    row = "n" if operation == "insert" else "o"
    if operation == "truncate":
        source = f"{relation.sql} AS o" if relation.is_partitioned else f"ONLY {relation.sql} AS o"
    elif relation.firing is Firing.ROW:
        source = "(SELECT NEW.*) AS n" if row == "n" else "(SELECT OLD.*) AS o"
    else:
        source = "new_rows AS n" if row == "n" else "old_rows AS o"
    document = _indented(recording.document(row), 2)
    lines = [
        "SELECT",
        f"  writer.transaction_id, clock_timestamp(), {literal('insert' if row == 'n' else 'delete')}, "
        f"{literal(recording.label)},",
        f"  {recording.resource_id(row)},",
        f"  coalesce(writer.actor, {recording.actor(row)}), writer.impersonator, writer.reason, writer.context,",
        *((f"  NULL,\n{document}",) if row == "n" else (f"{document},\n  NULL",)),
        f"FROM {source}",
    ]
    if operation == "truncate" and relation.is_partitioned:
        # Each partition tells its own rows; the parent those of partitions that have no trigger yet.
        lines.append(
            f"WHERE o.tableoid = TG_RELID OR TG_RELID = {literal(relation.sql)}::regclass AND NOT EXISTS (\n"
            f"  SELECT FROM pg_trigger AS each WHERE each.tgrelid = o.tableoid AND each.tgname = TG_NAME\n)"
        )
    return "\n".join(lines)


def _updated(recording: _Recording) -> str:
    """
    Return the SELECT of what is written of rows that were updated.

    The rows before and after stand in the same order in their tables. Where keys
    were changed, all rows first leave their old ones.
    """
    place = "sqlaudit_place"
    while place in recording.columns:
        place += "_"
    if recording.relation.firing is Firing.ROW:
        source = f"FROM (SELECT 1 AS {place}, OLD.*) AS o CROSS JOIN (SELECT NEW.*) AS n"
    else:
        columns = ", ".join(f"each.{quoted(name)}" for name in recording.columns)
        numbered = f"(\n  SELECT row_number() OVER () AS {place}, {columns}\n  FROM"
        source = (
            f"FROM {numbered} old_rows AS each\n) AS o JOIN {numbered} new_rows AS each\n) AS n "
            f"ON n.{place} = o.{place}"
        )
    same = [
        f"CASE WHEN {column.value.compared(column.of('o'))} IS NOT DISTINCT FROM "
        f"{column.value.compared(column.of('n'))} THEN {literal(column.key)} END"
        for column in recording.recorded
    ]
    lines = [
        "SELECT",
        f"  o.{place} AS place,",
        f"  {recording.resource_id('o')} AS old_id,",
        f"  {recording.resource_id('n')} AS new_id,",
        f"  {recording.actor('o')} AS old_actor,",
        f"  {recording.actor('n')} AS new_actor,",
        "  ARRAY[\n    " + ",\n    ".join(same) + "\n  ]::text[] AS same,",
        f"{_indented(recording.document('o'), 2)} AS old_values,",
        f"{_indented(recording.document('n'), 2)} AS new_values",
        source,
        "OFFSET 0",
    ]
    return _UPDATED.format(pairs=_indented("\n".join(lines), 2), label=literal(recording.label))


_UPDATED: Final = """SELECT
  writer.transaction_id, clock_timestamp(), change.operation, {label}, change.resource_id,
  coalesce(writer.actor, change.actor), writer.impersonator, writer.reason, writer.context,
  change.old_values, change.new_values
FROM (
{pairs}
) AS pair CROSS JOIN LATERAL (
  SELECT 'update' AS operation, pair.new_id AS resource_id, pair.new_actor AS actor,
    pair.old_values - pair.same AS old_values, pair.new_values - pair.same AS new_values
  WHERE pair.old_id = pair.new_id AND array_position(pair.same, NULL) IS NOT NULL
  UNION ALL
  SELECT 'delete', pair.old_id, pair.old_actor, pair.old_values, NULL WHERE pair.old_id <> pair.new_id
  UNION ALL
  SELECT 'insert', pair.new_id, pair.new_actor, NULL, pair.new_values WHERE pair.old_id <> pair.new_id
) AS change
ORDER BY change.operation <> 'delete', pair.place"""


def _indented(sql: str, width: int) -> str:
    return "\n".join(f"{' ' * width}{line}" for line in sql.split("\n"))
