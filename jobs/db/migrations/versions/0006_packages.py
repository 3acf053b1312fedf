"""Which optional packages a slot's host has."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("slots", sa.Column("packages", sa.JSON(), nullable=True))
