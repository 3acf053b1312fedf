"""Forecasts of live jobs, and how far earlier ones were wrong."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "forecasts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("start", sa.JSON(), nullable=True),
        sa.Column("end", sa.JSON(), nullable=True),
        sa.Column("first_start", sa.JSON(), nullable=True),
        sa.Column("first_end", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "forecast_errors",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("ratio", sa.Double(), nullable=False),
        sa.Column("is_inside", sa.Boolean(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("forecast_errors_by_priority", "forecast_errors", ["priority", "what", "id"])
