"""Where a connection finds tables."""

from collections.abc import Mapping

from sqlalchemy import Connection, Table

__all__ = ["schema_of", "schemas_of"]


def schemas_of(connection: Connection) -> Mapping[str | None, str | None]:
    """Return the ``schema_translate_map`` of *connection*: where a schema that a table names leads to."""
    places: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    return places


def schema_of(connection: Connection, table: Table) -> str | None:
    """Return the schema in which *connection* finds *table*; None for the default one."""
    return schemas_of(connection).get(table.schema, table.schema)
