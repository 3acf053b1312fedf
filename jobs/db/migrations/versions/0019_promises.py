"""When jobs were promised to be done, and how much work was promised."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("promise_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("promise_seconds", sa.Double(), nullable=True))
