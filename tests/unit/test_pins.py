"""A job uses the model's files as they were at its submission: every change of them is detected."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.access import pins
from jobs.access.pins import PinnedRevision, Pins, check_pin, pin_path
from jobs.config.settings import Settings
from jobs.errors import InvalidModel, InvalidSpec
from jobs.ledger.job_pins import check_spec, pin_spec, stamp_spec
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import JobSpec, TrainingSpec, parse_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, as far as pins look at it."""
    path = tmp_path / "model"
    (path / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"):
        (path / name).write_text(f'{{"of": "{name}"}}')
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (path / "modules.json").write_text(json.dumps(modules))
    return path


def _replaced_by_an_equal_looking_file(folder: Path) -> None:
    """As `cp -p` and `rsync -a` leave it: size and modification time are the old ones."""
    weights, aside = folder / "model.safetensors", folder / "aside"
    before = weights.stat()
    aside.write_text(weights.read_text().replace("of", "fo"))
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
    aside.rename(weights)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other weights": (lambda folder: (folder / "model.safetensors").write_text("new"), "model.safetensors"),
    "equal size and time": (_replaced_by_an_equal_looking_file, "model.safetensors"),
    "a config of other words": (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
    "a file more": (lambda folder: (folder / "chat_template.jinja").write_text("x"), "chat_template.jinja"),
    "an adapter beside the weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_text("x"),
        "adapter_model.safetensors",
    ),
    "a file less": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "a module": (lambda folder: (folder / "1_Pooling/config.json").write_text("{}"), "1_Pooling/config.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_model_is_refused_by_name(change: str, folder: Path) -> None:
    pin = pin_path(folder, name="m")
    check_pin(pin, folder, name="m")
    damage, file = CHANGES[change]
    damage(folder)
    with pytest.raises(InvalidModel, match=rf"^model 'm': {file} changed after the job was submitted$") as caught:
        check_pin(pin, folder, name="m")
    assert caught.value.param == "model"


def test_a_file_pinned_by_content_may_be_written_anew_as_it_was(tmp_path: Path) -> None:
    module = tmp_path / "net.py"
    module.write_text("x = 1")
    pin = pin_path(module, name="net.py", param="module", error=InvalidSpec)
    module.unlink()
    module.write_text("x = 1")
    check_pin(pin, module, name="net.py", param="module", error=InvalidSpec, by_content=True)
    module.write_text("x = 2")
    with pytest.raises(InvalidSpec, match=r"module 'net.py': net.py changed after the job was submitted"):
        check_pin(pin, module, name="net.py", param="module", error=InvalidSpec, by_content=True)


def test_files_that_loading_does_not_read_may_change(folder: Path) -> None:
    pin = pin_path(folder, name="m")
    (folder / "README.md").write_text("notes")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5/model.safetensors").write_text("of another")
    check_pin(pin, folder, name="m")


def test_a_folder_that_is_gone_is_reported_as_gone(folder: Path) -> None:
    pin = pin_path(folder, name="m")
    shutil.rmtree(folder)
    with pytest.raises(InvalidModel, match="was removed after the job was submitted"):
        check_pin(pin, folder, name="m")


def test_a_copy_on_another_host_passes_by_its_contents(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = pin_path(folder, name="m")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # with times of its own
    with pytest.raises(InvalidModel):
        check_pin(pin, copy, name="m")
    here = pins.file_stamp
    monkeypatch.setattr(pins, "file_stamp", lambda status: here(status).rpartition("@")[0] + "@0000abcd")
    check_pin(pin, copy, name="m")
    (copy / "model.safetensors").write_text((copy / "model.safetensors").read_text().replace("of", "fo"))
    with pytest.raises(InvalidModel, match=r"model\.safetensors changed"):
        check_pin(pin, copy, name="m")


def test_a_large_file_is_identified_by_blocks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(pins, "_BLOCK_BYTES", 4)
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, last in zip(paths, (0, 0, 1), strict=True):
        path.write_bytes(bytes(999) + bytes([last]))
    digests = [pin_path(path, name="m").files[0].digest for path in paths]
    assert digests[0] == digests[1] != digests[2]


def test_a_spec_pins_its_folders_and_its_module(folder: Path, tmp_path: Path) -> None:
    settings = Settings(input_roots=[tmp_path], code_roots=[tmp_path])
    rows = {"path": "rows.jsonl"}
    inference = {"task": "embeddings", "model": str(folder), "input": rows}
    assert pin_spec(parse_spec(inference), settings) == Pins(model=pin_path(folder, name=str(folder)))
    assert pin_spec(parse_spec({**inference, "model": "org/name"}), settings) == Pins()
    assert pin_spec(parse_spec({**inference, "model": "job:job_1"}), settings) == Pins()
    model = {"architecture": "bert", "processor": str(folder)}
    training = {"kind": "training", "task": "text-classification", "model": model, "data": {"train": "rows.jsonl"}}
    assert pin_spec(parse_spec(training), settings) == Pins(processor=pin_path(folder, name=str(folder)))
    module = tmp_path / "mine.py"
    module.write_text("def build(setup): ...")
    made = pin_spec(parse_spec({"kind": "training", "trainer": "torch", "module": str(module)}), settings)
    module.write_text("def build(setup): pass")
    with pytest.raises(InvalidSpec, match=r"^module 'm': mine\.py changed after the job was submitted$"):
        check_pin(made.module, module, name="m", param="module", error=InvalidSpec)


def test_a_runner_refuses_a_module_that_changed_before_its_first_step(tmp_path: Path) -> None:
    from worker.training.attempt.attempt_run import check_module

    module, settings = tmp_path / "net.py", Settings(code_roots=[tmp_path])
    module.write_text("def build(setup): ...")
    spec = parse_spec({"kind": "training", "trainer": "torch", "module": str(module)})
    assert isinstance(spec, TrainingSpec)
    lease = WorkingLease("lease_1", "job_1", "s0", spec, 1, 0, pins=pin_spec(spec, settings))
    check_module(spec, lease, settings)
    module.write_text("def build(setup): 1000")
    with pytest.raises(InvalidSpec, match=r"module '.*net.py': net.py changed after the job was submitted"):
        check_module(spec, lease, settings)


def test_the_stored_form_of_pins_is_that_of_earlier_releases(folder: Path) -> None:
    file = {"name": "config.json", "num_bytes": 7, "stamp": "1+2.3@0000abcd", "digest": "d"}
    document = {"model": {"files": [file]}, "processor": {"revision": "c" * 40}}
    pins = Pins.parse(document)
    assert pins.processor == PinnedRevision("c" * 40)
    assert pins.stored() == document
    assert Pins.parse(None) == Pins.parse({}) == Pins()
    stamped = Pins(model=pin_path(folder, name="m", with_digests=False))
    assert Pins.parse(stamped.stored()) == stamped


def test_a_submission_reads_no_file_but_the_list_of_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_digest", None)  # a call would be a TypeError
    stamped = stamp_spec(_inference(folder), Settings(input_roots=[folder.parent]))
    assert stamped.model is not None
    with pytest.raises(TypeError):
        pin_spec(_inference(folder), Settings(input_roots=[folder.parent]))


def _inference(model: object) -> JobSpec:
    return parse_spec({"task": "embeddings", "model": str(model), "input": {"path": "rows.jsonl"}})


def test_a_hub_id_that_has_become_a_folder_or_ceased_to_be_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name is a hub id where no such folder is."""
    monkeypatch.chdir(folder.parent)
    settings, spec = Settings(input_roots=[folder.parent]), _inference("model")
    of_folder = stamp_spec(spec, settings)
    check_spec(spec, of_folder, settings)
    with pytest.raises(InvalidModel, match=r"^model 'model': a folder of this name was created after the job was"):
        check_spec(spec, Pins(), settings)
    folder.rename("elsewhere")
    check_spec(spec, Pins(), settings)
    with pytest.raises(InvalidModel, match=r"^model 'model': was removed after the job was submitted$"):
        check_spec(spec, of_folder, settings)
