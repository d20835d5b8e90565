"""Runs the migrations on the connection that ``schema.py`` hands over; there is no alembic.ini."""

from alembic import context

from claudejobs.store.schema import VERSION_TABLE
from claudejobs.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
