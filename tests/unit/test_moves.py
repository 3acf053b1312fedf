"""States change in one place, and only as their tables allow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jobs
from jobs.db.moves import move, moving
from jobs.db.states import TRANSITIONS, BatchState, ChunkState, JobState, SlotState
from jobs.db.tables import Batch, Chunk, Job

ROOT = Path(jobs.__file__).parent.parent


def test_a_change_that_the_table_lacks_is_refused() -> None:
    job = Job(id="job_1", kind="inference", state=JobState.COMPLETED, spec={}, created_at=0.0)
    with pytest.raises(ValueError, match="a JobState cannot change from completed to running"):
        move(job, JobState.RUNNING)
    assert job.state is JobState.COMPLETED
    with pytest.raises(ValueError, match="from done to pending"):
        moving(Chunk, (ChunkState.LEASED, ChunkState.DONE), ChunkState.PENDING)


def test_a_row_may_stay_in_an_expected_state() -> None:
    statement = str(moving(Job, (JobState.QUEUED, JobState.RUNNING), JobState.RUNNING))
    assert "state=:state" in statement
    assert "WHERE jobs.state IN" in statement
    with pytest.raises(ValueError, match="from running to running"):
        move(Job(id="job_1", kind="inference", state=JobState.RUNNING, spec={}, created_at=0.0), JobState.RUNNING)


def test_equal_words_of_two_kinds_of_states_have_their_own_tables() -> None:
    with pytest.raises(ValueError, match="a BatchState cannot change from cancelling to failed"):
        move(Batch(state=BatchState.CANCELLING), BatchState.FAILED)
    assert JobState.FAILED in TRANSITIONS[JobState][JobState.CANCELLING]


@pytest.mark.parametrize("states", TRANSITIONS)
def test_every_state_has_a_row_in_its_table(states: type) -> None:
    assert set(TRANSITIONS[states]) == set(states)  # type: ignore[call-overload]


def test_an_unheard_slot_may_report_first_that_it_is_broken() -> None:
    assert TRANSITIONS[SlotState][SlotState.OFFLINE] == {SlotState.ONLINE, SlotState.BROKEN}


def test_nothing_else_changes_a_state() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "jobs").rglob("*.py"))
        if path.name != "moves.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if _sets_a_state(node)
    ]
    assert found == ["jobs/ledger/chunks.py"]  # a chunk ends in one of two states; `check` names the second


def _sets_a_state(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=targets):
            names = [part for target in targets for part in ast.walk(target)]
            return any(isinstance(part, ast.Attribute) and part.attr == "state" for part in names)
        case ast.Call(func=ast.Attribute(attr="values"), keywords=keywords):
            return any(keyword.arg == "state" for keyword in keywords)
    return False
