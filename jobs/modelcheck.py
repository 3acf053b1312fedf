"""Whether a model can be used for a task, as far as its files tell without loading it; no torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.errors import InvalidModel
from jobs.paths import resolve_input_path
from jobs.settings import Settings
from jobs.specs import JOB_PREFIX
from jobs.tasks import TASKS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.\-/]{1,200})?", re.ASCII)
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_HEADS = {
    "text-classification": r"ForSequenceClassification$",
    "zero-shot-classification": r"ForSequenceClassification$",
    "token-classification": r"ForTokenClassification$",
    "fill-mask": r"(ForMaskedLM|ForPreTraining|WithLMHeadModel)$",
    "image-classification": r"ForImageClassification\w*$",
    "object-detection": r"Detection\w*$",
}
"""Task -> what the name of an architecture with its head ends in. Other tasks are told by the missing weights alone."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
SENTENCE_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
"""The modules of a sentence-transformers folder that the `embeddings` task runs."""


def check_model(model: str, task: str, settings: Settings, *, is_start: bool = False) -> None:
    """Refuse a model that cannot be used for a task. Of a hub id only its form is looked at.

    Args:
        model: a spec's `model`: a folder, or a hub id with or without `@revision`.
        task: a name in `jobs.tasks.TASKS`.
        settings: whose `input_roots` bound local models.
        is_start: whether a training starts from it, which makes a head where there is none.

    Raises:
        InvalidModel: the model is not one, or not one for this task.
        Forbidden: a local model lies outside the roots.
    """
    folder = local_model(model, settings)
    if folder is not None:
        check_folder(folder, task, name=model, is_start=is_start)


def local_model(model: str, settings: Settings) -> Path | None:
    """The real folder of a local model, or None for a hub id. A name that exists as a path is local.

    Of `job:<id>`, the folder that a worker fetches its files to.

    Raises:
        InvalidModel: it is neither, or of a kind that this version does not take.
        Forbidden: it lies outside the roots.
    """
    if model.startswith(JOB_PREFIX):
        job_id = model.removeprefix(JOB_PREFIX)
        if not _JOB_ID.fullmatch(job_id):
            raise _invalid(model, "is not a job's id behind 'job:'")
        return settings.job_models_path / job_id
    if any(model == entry.model for entry in settings.models.values()) and _exists(Path(model).expanduser()):
        return Path(model).expanduser().resolve()  # the operator's own word, wherever it lies
    if model.startswith(("/", ".", "~", "file://")) or _exists(model):
        return resolve_input_path(model, settings, param="model")
    if not _HUB_ID.fullmatch(model):
        raise _invalid(model, "is neither a folder that exists nor a hub id such as org/name or org/name@revision")
    return None


def check_folder(folder: Path, task: str, *, name: str, is_start: bool = False) -> None:
    """Refuse a folder that does not hold a model for a task.

    Args:
        folder: where its files lie.
        task: a name in `jobs.tasks.TASKS`.
        name: what the user called it, for the message.
        is_start: whether a training starts from it, which makes a head where there is none.

    Raises:
        InvalidModel: with one sentence that says what is wrong.
    """
    if not folder.exists():
        raise _invalid(name, "there is no such folder")
    if not folder.is_dir():
        raise _invalid(name, "is a file; name the folder that holds config.json and the weights")
    weights = folder
    if task == "embeddings":
        for kind, path in sentence_modules(folder, name=name):
            if kind == "Transformer":
                weights = folder / path
    config = read_json(weights / "config.json", name=name)
    _check_weights(weights, name)
    if not is_start:
        _check_head(config, task, name)
    if "text" in TASKS[task].inputs and not any((weights / file).exists() for file in _TOKENIZER_FILES):
        raise _invalid(name, f"has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}, ...), which '{task}' needs")


def sentence_modules(folder: Path, *, name: str) -> list[tuple[str, str]]:
    """The modules of a sentence-transformers folder, in the order in which they run.

    Args:
        folder: of the model; any other model's has no `modules.json`.
        name: what the user called it, for the message.

    Returns:
        Kind (one of `SENTENCE_MODULES`) and sub-folder of each; empty where there is no `modules.json`.

    Raises:
        InvalidModel: the file is damaged, or names a module that is not supported.
    """
    if not (folder / "modules.json").is_file():
        return []
    listed = _parse_json(folder / "modules.json", name=name)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise _invalid(name, "its modules.json is not a list of modules")
    modules = []
    for item in listed:
        full, path = str(item.get("type", "")), str(item.get("path", ""))
        kind = full.rsplit(".", 1)[-1]
        # The packages were renamed between versions (`models.Pooling`, `sentence_transformer.modules.pooling.Pooling`).
        if not full.startswith("sentence_transformers.") or kind not in SENTENCE_MODULES:
            known = ", ".join(SENTENCE_MODULES)
            raise _invalid(name, f"its modules.json has the module '{full}'; supported are {known}")
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise _invalid(name, f"its modules.json leads outside the model's folder: '{path}'")
        modules.append((kind, path))
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"]:
        raise _invalid(name, "its modules.json does not begin with a Transformer and a Pooling module")
    return modules


def read_json(path: Path, *, name: str, required: bool = True) -> dict[str, Any]:
    """A JSON object in a model's folder.

    Args:
        path: of the file.
        name: what the user called the model, for the message.
        required: False gives an empty object where the file is missing.

    Raises:
        InvalidModel: the file is missing or does not hold a JSON object.
    """
    if not path.is_file():
        if required:
            raise _invalid(name, f"is not a model: it has no {path.name}")
        return {}
    value = _parse_json(path, name=name)
    if not isinstance(value, dict):
        raise _invalid(name, f"its {path.name} does not hold a JSON object")
    return value


def _parse_json(path: Path, *, name: str) -> object:
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(name, f"its {path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"its {path.name} is not valid JSON") from error
    return value


def _exists(model: str | Path) -> bool:
    try:
        return Path(model).exists()
    except (OSError, ValueError):
        return False


def _check_weights(folder: Path, name: str) -> None:
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif (folder / "model.safetensors.index.json").is_file():
        index = read_json(folder / "model.safetensors.index.json", name=name)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _invalid(name, "its model.safetensors.index.json has no weight_map")
        files = [folder / str(file) for file in sorted(set(map(str, weight_map.values())))]
    elif (folder / "adapter_config.json").is_file():
        raise _invalid(name, "is an adapter without its base model; merge the two and save the result")
    elif pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        raise _invalid(
            name,
            f"its weights are only in {pickles[0]}, a pickle, which can run code when it is loaded; convert them: load"
            " the model once and call save_pretrained, which writes model.safetensors",
        )
    else:
        raise _invalid(name, "has no weights: there is no model.safetensors in it")
    for file in files:
        check_safetensors(file, name=name)


def check_safetensors(path: Path, *, name: str) -> None:
    """Refuse a safetensors file that is missing, damaged or cut off.

    Args:
        path: of the file.
        name: what the user called the model, for the message.

    Raises:
        InvalidModel: the header does not describe the bytes that follow it.
    """
    if not path.is_file():
        raise _invalid(name, f"its weights are incomplete: {path.name} is missing")
    try:
        with path.open("rb") as stream:
            num_bytes = path.stat().st_size
            header_bytes = int.from_bytes(stream.read(8), "little")
            if num_bytes < 8 or header_bytes > min(num_bytes - 8, _LONGEST_HEADER):
                raise _invalid(name, f"{path.name} is not a safetensors file, or it is cut off")
            header = json.loads(stream.read(header_bytes))
            ends = [int(tensor["data_offsets"][1]) for key, tensor in header.items() if key != "__metadata__"]
    except OSError as error:
        raise _invalid(name, f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _invalid(name, f"{path.name} is not a safetensors file") from error
    if max(ends, default=0) != num_bytes - 8 - header_bytes:
        raise _invalid(name, f"{path.name} is cut off or has been added to; copy or download it again")


def _check_head(config: Mapping[str, Any], task: str, name: str) -> None:
    architectures = config.get("architectures")
    if task not in _HEADS or not isinstance(architectures, list) or not architectures:
        return
    if not any(re.search(_HEADS[task], str(architecture)) for architecture in architectures):
        raise _invalid(name, f"it is a {architectures[0]}, which has no {task} head")


def _invalid(name: str, reason: str) -> InvalidModel:
    return InvalidModel(f"model '{name}': {reason}", param="model")
