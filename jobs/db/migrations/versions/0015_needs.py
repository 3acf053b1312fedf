"""What a job needs of its slots beside packages, and the labels of a slot's host."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("slots", sa.Column("labels", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("needs", sa.JSON(), nullable=True))
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    needs = "json_object('packages', json(packages))" if is_sqlite else "json_build_object('packages', packages)"
    op.execute(f"UPDATE jobs SET needs = {needs} WHERE packages IS NOT NULL")
    op.drop_column("jobs", "packages")
