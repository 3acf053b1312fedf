"""Totals of jobs by project, and indexes of those that totals leave out: what a project's queue is read from."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

# While a job is in one of these states, its numbers change with each chunk. They are read from its own row.
_CHANGING = "('running', 'cancelling')"
_NUMBERS = ("num_rows", "num_done", "num_failed", "num_tokens")
_COLUMNS = f"project, kind, state, num_jobs, {', '.join(_NUMBERS)}"
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


def _counted(row: str, sign: str) -> str:
    numbers = (
        f"CASE WHEN {row}.state IN {_CHANGING} THEN 0 ELSE {sign}{_number(row, number)} END" for number in _NUMBERS
    )
    return f"{row}.project, {row}.kind, {row}.state, {sign}1, {', '.join(numbers)}"


def _add(row: str, sign: str) -> str:
    """A statement that adds a job's row, or takes it away."""
    return f"INSERT INTO job_totals ({_COLUMNS}) VALUES ({_counted(row, sign)});"


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
    if is_sqlite:
        for name in _TRIGGERS:
            op.execute(f"DROP TRIGGER job_totals_{name}")
    else:  # no job may change between its count and the new triggers
        op.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
    op.drop_table("job_totals")
    op.create_table(
        "job_totals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("num_jobs", sa.BigInteger(), nullable=False),
        *(sa.Column(number, sa.BigInteger(), nullable=False) for number in _NUMBERS),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("job_totals_by_project", "job_totals", ["project"])
    for name, (event, condition, statements) in _TRIGGERS.items():
        body = " ".join(statements)
        if is_sqlite:
            op.execute(f"CREATE TRIGGER job_totals_{name} {event} FOR EACH ROW {condition} BEGIN {body} END")
        else:
            function = f"CREATE OR REPLACE FUNCTION job_totals_{name}() RETURNS trigger"
            op.execute(f"{function} AS $$ BEGIN {body} RETURN NULL; END $$ LANGUAGE plpgsql")
    sums = (f"COALESCE(SUM({name}), 0)" for name in ("num_jobs", *_NUMBERS))
    numbers = (
        f"CASE WHEN jobs.state IN {_CHANGING} THEN 0 ELSE {_number('jobs', number)} END AS {number}"
        for number in _NUMBERS
    )
    each = f"SELECT project, kind, state, 1 AS num_jobs, {', '.join(numbers)} FROM jobs"
    op.execute(
        f"INSERT INTO job_totals ({_COLUMNS}) SELECT project, kind, state, {', '.join(sums)} FROM ({each}) AS counted "
        "GROUP BY project, kind, state"
    )
    where = sa.text("kind = 'inference' AND state = 'validating' AND num_rows = 0")
    op.create_index("jobs_uncounted", "jobs", ["project", "ready_at"], sqlite_where=where, postgresql_where=where)
    where = sa.text(f"state IN {_CHANGING}")
    op.create_index("jobs_at_work", "jobs", ["project"], sqlite_where=where, postgresql_where=where)
