"""Totals of all jobs, kept by triggers, so that reading them takes no longer with more jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# While a job is in one of these states, its numbers change with each chunk. They are read from its own row.
_CHANGING = "('running', 'cancelling')"
_NUMBERS = ("num_rows", "num_done", "num_failed", "num_tokens")
_COLUMNS = f"kind, state, num_jobs, {', '.join(_NUMBERS)}"
_IS_CHANGED = (
    f"OLD.state <> NEW.state OR (NEW.state NOT IN {_CHANGING} AND ("
    + " OR ".join(f"OLD.{number} <> NEW.{number}" for number in _NUMBERS)
    + "))"
)


def _number(row: str, number: str) -> str:
    """A number of a job: what is in its row, and what its leases have counted."""
    if number == "num_rows":
        return f"{row}.{number}"
    return f"({row}.{number} + (SELECT COALESCE(SUM({number}), 0) FROM lease_counts WHERE job_id = {row}.id))"


def _add(row: str, sign: str) -> str:
    """A statement that adds a job's row, or takes it away."""
    numbers = (
        f"CASE WHEN {row}.state IN {_CHANGING} THEN 0 ELSE {sign}{_number(row, number)} END" for number in _NUMBERS
    )
    return f"INSERT INTO job_totals ({_COLUMNS}) VALUES ({row}.kind, {row}.state, {sign}1, {', '.join(numbers)});"


_TRIGGERS = {
    "insert": ("AFTER INSERT ON jobs", "", (_add("NEW", ""),)),
    "update": (
        f"AFTER UPDATE OF state, {', '.join(_NUMBERS)} ON jobs",
        f"WHEN ({_IS_CHANGED})",
        (_add("OLD", "-"), _add("NEW", "")),
    ),
    "delete": ("AFTER DELETE ON jobs", "", (_add("OLD", "-"),)),
}


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "job_totals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("num_jobs", sa.BigInteger(), nullable=False),
        *(sa.Column(number, sa.BigInteger(), nullable=False) for number in _NUMBERS),
        sa.PrimaryKeyConstraint("id"),
    )
    for name, (event, condition, statements) in _TRIGGERS.items():
        trigger = f"CREATE TRIGGER job_totals_{name} {event} FOR EACH ROW {condition}"
        body = " ".join(statements)
        if is_sqlite:
            op.execute(f"{trigger} BEGIN {body} END")
        else:
            function = f"job_totals_{name}()"
            op.execute(
                f"CREATE FUNCTION {function} RETURNS trigger AS $$ BEGIN {body} RETURN NULL; END $$ LANGUAGE plpgsql"
            )
            op.execute(f"{trigger} EXECUTE FUNCTION {function}")
    # No lease has counted anything yet: releases before these tables counted in the jobs' rows.
    sums = (f"COALESCE(SUM(CASE WHEN state IN {_CHANGING} THEN 0 ELSE {number} END), 0)" for number in _NUMBERS)
    op.execute(
        f"INSERT INTO job_totals ({_COLUMNS}) SELECT kind, state, COUNT(*), {', '.join(sums)} FROM jobs "
        "GROUP BY kind, state"
    )
