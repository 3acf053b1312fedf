"""Read from the files of a model's folder, sentence-transformers or other, how to compute vectors of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from jobs.access.model_files import read_json
from jobs.access.sentence_folder import read_pooling, read_prompts, sentence_modules
from worker.inference.tasks.pooling import read_head
from worker.models.load import ModelFolder

AUTO = "auto"
"""The value of `message_format` for a form that is derived from the model's chat template."""
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How to compute vectors of texts, from a model folder's files."""

    subfolder: str
    """Folder of the transformer, below the model's folder."""
    modes: tuple[str, ...]
    """Pooling modes, whose vectors are joined."""
    include_prompt: bool
    """Whether the tokens of the prompt are pooled too."""
    head: tuple[nn.Module, ...]
    """Modules after the pooling."""
    transformer: Mapping[str, Any]
    """Settings of the transformer: `max_seq_length`, `do_lower_case` and arguments for loading."""
    message_format: str | None
    """How texts are rendered as chat messages: None if they are not, `AUTO` to derive the form from the template."""
    prompts: Mapping[str, str]
    """Prompts by name."""
    default_prompt: str | None
    """Name of the prompt for a job that names none."""
    dimensions: int | None
    """Number of dimensions that vectors are cut to, for a job that sets none."""


def read_embedding_settings(source: ModelFolder) -> EmbeddingSettings:
    """Read the files of a model's folder.

    Raises:
        InvalidModel: A file is missing or damaged, or the folder needs something that is not supported.
    """
    modules = sentence_modules(source.path, name=source.name)
    if not modules:
        config = read_json(source.path / "config.json", name=source.name)
        architectures = config.get("architectures") or [""]
        is_causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
        return EmbeddingSettings("", ("lasttoken" if is_causal else "mean",), True, (), {}, AUTO, {}, None, None)
    subfolder = modules[0][1]
    transformer: dict[str, Any] = {}
    for file in _TRANSFORMER_CONFIGS:
        transformer = transformer or read_json(source.path / subfolder / file, name=source.name, required=False)
    form = _check_transformer(source, transformer)
    modes, include_prompt = read_pooling(source.path, modules[1][1], name=source.name)
    prompts, default_prompt = read_prompts(source.path, name=source.name)
    overall = read_json(source.path / "config_sentence_transformers.json", name=source.name, required=False)
    return EmbeddingSettings(
        subfolder=subfolder,
        modes=modes,
        include_prompt=include_prompt,
        head=tuple(read_head(source, modules[2:])),
        transformer=transformer,
        message_format=form,
        prompts=prompts,
        default_prompt=default_prompt,
        dimensions=overall.get("truncate_dim"),
    )


def _check_transformer(source: ModelFolder, settings: Mapping[str, Any]) -> str | None:
    """How a folder's Transformer module renders texts as chat messages; None if it does not."""
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise source.invalid(
            f"its Transformer module is for '{settings['transformer_task']}', not for embeddings of texts"
        )
    usual = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = settings.get("modality_config") or {"text": usual}
    accepted = modalities.get("message") or modalities.get("text") or {}
    if any(accepted.get(name) != value for name, value in usual.items()):
        raise source.invalid("its Transformer module does not accept plain texts, which is not supported")
    unsupported = sorted(name for name, value in (settings.get("processing_kwargs") or {}).items() if value)
    if unsupported:
        raise source.invalid(
            f"its Transformer module has processing_kwargs for {', '.join(unsupported)}, which are not supported"
        )
    return (accepted.get("format") or AUTO) if "message" in modalities else None


def loading_arguments(transformer: Mapping[str, Any], of: str) -> dict[str, Any]:
    """A folder's own arguments for loading, without those that would run foreign code or move the model.

    Args:
        transformer: The settings of the transformer.
        of: What is loaded: `model`, `processor` or `config`.
    """
    older = {"model": "model_args", "processor": "tokenizer_args", "config": "config_args"}[of]
    arguments = {**(transformer.get(older) or {}), **(transformer.get(f"{of}_kwargs") or {})}
    ours = ("trust_remote_code", "use_safetensors", "torch_dtype", "dtype", "device_map", "revision", "token")
    return {name: value for name, value in arguments.items() if name not in ours}
