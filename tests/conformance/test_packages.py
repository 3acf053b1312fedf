"""A job that needs a package which no slot has is refused at submission, on both databases."""

from __future__ import annotations

import base64
import importlib.util
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.sources.media import is_compressed_sound
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.errors import InvalidSpec
from jobs.ledger import jobs as job_ledger
from jobs.ledger import slots
from jobs.specs.inference import JobSpec, parse_spec
from jobs.specs.packages import AV, PACKAGES, SILERO, PackageNeed, needs_of_spec
from scheduler.control.planning.package_checks import check_needs, needs_of_sound
from scheduler.control.planning.planner import check_submission, open_input, plan_job
from tests.support.rows import write_rows
from worker.host.slots import installed_packages

SPEECH = "automatic-speech-recognition"
ROWS = {"path": "rows.jsonl"}
NEEDS: dict[str, dict[str, Any]] = {
    "vllm": {"task": "text-generation", "model": "m", "input": ROWS, "engine": "vllm"},
    "av": {"task": "video-classification", "model": "m", "input": ROWS},
    "silero_vad": {"task": SPEECH, "model": "m", "input": ROWS, "parameters": {"vad": True}},
    "torchvision": {"task": "mask-generation", "model": "m", "input": ROWS},
    "sklearn": {"kind": "training", "module": "recipes.cnn", "trainer": "torch"},
}
"""A job for each package that a spec alone asks for."""
_ALL = [package.module for package in PACKAGES]
MP3 = b"ID3\x04" + bytes(300)


def register(db: Database, settings: Settings, *hosts: Sequence[str] | None, are_online: bool = True) -> None:
    """A slot for each host, with the packages that it has."""
    infos = [
        slots.SlotInfo(f"s{number}", f"host{number}", "cpu", None, "CPU", 0, 1, packages)
        for number, packages in enumerate(hosts)
    ]
    slots.register(db, infos)
    for info in infos if are_online else ():
        slots.enter(db, info.id, f"{info.id}-1", settings)


@pytest.mark.parametrize("module", NEEDS)
def test_a_package_that_no_slot_has_is_named_with_its_remedy(
    module: str, database: Database, settings: Settings
) -> None:
    needs = list(needs_of_spec(parse_spec(NEEDS[module])))
    (package,) = (each for each in PACKAGES if each.module == module)
    check_needs(needs, database)  # no slot has registered yet
    others = [name for name in _ALL if name != module]
    register(database, settings, others, [], are_online=False)
    check_needs(needs, database)  # none of them runs, so the next one to start may have it
    register(database, settings, others, [])
    with pytest.raises(InvalidSpec) as refused:
        check_needs(needs, database)
    advice = f"which no slot has; install it on the workers' hosts ({package.install}) and restart the workers"
    assert refused.value.message.endswith(f"needs the package {package.distribution}, {advice}")
    assert refused.value.message.startswith(f"{refused.value.param}: ")
    register(database, settings, others, [module])
    check_needs(needs, database)
    register(database, settings, others, None)  # registered by an older version
    check_needs(needs, database)


def speech(path: Path) -> JobSpec:
    return parse_spec({"task": SPEECH, "model": "m", "input": {"path": str(path)}})


def test_a_first_sound_that_no_slot_can_read_is_refused(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    def check(value: Any) -> None:
        spec = speech(write_rows(tmp_path / "rows.jsonl", [{"audio": value}, {"audio": "b.mp3"}]))
        source = open_input(spec, rules=settings, store=Store(str(tmp_path / "store")), database=sqlite_database)
        first = next(source.index(1))
        check_needs(needs_of_sound(source, first, param="input.columns.audio"), sqlite_database)

    check("a.mp3")
    register(sqlite_database, settings, ["vllm"])
    check("a.wav")
    for value in ("a.mp3", {"bytes": base64.b64encode(MP3).decode(), "path": None}):
        with pytest.raises(InvalidSpec, match=r"^input\.columns\.audio: the first row's .* 'stoker\[audio\]'"):
            check(value)
    register(sqlite_database, settings, ["av"])
    check("a.mp3")


def test_packages_that_only_different_slots_have_are_refused(database: Database, settings: Settings) -> None:
    needs = [PackageNeed(AV, "task", "it"), PackageNeed(SILERO, "parameters.vad", "it")]
    register(database, settings, ["av"], ["silero_vad"])
    with pytest.raises(InvalidSpec, match=r"^parameters\.vad: .* silero-vad, which no slot has beside av; install"):
        check_needs(needs, database)
    register(database, settings, ["av"], ["silero_vad", "av"])
    check_needs(needs, database)


def test_a_submission_makes_both_checks(sqlite_database: Database, settings: Settings, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", [{"audio": "a.mp3", "text": "a"}]))
    chat, spoken = ({**job, "model": "org/name", "input": {"path": path}} for job in (NEEDS["vllm"], {"task": SPEECH}))
    register(sqlite_database, settings, [])
    for job, param in ((chat, "engine"), (spoken, "input.columns.audio")):
        store = Store(str(tmp_path / "store"))
        with pytest.raises(InvalidSpec, match="which no slot has") as refused:
            check_submission(parse_spec(job), rules=settings, store=store, database=sqlite_database)
        assert refused.value.param == param


def test_a_planned_job_knows_which_packages_its_slots_must_have(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"audio": "a.mp3"}, {"audio": "b.wav"}])
    job = {"task": SPEECH, "model": "org/name", "input": {"path": str(path)}, "parameters": {"vad": True}}
    job_id = job_ledger.submit(database, parse_spec(job)).id
    plan_job(database, Store(str(tmp_path / "store")), settings, job_id)
    with database.read() as session:
        found = job_ledger.get(session, job_id)
    assert (found.state, found.needs) == (JobState.QUEUED, {"packages": ["av", "silero_vad"]})


def test_what_is_certainly_no_wav_file() -> None:
    def url(data: bytes) -> str:
        return "data:audio/x;base64," + base64.b64encode(data).decode()

    for value in ("x/a.MP3", "film.webm", MP3, b"OggS and so on", url(MP3), url(b"fLaC" + bytes(900))):
        assert is_compressed_sound(value), value
    unknown = ("a", "", None, 3, [0.5], b"", "data:,x", url(b"x"))
    for value in ("a.wav", b"RIFF....WAVE", url(b"RIFF" + bytes(90)), *unknown):
        assert not is_compressed_sound(value), value


def test_the_table_has_every_extra_that_a_job_may_need() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"postgres", "demo", "test", "sweeps"}  # which the service uses
    assert {f"pip install 'stoker[{extra}]'" for extra in extras} <= {package.install for package in PACKAGES}


def test_a_host_reports_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else object())
    assert installed_packages() == [name for name in _ALL if name != "vllm"]
