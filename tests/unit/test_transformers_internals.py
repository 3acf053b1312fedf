"""The installed transformers has what `worker/models/transformers_internals.py` uses, as it is used."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement

from jobs.errors import MachineError
from worker.models import transformers_internals as internals

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("check", [internals.check_pipelines, internals.check_trainer, internals.check_models])
def test_the_installed_transformers_has_what_we_use(check: object) -> None:
    assert callable(check)
    check()


def test_every_task_has_a_pipeline_whose_parts_and_models_are_known() -> None:
    for task in internals.SUPPORTED_TASKS:
        assert issubclass(internals.pipeline_class(task), internals.Pipeline)
        assert isinstance(internals.loads_part(task, "tokenizer"), bool)
        for auto_class in internals.SUPPORTED_TASKS[task]["pt"]:
            assert len(internals.config_classes(auto_class)) > 0
    assert "MaskFormerForInstanceSegmentation" in internals.listed_model_classes("image-segmentation")


def test_the_trainer_calls_the_methods_that_we_replace() -> None:
    source = inspect.getsource(transformers.Trainer)
    assert "self._maybe_log_save_evaluate(" in source
    assert "self._get_train_sampler" in source
    assert "self.model_accepts_loss_kwargs" in source


def test_a_byte_level_vocabulary_has_a_letter_for_each_byte() -> None:
    assert sorted(internals.bytes_of_letters().values()) == list(range(256))
    assert internals.language_codes()["german"] == "de"


@pytest.mark.parametrize(
    ("owner", "name", "check"),
    [
        (internals.Pipeline, "run_single", internals.check_pipelines),
        (transformers.Trainer, "_maybe_log_save_evaluate", internals.check_trainer),
        (transformers.GenerationMixin, "_supports_default_dynamic_cache", internals.check_models),
    ],
)
def test_a_method_with_other_arguments_is_named(
    owner: type, name: str, check: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, lambda self, other: None)
    assert callable(check)
    with pytest.raises(MachineError, match=rf"{owner.__name__}\.{name} takes other arguments"):
        check()


def test_a_release_outside_the_range_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transformers, "__version__", "6.0.1")
    internals.check_models()
    internals.check_trainer()
    assert caplog.messages == ["transformers 6.0.1 is not supported; install a release in '<6,>=5.10'"]


def test_the_range_is_that_of_the_project_and_contains_the_tested_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [needed] = [one for one in map(Requirement, project["dependencies"]) if one.name == "transformers"]
    assert set(needed.specifier) <= set(internals.SUPPORTED_RELEASES)
    [tested] = [one for one in _constraints() if one.name == "transformers"]
    [exact] = tested.specifier
    assert internals.SUPPORTED_RELEASES.contains(exact.version)


def _constraints() -> Iterator[Requirement]:
    for line in (ROOT / "ops" / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line)


def test_no_other_file_of_the_worker_uses_private_names_of_transformers() -> None:
    private = {name for name in (*internals._PIPELINE, *internals._TRAINER) if name.startswith("_")}
    private |= {"_attn_implementation", "_is_stateful", "_supports_default_dynamic_cache", "_model_mapping"}
    private -= {"_forward"}  # also a name of ours
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"
        for path in sorted((ROOT / "worker").rglob("*.py"))
        if path.name != "transformers_internals.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in private
    ]
    assert found == []
