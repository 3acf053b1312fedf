"""Whether a model can be used for a task, as far as its files tell without loading it; no torch here."""

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
"""Task -> what the name of an architecture with its head ends in. Other tasks are told by the missing weights alone."""
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
"""Tasks that need a tokenizer, beside those whose rows are texts."""
_WITH_TEMPLATE = frozenset({"text-generation", "image-text-to-text", "any-to-any", "embeddings"})
"""Tasks whose rows may be chats, or are rendered as chats."""
_MEDIA = frozenset({"image", "audio", "video"})
_WITHOUT_PREPROCESSOR = frozenset({"layoutlm", "timm_wrapper"})
"""Types of models that see no pixels, or whose configuration says how their input is prepared."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def check_model(model: str, task: str, rules: AccessRules, *, is_start: bool = False) -> None:
    """Refuse a model that cannot be used for a task. Of a hub id only its form is looked at.

    Args:
        model: a spec's `model`: a folder, or a hub id with or without `@revision`.
        task: a name in `jobs.specs.tasks.TASKS`.
        rules: Their `input_roots` bound local models.
        is_start: whether a training starts from it, which makes a head where there is none.

    Raises:
        InvalidModel: the model is not one, or not one for this task.
        Forbidden: a local model lies outside the roots.
    """
    folder = local_model(model, rules)
    if folder is not None:
        check_folder(folder, task, name=model, may_read=readable(model, rules), is_start=is_start)


def readable(model: str, rules: AccessRules) -> Callable[[Path], bool] | None:
    """Whether jobs may read a file that a model's folder leads to; None where the operator listed it or it was fetched.

    As for inputs: it lies under one of `input_roots` and is none of Stoker's own files.
    """
    if model.startswith(JOB_PREFIX) or local_model(model, rules) is None or _is_listed(model, rules):
        return None

    def may_read(path: Path) -> bool:
        is_inside = any(path.is_relative_to(root) for root in rules.input_roots)
        return is_inside and not any(path.is_relative_to(place) for place in own_places(rules))

    return may_read


def local_model(model: str, rules: AccessRules, *, param: str = "model") -> Path | None:
    """The real folder of a local model, or None for a hub id. A name that exists as a path is local.

    For `job:<id>` it is the folder that a worker fetches its files to.

    Args:
        model: a folder, a hub id or `job:<id>`.
        rules: Their `input_roots` bound local models.
        param: the field of the spec that named it.

    Raises:
        InvalidModel: it is neither, or of a kind that this version does not take.
        Forbidden: it lies outside the roots.
    """
    if model.startswith(JOB_PREFIX):
        job_id = model.removeprefix(JOB_PREFIX)
        if not _JOB_ID.fullmatch(job_id):
            raise invalid(model, "is not a job's id behind 'job:'", param)
        return rules.job_models_path / job_id
    if _is_listed(model, rules):
        return Path(model).expanduser().resolve()  # configured by the operator, so any path is allowed
    if model.startswith(("/", ".", "~", "file://")) or _exists(model):
        return resolve_input_path(model, rules, param=param)
    if not _HUB_ID.fullmatch(model):
        reason = "is neither a folder that exists nor a hub id such as org/name or org/name@revision"
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
    """Refuse a folder that does not hold a model for a task.

    Args:
        folder: where its files lie.
        task: a name in `jobs.specs.tasks.TASKS`.
        name: what the user called it, for the message.
        may_read: whether a file may be read that a link in it leads to, as `readable` says; None where all may.
        is_start: whether a training starts from it, which makes a head where there is none.

    Raises:
        InvalidModel: with one sentence that says what is wrong.
        Forbidden: one of its files leads to where jobs may not read.
    """
    if not folder.exists():
        raise invalid(name, "there is no such folder")
    if not folder.is_dir():
        raise invalid(name, "is a file; name the folder that holds config.json and the weights")
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
    if not is_start:
        _check_head(config, task, name)
    _check_parts(weights, config, task, name, is_start=is_start)
    check_vocabulary(weights, config, header, name)
    if task in _WITH_TEMPLATE:
        check_templates(weights, name)


def check_processor(folder: Path, *, name: str, param: str, may_read: Callable[[Path], bool] | None) -> None:
    """Refuse a folder that holds neither a tokenizer nor another processor.

    Args:
        folder: where its files lie.
        name: what the user called it, for the message.
        param: the field of the spec that named it.
        may_read: as for `check_folder`.

    Raises:
        InvalidModel: with one sentence that says what is wrong.
        Forbidden: one of its files leads to where jobs may not read.
    """
    if not folder.is_dir():
        raise invalid(name, "there is no such folder", param)
    check_regular(folder, name=name, may_read=may_read, param=param)
    if not _has(folder, (*_TOKENIZER_FILES, *_PREPROCESSOR_FILES)):
        raise invalid(name, "holds neither a tokenizer nor another processor", param)


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
    """What a folder's safetensors files hold.

    Args:
        folder: Where they lie.
        name: What the user called the model, for the message.

    Raises:
        InvalidModel: There are none, or one is missing or damaged.
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
                raise invalid(name, f"its model.safetensors.index.json leads outside the model's folder: '{file}'")
        return [folder / file for file in files]
    if (folder / "adapter_config.json").is_file():
        raise invalid(name, "is an adapter without its base model; merge the two and save the result")
    if pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        raise invalid(
            name,
            f"its weights are only in {pickles[0]}, a pickle, which can run code when it is loaded; convert them: load"
            " the model once and call save_pretrained, which writes model.safetensors",
        )
    raise invalid(name, "has no weights: there is no model.safetensors in it")


def _check_head(config: Mapping[str, Any], task: str, name: str) -> None:
    architectures = config.get("architectures")
    if task not in _HEADS or not isinstance(architectures, list) or not architectures:
        return
    if not any(re.search(_HEADS[task], str(architecture)) for architecture in architectures):
        raise invalid(name, f"it is a {architectures[0]}, which has no {task} head")
