"""The model cache: warm models are used again, never a stale one, and the oldest makes room."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import DeviceOutOfMemory, InvalidModel, MachineError, ServiceUnavailable
from jobs.specs.inference import InferenceSpec
from tests.support.scripted_model import ScriptedModel
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef


def ref_of(model: str, *, source: str | None = None) -> ModelRef:
    """The ref of a job's model."""
    document = {"task": "fill-mask", "model": model, "input": {"path": "rows.jsonl"}}
    return ModelRef.of(InferenceSpec.model_validate(document), source=source)


class Loader:
    """Loads scripted models and counts how often."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.fault: Callable[[], None] = lambda: None

    def __call__(self, ref: ModelRef, *_: Any, **__: Any) -> ScriptedModel:
        self.loaded.append(ref.source)
        self.fault()
        return ScriptedModel()


def raising(error: Exception) -> Callable[[], None]:
    """A fault that raises."""

    def fault() -> None:
        raise error

    return fault


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def cache(loader: Loader) -> ModelCache:
    """A cache of two."""
    return ModelCache(2, torch.device("cpu"), load=loader)


def test_a_warm_model_is_not_loaded_again(cache: ModelCache, loader: Loader) -> None:
    """Small jobs on one model must not pay for loading it each time."""
    first = cache.get(ref_of("one"), {})
    assert cache.get(ref_of("one"), {}) is first
    assert loader.loaded == ["one"]


def test_the_time_of_loading_is_known_and_a_warm_model_takes_none(cache: ModelCache) -> None:
    """It decides whether other slots load the model too."""
    cache.get(ref_of("one"), {})
    assert cache.loading_seconds > 0
    cache.get(ref_of("one"), {})
    assert cache.loading_seconds == 0


def test_the_least_recently_used_model_makes_room(cache: ModelCache, loader: Loader) -> None:
    """Memory holds the configured number of models, the most recently used ones."""
    for name in ("one", "two", "one", "three"):
        cache.get(ref_of(name), {})
    assert cache.keys() == ["fill-mask|one|auto", "fill-mask|three|auto"]
    assert loader.loaded == ["one", "two", "three"]


def test_a_model_that_changed_on_disk_is_loaded_again(cache: ModelCache, loader: Loader, tmp_path: Path) -> None:
    """A user who trains again into the same folder gets the new weights."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old")
    cache.get(ref_of(str(tmp_path)), {})
    cache.get(ref_of(str(tmp_path)), {})
    assert len(loader.loaded) == 1
    weights.write_bytes(b"new")
    os.utime(weights, ns=(1, 1))
    cache.get(ref_of(str(tmp_path)), {})
    assert len(loader.loaded) == 2


def test_each_commit_of_a_hub_id_is_a_model_of_its_own(cache: ModelCache, loader: Loader) -> None:
    old, new = (ref_of("org/one", source=f"org/one@{commit * 40}") for commit in "ab")
    first = cache.get(old, {})
    assert cache.get(new, {}) is not first
    assert cache.keys() == ["fill-mask|org/one|auto"], "the key that the scheduler looks for"
    assert cache.drop_others(new)
    assert not cache.drop_others(new)
    cache.get(new, {})
    assert loader.loaded == [f"org/one@{'a' * 40}", f"org/one@{'b' * 40}"]


def test_loading_drops_the_others_when_memory_is_short(cache: ModelCache, loader: Loader) -> None:
    """A model that fits alone is not refused because another is warm."""
    cache.get(ref_of("one"), {})

    def fault() -> None:
        if cache.keys():
            raise torch.OutOfMemoryError("CUDA out of memory")

    loader.fault = fault
    cache.get(ref_of("two"), {})
    assert cache.keys() == ["fill-mask|two|auto"]


def test_a_model_that_never_fits_is_the_machines_error(cache: ModelCache, loader: Loader) -> None:
    """The message names the model and the device."""

    def fault() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    loader.fault = fault
    with pytest.raises(DeviceOutOfMemory, match="giant does not fit"):
        cache.get(ref_of("giant"), {})
    assert loader.loaded == ["giant", "giant"]
    assert cache.keys() == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"), KeyError("k"), TypeError("t"), NotImplementedError("n"), AttributeError("a"), IndexError("i"),
        ImportError("no module named x"), AssertionError(), RuntimeError("shape"), ZeroDivisionError(),
        RecursionError(), FileNotFoundError(2, "gone"), OSError("does not appear to have a file named x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_fails_again_everywhere_is_the_users_once(error: Exception, cache: ModelCache, loader: Loader) -> None:
    loader.fault = raising(error)
    with pytest.raises(InvalidModel, match=r"^model 'one': cannot be loaded: ") as caught:
        cache.get(ref_of("one"), {})
    assert type(error).__name__ in caught.value.message
    assert "\n" not in caught.value.message
    assert loader.loaded == ["one"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"), OSError(28, "No space left on device"), OSError(116, "Stale file handle"),
        TimeoutError("slow"), RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_machine_did_is_tried_again(error: Exception, cache: ModelCache, loader: Loader) -> None:
    loader.fault = raising(error)
    with pytest.raises(MachineError):
        cache.get(ref_of("one"), {})


def test_a_disks_fault_behind_an_error_of_a_library_is_the_disks(cache: ModelCache, loader: Loader) -> None:
    def fault() -> None:
        try:
            raise OSError(5, "Input/output error")
        except OSError:
            raise ValueError("cannot load the weights")  # noqa: B904 - as libraries do

    loader.fault = fault
    with pytest.raises(ServiceUnavailable, match="Input/output error"):
        cache.get(ref_of("one"), {})


def test_parameters_that_a_model_cannot_take_are_the_users(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> ScriptedModel:
        raise NotImplementedError("top_k")

    monkeypatch.setattr(ScriptedModel, "with_parameters", refuse)
    with pytest.raises(InvalidModel, match="fill-mask with these parameters: NotImplementedError: top_k"):
        cache.get(ref_of("one"), {})
