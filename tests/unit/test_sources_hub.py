"""Hugging Face data sets: folders, saved ones and hub names, with one clear sentence where one cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from jobs.config.settings import Settings
from jobs.errors import Forbidden, InvalidInput
from tests.support.small_hub import NAME, small_hub
from tests.support.sources_kit import open_at, outcomes, read_all


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A script-free data set with two splits."""
    path = tmp_path / "set"
    path.mkdir()
    for split, size in {"train": 300, "test": 5}.items():
        lines = [json.dumps({"id": at, "text": f"{split} {at}"}) for at in range(size)]
        (path / f"{split}.jsonl").write_text("\n".join(lines))
    return path


def test_the_split_is_the_users(folder: Path) -> None:
    source = open_at(folder, format="dataset", split="test", key="id")
    assert source.column_names() == ["id", "text"]
    assert outcomes(read_all(source, 2)) == [f"test {at}" for at in range(5)]
    assert len(read_all(open_at(folder, format="dataset"), 77)) == 300
    assert outcomes(read_all(open_at(folder, format="dataset", split="train[10:12]"))) == ["train 10", "train 11"]


def test_a_saved_data_set_with_chosen_rows_keeps_them(tmp_path: Path) -> None:
    """A shuffled or filtered data set is saved with its order; reading the tables below it would give other rows."""
    data = datasets.Dataset.from_dict({"text": [f"t{at}" for at in range(50)]}).select([7, 3, 40])
    data.save_to_disk(str(tmp_path / "saved"))
    assert outcomes(read_all(open_at(tmp_path / "saved"), 2)) == ["t7", "t3", "t40"]


@pytest.mark.parametrize("saved", [True, False])
def test_an_unknown_split_is_refused_with_the_ones_there_are(folder: Path, tmp_path: Path, saved: bool) -> None:
    if saved:
        part = datasets.Dataset.from_dict({"text": ["a"]})
        datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    with pytest.raises(InvalidInput, match=r"no split 'nope'; it has (train, test|test, train)") as refused:
        open_at(folder, format="dataset", split="nope").column_names()
    assert refused.value.param == "input.split"


def test_a_single_saved_data_set_has_no_other_split(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InvalidInput) as refused:
        open_at(tmp_path / "saved", split="validation").column_names()
    assert refused.value.param == "input.split"


def test_an_unknown_configuration_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        open_at(folder, format="dataset", config="nope").column_names()
    assert refused.value.param == "input.config"


def test_a_data_set_script_is_not_run(folder: Path) -> None:
    (folder / "set.py").write_text("raise SystemExit('run')")
    with pytest.raises(InvalidInput, match="script"):
        open_at(folder, format="dataset").column_names()


def test_a_folder_without_data_or_with_broken_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"text": nope\n')
    for name in ("none", "broken", "missing"):
        with pytest.raises(InvalidInput, match=r"^input\.path: ") as refused:
            open_at(tmp_path / name, format="dataset").column_names()
        assert "\n" not in refused.value.message


@pytest.mark.parametrize("path", ["hf://datasets/org/not-cached", "hf://datasets/org/not-cached@main"])
def test_a_hub_name_that_is_not_cached_is_refused_offline(path: str) -> None:
    with pytest.raises(InvalidInput, match="HF_HUB_OFFLINE is set"):
        open_at(path, settings=Settings(input_roots=[])).column_names()


def test_a_hub_name_is_read_from_the_cache_without_any_root(folder: Path, tmp_path: Path) -> None:
    """Hub ids need no input root, and a worker without network reads the files that were fetched before."""
    datasets.load_dataset(str(folder))
    [cached] = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    target = tmp_path / "cache" / "org___named"
    cached.rename(target)
    for config in target.iterdir():
        config.rename(target / "default")
    for info in target.rglob("dataset_info.json"):
        facts = json.loads(info.read_text())
        info.write_text(json.dumps({**facts, "config_name": "default", "dataset_name": "named"}))
    for arrow in target.rglob("set-*.arrow"):
        arrow.rename(arrow.with_name(arrow.name.replace("set-", "named-", 1)))
    nowhere = Settings(input_roots=[])
    for path, fields in (("hf://datasets/org/named", {}), ("org/named", {"format": "dataset"})):
        source = open_at(path, settings=nowhere, split="test", **fields)
        assert outcomes(read_all(source, 2)) == [f"test {at}" for at in range(5)]


def test_a_folder_outside_the_roots_is_no_hub_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative folder that looks like a hub name must not slip past the roots."""
    monkeypatch.chdir(tmp_path)
    elsewhere = Settings(input_roots=[tmp_path / "elsewhere"])
    with pytest.raises(Forbidden):
        open_at("set", format="dataset", settings=elsewhere).column_names()
    with pytest.raises(InvalidInput, match="is also a file or folder in the working directory"):
        open_at("hf://datasets/set", settings=elsewhere).column_names()


@pytest.mark.parametrize("way", ["readme", "link", "saved"])
def test_a_data_set_does_not_lead_out_of_the_roots(tmp_path: Path, way: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.jsonl").write_text('{"text": "secret"}')
    if way == "readme":
        (inside / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: ../outside/*.jsonl\n---\n"
        )
    elif way == "link":
        (inside / "train.jsonl").symlink_to(outside / "secret.jsonl")
    else:
        data = datasets.Dataset.from_dict({"text": ["secret"]})
        data.save_to_disk(str(outside / "saved"))
        data.save_to_disk(str(inside))
        [arrow] = (outside / "saved").glob("*.arrow")
        notes = json.loads((inside / "state.json").read_text())
        notes["_data_files"] = [{"filename": f"../outside/saved/{arrow.name}"}]
        (inside / "state.json").write_text(json.dumps(notes))
    with pytest.raises(Forbidden):
        open_at(inside, format="dataset", settings=Settings(input_roots=[inside])).column_names()


def test_reading_files_loads_no_heavy_library() -> None:
    """The scheduler stays small: neither torch nor datasets nor pyarrow for JSON lines; no torch for data sets."""
    code = (
        "import sys, jobs.data.sources, jobs.data.sources.formats.jsonl, jobs.data.sources.formats.delimited\n"
        "assert not {'torch', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "import jobs.data.sources.hub, datasets\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_arrive_as_bytes_or_pictures_and_sounds_as_bytes(tmp_path: Path) -> None:
    """The pipeline must get values that pipelines accept, not the data set's own types."""
    features = datasets.Features(
        {"a": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "text": datasets.Value("string")}
    )
    rows = {"a": [{"bytes": b"RIFF", "path": None}, {"bytes": None, "path": "s.wav"}], "text": ["x", "y"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    read = read_all(open_at(tmp_path / "saved", {"audio": "a"}))
    assert [row.values["audio"] for row in read] == [b"RIFF", "s.wav"]


_ROWS = b'{"text": "a row of the hub"}\n' * 50_000
_DECLARED = b"---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  dataset_size: 5000000\n---\n"


@pytest.mark.parametrize(
    ("files", "refusal", "fetched"),
    [
        ({"train.jsonl": _ROWS[:870_000]}, None, ["train.jsonl"]),
        ({"train.jsonl": _ROWS}, "its files on the hub take", []),
        ({"train.jsonl": _ROWS[:870_000], "README.md": _DECLARED}, "its metadata declares", []),
        ({"train.jsonl.gz": gzip.compress(_ROWS)}, "unpacked, its files take", ["train.jsonl.gz"]),
    ],
    ids=["small", "large", "declared", "packed"],
)
def test_a_hub_data_set_is_fetched_only_within_the_limit(
    tmp_path: Path, files: dict[str, bytes], refusal: str | None, fetched: list[str]
) -> None:
    code = (
        "from jobs.errors import StokerError\n"
        "from jobs.config.settings import Settings\n"
        "from tests.support.sources_kit import open_at, read_all\n"
        "try:\n"
        f"    source = open_at('hf://datasets/{NAME}', settings=Settings(max_dataset_bytes=1_000_000))\n"
        "    print(len(read_all(source)))\n"
        "except StokerError as error:\n"
        "    print(error.message)\n"
    )
    with small_hub(files) as hub:  # named by variables that the library reads when it is imported
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
        environment = {**os.environ, **variables, "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    limit = "more than 1000000 bytes (setting max_dataset_bytes)"
    name = f"hf://datasets/{NAME}"
    reported = "30000" if refusal is None else f"input.path: data set '{name}': {refusal} {limit}"
    assert done.stdout.strip() == reported
    assert [path for path in hub.fetched if path != "README.md"] == fetched
