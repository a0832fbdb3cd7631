"""Alembic's entry: runs the versions on the connection, or for the dialect, that `gateway.store.migrate` hands over."""

from alembic import context

attributes = context.config.attributes
options = {"transactional_ddl": attributes["transactional"], "version_table": attributes["version_table"]}
if "connection" in attributes:
    context.configure(connection=attributes["connection"], **options)
else:
    context.configure(dialect_name=attributes["dialect"], **options)
with context.begin_transaction():
    context.run_migrations()
