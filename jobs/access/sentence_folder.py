"""Read how a model's folder configures embeddings: modules, pooling, prompts and dimensions. Does not use torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.access.model_files import invalid, parse_json, read_json
from jobs.errors import InvalidSpec
from jobs.specs.architectures import read_architectures
from jobs.specs.parameters.text_tasks import EmbeddingsParameters

SENTENCE_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
"""The modules of a sentence-transformers folder that the `embeddings` task runs."""
_MODULES_WITH_CONFIG = frozenset({"Pooling", "Dense", "LayerNorm"})
_LEGACY_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags in folders from before sentence-transformers 5.2, in the order in which multiple modes are concatenated."""
POOLING_MODES = tuple(_LEGACY_FLAGS.values())
"""Names in sentence-transformers for the ways to pool the token vectors of a row into one vector."""
_WIDTHS = ("hidden_size", "d_model", "n_embd", "n_embed", "dim", "emb_dim", "d_latents", "hidden_dim", "projection_dim")
"""Field names in configurations for the number of dimensions of a token's or a row's vector."""
_WIDER = {"reformer": 2}
"""Model type -> factor by which its vectors are wider than its configuration says."""


def sentence_modules(folder: Path, *, name: str) -> list[tuple[str, str]]:
    """The modules of a sentence-transformers folder, in the order in which they run.

    Args:
        folder: The model's folder.
        name: The model name that the user gave, for the message.

    Returns:
        Kind (one of `SENTENCE_MODULES`) and subfolder of each module; empty if there is no `modules.json`.

    Raises:
        InvalidModel: The file is damaged, or names a module that is not supported.
    """
    if not (folder / "modules.json").is_file():
        return []
    listed = parse_json(folder / "modules.json", name=name)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise invalid(name, "its modules.json is not a list of modules")
    modules = []
    for item in listed:
        full, path = str(item.get("type", "")), str(item.get("path", ""))
        kind = full.rsplit(".", 1)[-1]
        # The packages were renamed between versions (`models.Pooling`, `sentence_transformer.modules.pooling.Pooling`).
        if not full.startswith("sentence_transformers.") or kind not in SENTENCE_MODULES:
            known = ", ".join(SENTENCE_MODULES)
            raise invalid(name, f"its modules.json has the module '{full}'; supported are {known}")
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise invalid(name, f"its modules.json names a folder outside the model's folder: '{path}'")
        if kind in _MODULES_WITH_CONFIG and not (folder / path / "config.json").is_file():
            raise invalid(name, f"has no {path}/config.json, which the module '{kind}' of its modules.json needs")
        modules.append((kind, path))
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"]:
        raise invalid(name, "its modules.json does not begin with a Transformer and a Pooling module")
    return modules


def read_pooling(folder: Path, path: str, *, name: str) -> tuple[tuple[str, ...], bool]:
    """Read the modes of a Pooling module, and whether tokens of the prompt are pooled with those of the text.

    Args:
        folder: The model's folder.
        path: The subfolder of the module.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidModel: The module has an unknown mode.
    """
    config = read_json(folder / path / "config.json", name=name)
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = tuple(named) if isinstance(named, list) else (named,)
    else:
        modes = tuple(mode for flag, mode in _LEGACY_FLAGS.items() if config.get(flag)) or ("mean",)
    for mode in modes:
        if mode not in POOLING_MODES:
            raise invalid(name, f"its pooling mode '{mode}' is unknown; supported are {', '.join(POOLING_MODES)}")
    return modes, bool(config.get("include_prompt", True))


def read_prompts(folder: Path, *, name: str) -> tuple[dict[str, str], str | None]:
    """Read the prompts of a sentence-transformers folder, name -> text, and the name of the default prompt.

    Raises:
        InvalidModel: The file with the prompts is damaged.
    """
    file = "config_sentence_transformers.json"
    config = read_json(folder / file, name=name, required=False) if (folder / "modules.json").is_file() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in (*prompts.values(), default)):
        raise invalid(name, f"the prompts in its {file} are not a mapping of names to texts")
    return {key: text or "" for key, text in prompts.items()}, default


def select_prompt(prompts: Mapping[str, str], default: str | None, parameters: EmbeddingsParameters) -> str:
    """The prompt before the text of each row that a job's parameters select; empty for no prompt.

    Args:
        prompts: The model's prompts, name -> text.
        default: The name of the prompt that is used if the parameters select none.
        parameters: The parameters of the job.

    Raises:
        InvalidSpec: The model has no prompt of the selected name.
    """
    name = parameters.prompt_name
    if parameters.prompt is not None:
        return parameters.prompt
    if name is None:
        return prompts.get(default or "") or ""
    if name not in prompts:
        param = "parameters.prompt_name"
        known = f"it has {', '.join(prompts)}" if prompts else "it has none"
        raise InvalidSpec(f"{param}: the model has no prompt '{name}'; {known}", param=param)
    return prompts[name]


def check_vectors(folder: Path, parameters: EmbeddingsParameters, *, name: str) -> None:
    """Check that the model has the selected prompt and enough dimensions.

    Args:
        folder: The model's folder, which has passed `check_folder`.
        parameters: The parameters of the job.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidSpec: A parameter does not fit the model.
        InvalidModel: A file with prompts or dimensions is damaged.
    """
    select_prompt(*read_prompts(folder, name=name), parameters)
    if parameters.dimensions is None:
        return
    most = _most_dimensions(folder, parameters, name=name)
    if most is not None and parameters.dimensions > most:
        raise too_many_dimensions(most)


def too_many_dimensions(most: int) -> InvalidSpec:
    """Make the error for a job that requests more dimensions than the model's vectors have."""
    param = "parameters.dimensions"
    return InvalidSpec(f"{param}: the model's vectors have only {most} dimensions", param=param)


def _most_dimensions(folder: Path, parameters: EmbeddingsParameters, *, name: str) -> int | None:
    """An upper bound of the number of dimensions of a row's vector; None if the files do not determine one.

    The vector may have fewer dimensions, since some models project their vectors at the end.
    """
    modules = sentence_modules(folder, name=name)
    dense = [path for kind, path in modules if kind == "Dense"]
    if dense:
        num_features = read_json(folder / dense[-1] / "config.json", name=name).get("out_features")
        return num_features if isinstance(num_features, int) else None
    config = read_json(folder / (modules[0][1] if modules else "") / "config.json", name=name)
    kind = str(config.get("model_type"))
    widths = list(_widths(config))
    if kind not in read_architectures().known or "auto_map" in config or not widths:
        return None
    modes = read_pooling(folder, modules[1][1], name=name)[0] if modules else ("mean",)
    num_modes = len(modes) if parameters.pooling is None else 1
    return max(widths) * _WIDER.get(kind, 1) * num_modes


def _widths(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if key in _WIDTHS and isinstance(value, int):
            yield value
        elif isinstance(value, dict):
            yield from _widths(value)
