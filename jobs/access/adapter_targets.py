"""Check that a model has the modules that a LoRA training targets, by the names of its weights and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.access.model_files import Header
from jobs.errors import InvalidSpec
from jobs.messages import shown
from jobs.specs.architectures import read_architectures

_MOST_NAMED = 12
_SHARED = frozenset(
    {
        "decoder", "embed_in", "embed_out", "embed_tokens", "embeddings", "generator_lm_head", "head",
        "input_embedding", "lm_head", "lm_loss", "output", "output_projection", "proj", "proj_out", "tok_embeddings",
        "tokens_embed", "w", "word_embedding", "word_embeddings", "wte",
    }
)  # fmt: skip
"""Names of the first and last layer in language models. If the two share a weight, the files contain it only once."""


def check_targets(targets: Sequence[str] | str, config: Mapping[str, Any], header: Header, name: str) -> None:
    """Check that at least one target matches a module of the model.

    As in peft, a target is the whole name of a module or the end of it. Models whose files name weights differently
    from the model, and models with their own code, are not checked here but in the worker.

    Args:
        targets: A spec's `lora.target_modules`.
        config: The model's configuration.
        header: The header of its safetensors files.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidSpec: No module of the model matches any target.
    """
    kind = config.get("model_type")
    types = read_architectures()
    if isinstance(targets, str) or kind not in types.known or kind in types.renamed or "auto_map" in config:
        return
    by_last_name: dict[str, list[str]] = {}
    for module in _modules(header):
        by_last_name.setdefault(module.rpartition(".")[2], []).append(module)
    for target in targets:
        last = target.rpartition(".")[2]
        if last in _SHARED or any(_may_be(target, module) for module in by_last_name.get(last, ())):
            return
    layers = sorted({key.split(".")[-2] for key, shape in header.shapes.items() if len(shape) == 2 and "." in key})
    has = ", ".join(layers[:_MOST_NAMED]) + (", ..." if len(layers) > _MOST_NAMED else "")
    param = "lora.target_modules"
    raise InvalidSpec(f"{param}: the model '{name}' has no module {shown(targets[0], 80)}; it has {has}", param=param)


def _modules(header: Header) -> set[str]:
    """Names of all modules that have weights, and of all their parent modules."""
    found: set[str] = set()
    for key in header.shapes:
        module = key.rpartition(".")[0]
        while module and module not in found:
            found.add(module)
            module = module.rpartition(".")[0]
    return found


def _may_be(target: str, module: str) -> bool:
    """Whether a target matches a module. Files may omit a prefix that all modules of the model share."""
    return target == module or module.endswith(f".{target}") or target.endswith(f".{module}")
