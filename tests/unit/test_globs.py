"""A glob matches what `glob.glob` matches, and is given up where too much would have to be looked at."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from jobs.data.sources import globs
from jobs.data.sources.globs import local_matches
from jobs.errors import InvalidInput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files, some hidden, some behind links."""
    for name in ("a.jsonl", "b.csv", ".h.jsonl", "x/a.jsonl", "x/y/b.jsonl", "x/.z/c.jsonl", "x/y/z/d.csv", "[o]/e.j"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jsonl", "*", "**/*.jsonl", "**", "x/**/*.jsonl", "**/y*/*", "[[]o]/*", ".*", "*/*", "x/y/?.jsonl",
        "x/../*.csv", "**/x/**/*.csv", "nope/*", "x/y/b.jsonl", "?[!b]*",
    ],
)  # fmt: skip
def test_what_glob_matches(folder: Path, pattern: str) -> None:
    found = glob.glob(f"{folder}/{pattern}", recursive=True)  # noqa: PTH207 - what is compared with
    assert local_matches(f"{folder}/{pattern}") == sorted({one for one in found if not Path(one).is_dir()})


def test_a_relative_glob_begins_at_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert local_matches("x/*.jsonl") == ["x/a.jsonl"]
    assert local_matches("**/d.csv") == ["link/y/z/d.csv", "x/y/z/d.csv"]


def test_links_that_lead_back_are_followed_no_further(folder: Path) -> None:
    (folder / "x" / "back").symlink_to(folder)
    (folder / "x" / "self").symlink_to(folder / "x")
    assert f"{folder}/x/y/b.jsonl" in local_matches(f"{folder}/**/*.jsonl")


def test_too_many_wildcards_are_refused() -> None:
    for pattern in ("/" + "**/" * 30 + "x", "/" + "*a" * 17):
        with pytest.raises(InvalidInput, match=r"input\.path: .* has more than"):
            local_matches(pattern)


def test_a_glob_that_reads_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globs, "MOST_GLOB_NAMES", 100)
    for number in range(60):
        (tmp_path / f"d{number}" / "e").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="more than 100 names"):
        local_matches(f"{tmp_path}/**/*.jsonl")
