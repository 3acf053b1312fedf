"""For which job a lease was asked to yield."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("yield_for", sa.String(), nullable=True))
    asked = sa.text("yield_for IS NOT NULL")
    op.create_index("leases_by_yield", "leases", ["ended_at"], sqlite_where=asked, postgresql_where=asked)
