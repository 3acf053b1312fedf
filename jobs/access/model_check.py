"""Check that a model can be used for a task, as far as its files show; the model is not loaded, and torch not used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.access.model_files import Header, check_regular, invalid, read_header, read_json
from jobs.access.model_fit import check_numbers, check_templates, check_vocabulary
from jobs.access.paths import own_places, resolve_input_path
from jobs.access.sentence_folder import sentence_modules
from jobs.config.access_rules import AccessRules
from jobs.specs.inference import JOB_PREFIX
from jobs.specs.tasks import TASKS

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
"""Task -> pattern for the names of architectures with its head. Other tasks are checked only by missing weights."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "source.spm",
    "sentencepiece.bpe.model",
)
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_WITH_TOKENIZER = frozenset(
    {
        "automatic-speech-recognition", "document-question-answering", "table-question-answering",
        "zero-shot-audio-classification", "zero-shot-image-classification", "zero-shot-object-detection",
    }
)  # fmt: skip
"""Tasks that need a tokenizer, in addition to those whose rows are texts."""
_WITH_TEMPLATE = frozenset({"text-generation", "image-text-to-text", "any-to-any", "embeddings"})
"""Tasks whose rows may be chats or are rendered as chats."""
_MEDIA = frozenset({"image", "audio", "video"})
_WITHOUT_PREPROCESSOR = frozenset({"layoutlm", "timm_wrapper"})
"""Model types that use no pixels, or whose configuration describes the preprocessing."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def check_model(model: str, task: str, rules: AccessRules, *, is_start: bool = False) -> None:
    """Check that a model can be used for a task. For a hub id, only the form is checked.

    Args:
        model: The `model` of a spec: a folder, or a hub id with or without `@revision`.
        task: A name in `jobs.specs.tasks.TASKS`.
        rules: The access rules; local models must lie under their `input_roots`.
        is_start: Whether a training starts from the model; the training adds a missing head.

    Raises:
        InvalidModel: The folder or id is not a model, or the model is not for this task.
        Forbidden: A local model lies outside the roots.
    """
    folder = local_model(model, rules)
    if folder is not None:
        check_folder(folder, task, name=model, may_read=readable(model, rules), is_start=is_start)


def readable(model: str, rules: AccessRules) -> Callable[[Path], bool] | None:
    """A function that says whether jobs may read a file to which a link in the model's folder leads.

    The rules are those for inputs: the file lies under one of `input_roots` and is none of Stoker's own files. None
    if there is no restriction, because the operator listed the model or Stoker fetched it.
    """
    if model.startswith(JOB_PREFIX) or local_model(model, rules) is None or _is_listed(model, rules):
        return None

    def may_read(path: Path) -> bool:
        is_inside = any(path.is_relative_to(root) for root in rules.input_roots)
        return is_inside and not any(path.is_relative_to(place) for place in own_places(rules))

    return may_read


def local_model(model: str, rules: AccessRules, *, param: str = "model") -> Path | None:
    """The real folder of a local model, or None for a hub id. A name that exists as a path is local.

    For `job:<id>` it is the folder to which a worker fetches the model of that job.

    Args:
        model: A folder, a hub id or `job:<id>`.
        rules: The access rules; local models must lie under their `input_roots`.
        param: The field of the spec that names the model.

    Raises:
        InvalidModel: The text is none of these.
        Forbidden: The folder lies outside the roots.
    """
    if model.startswith(JOB_PREFIX):
        job_id = model.removeprefix(JOB_PREFIX)
        if not _JOB_ID.fullmatch(job_id):
            raise invalid(model, "has no valid job id after 'job:'", param)
        return rules.job_models_path / job_id
    if _is_listed(model, rules):
        return Path(model).expanduser().resolve()  # the operator configured it, so any path is allowed
    if model.startswith(("/", ".", "~", "file://")) or _exists(model):
        return resolve_input_path(model, rules, param=param)
    if not _HUB_ID.fullmatch(model):
        reason = "is neither an existing folder nor a hub id such as org/name or org/name@revision"
        raise invalid(model, reason, param)
    return None


def _is_listed(model: str, rules: AccessRules) -> bool:
    is_named = any(model == entry.model for entry in rules.models.values())
    return is_named and _exists(Path(model).expanduser())


def check_folder(
    folder: Path,
    task: str,
    *,
    name: str,
    may_read: Callable[[Path], bool] | None = None,
    is_start: bool = False,
) -> None:
    """Check that a folder contains a model for a task.

    Args:
        folder: The model's folder.
        task: A name in `jobs.specs.tasks.TASKS`.
        name: The model name that the user gave, for the message.
        may_read: The result of `readable`: whether jobs may read a linked file. None allows all files.
        is_start: Whether a training starts from the model; the training adds a missing head.

    Raises:
        InvalidModel: The folder has no model for this task; the message says why.
        Forbidden: One of the files is a link to a place that jobs may not read.
    """
    if not folder.exists():
        raise invalid(name, "there is no such folder")
    if not folder.is_dir():
        raise invalid(name, "is a file; name the folder that contains config.json and the weights")
    check_regular(folder, name=name, may_read=may_read)
    weights = folder
    if task == "embeddings":
        for kind, path in sentence_modules(folder, name=name):
            if kind == "Transformer":
                weights = folder / path
    config = read_json(weights / "config.json", name=name)
    header = read_weights(weights, name=name)
    check_numbers(config, header, name)
    read_json(weights / "generation_config.json", name=name, required=False)
    for file in _PREPROCESSOR_FILES:
        read_json(weights / file, name=name, required=False)
    if not is_start:
        _check_head(config, task, name)
    _check_parts(weights, config, task, name, is_start=is_start)
    check_vocabulary(weights, config, header, name)
    if task in _WITH_TEMPLATE:
        check_templates(weights, name)


def check_processor(folder: Path, *, name: str, param: str, may_read: Callable[[Path], bool] | None) -> None:
    """Check that a folder contains a tokenizer or another processor.

    Args:
        folder: The processor's folder.
        name: The processor name that the user gave, for the message.
        param: The field of the spec that names the processor.
        may_read: Whether jobs may read a linked file, as for `check_folder`.

    Raises:
        InvalidModel: The folder has no processor, or a file in it cannot be used.
        Forbidden: One of the files is a link to a place that jobs may not read.
    """
    if not folder.is_dir():
        raise invalid(name, "there is no such folder", param)
    check_regular(folder, name=name, may_read=may_read, param=param)
    if not _has(folder, (*_TOKENIZER_FILES, *_PREPROCESSOR_FILES)):
        raise invalid(name, "contains neither a tokenizer nor another processor", param)


def _check_parts(folder: Path, config: Mapping[str, Any], task: str, name: str, *, is_start: bool) -> None:
    inputs = TASKS[task].inputs
    if ("text" in inputs or task in _WITH_TOKENIZER) and not _has(folder, _TOKENIZER_FILES):
        raise invalid(name, f"has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}, ...), which '{task}' needs")
    takes_media = not _MEDIA.isdisjoint(inputs) and config.get("model_type") not in _WITHOUT_PREPROCESSOR
    if takes_media and not is_start and not _has(folder, _PREPROCESSOR_FILES):
        raise invalid(name, f"has no {_PREPROCESSOR_FILES[0]}, which '{task}' needs")


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / file).exists() for file in names)


def _exists(model: str | Path) -> bool:
    try:
        return Path(model).exists()
    except (OSError, ValueError):
        return False


def read_weights(folder: Path, *, name: str) -> Header:
    """Read the headers of the safetensors files in a model's folder.

    Args:
        folder: The folder of the files.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidModel: There are no such files, or one is missing or damaged.
    """
    return read_header(_weight_files(folder, name), name=name)


def _weight_files(folder: Path, name: str) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / "model.safetensors.index.json").is_file():
        index = read_json(folder / "model.safetensors.index.json", name=name)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise invalid(name, "its model.safetensors.index.json has no weight_map")
        files = sorted(set(map(str, weight_map.values())))
        for file in files:
            if Path(file).name != file or file == "..":
                raise invalid(
                    name, f"its model.safetensors.index.json names a file outside the model's folder: '{file}'"
                )
        return [folder / file for file in files]
    if (folder / "adapter_config.json").is_file():
        raise invalid(name, "is an adapter without its base model; merge the two and save the result")
    if pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        raise invalid(
            name,
            f"its weights are only in {pickles[0]}, a pickle, which can run code when it is loaded; load the model "
            "once where you trust it, and call save_pretrained, which writes model.safetensors",
        )
    raise invalid(name, "has no weights: model.safetensors is missing")


def _check_head(config: Mapping[str, Any], task: str, name: str) -> None:
    architectures = config.get("architectures")
    if task not in _HEADS or not isinstance(architectures, list) or not architectures:
        return
    if not any(re.search(_HEADS[task], str(architecture)) for architecture in architectures):
        raise invalid(name, f"its architecture is {architectures[0]}, which has no {task} head")
