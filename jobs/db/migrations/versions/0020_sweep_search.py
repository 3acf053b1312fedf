"""Sweeps that search: the values of each trial are recorded, and no trial is made before there is a place for it."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("num_ahead", sa.Integer(), nullable=False, server_default="16"))
    op.add_column("jobs", sa.Column("trial_values", sa.JSON(), nullable=True))
