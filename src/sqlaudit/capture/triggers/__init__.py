"""
The capture by the database: triggers that write the trail, whoever writes the rows.

What the triggers must know of their writer, a session or `audited_connection`
publishes to the database, as one JSON object::

    {"transaction": "018f…", "user": "42", "impersonator": null, "reason": "…", "facts": {…} or null,
     "by_session": ["Customer", …]}

``user``, ``impersonator`` and ``reason`` are texts or null. A writer that publishes
nothing is recorded with no actor, a transaction id of the database's making, and
what the database knows of it as facts. The triggers of a label in ``by_session``
stay silent: the session records these rows itself.

Where it is published: PostgreSQL, the transaction-local setting
``sqlaudit.published``; SQLite, the one row of the table ``sqlaudit_published``,
which is there only while its transaction runs; MariaDB, the variable
``@sqlaudit_published`` of the connection.
"""

__all__: list[str] = []
