"""Check that the parts of a model match: its configuration, its weights, its tokenizer and its chat template."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from jobs.access.model_files import Header, invalid, parse_json, read_json
from jobs.access.stamps import file_stamp
from jobs.messages import short

_DEPTHS = frozenset(
    {
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth", "depths",
        "num_encoder_layers", "num_decoder_layers", "num_hidden_groups", "inner_group_num", "num_experts",
        "num_local_experts", "n_routed_experts", "num_codebooks", "num_stages", "num_mtp_modules",
    }
)  # fmt: skip
"""Fields for numbers of layers or other modules; a list of numbers (`depths`) counts as its sum."""
_WIDTHS = frozenset(
    {
        "hidden_size", "d_model", "n_embd", "dim", "intermediate_size", "d_ff", "ffn_dim", "n_inner",
        "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "num_labels", "num_attention_heads", "n_head",
        "num_key_value_heads", "head_dim", "embedding_size", "type_vocab_size", "image_size", "patch_size",
        "num_channels", "hidden_sizes",
    }
)  # fmt: skip
"""Fields for sizes of tensors."""
_MOST_POSITIONS = 2**27  # a fixed limit, since many models have no weights for positions
_POSITIONS = frozenset({"max_position_embeddings", "n_positions", "n_ctx", "max_source_positions"})
_FEWEST_LAYERS = 1000  # this number of layers is always accepted
_LAYERS_PER_TENSOR = 4  # some models share the weights of their layers
_SMALLEST_WIDTH = 65_536  # this width is always accepted
_WIDTHS_PER_DIMENSION = 64  # quantized weights are packed, so their tensors are smaller
_MOST_PARTS = 1000  # nested configurations: the top level, encoder, decoder, ...
_TABLES = (
    "embed_tokens.weight", "word_embeddings.weight", "wte.weight", "shared.weight", "tok_embeddings.weight",
    "token_embedding.weight", "word_embedding.weight",
)  # fmt: skip
"""Endings of the weight name of the token embeddings, for most architectures."""
_LONGEST_TEMPLATE_CHARACTERS = 1_000_000
_MOST_REMEMBERED = 64  # number of tokenizers whose largest id is cached


def check_numbers(config: Mapping[str, Any], header: Header, name: str) -> None:
    """Check that a configuration does not describe a far larger model than its weights, which would fill the memory.

    Raises:
        InvalidModel: A number of layers, a width or a number of positions is negative or far too large.
    """
    most_layers = max(_FEWEST_LAYERS, _LAYERS_PER_TENSOR * len(header.shapes))
    most_width = max(_SMALLEST_WIDTH, _WIDTHS_PER_DIMENSION * header.largest_dimension)
    limits = {_DEPTHS: most_layers, _WIDTHS: most_width, _POSITIONS: _MOST_POSITIONS}
    for where, part in _parts(config):
        for keys, limit in limits.items():
            for key in keys & part.keys():
                value = _size(part[key])
                if value is not None and not 0 <= value <= limit:
                    raise invalid(
                        name,
                        f"its config.json has {where}{key}: {value}, which does not match its weights: they have "
                        f"{len(header.shapes)} tensors with a largest dimension of {header.largest_dimension}",
                    )


def check_vocabulary(folder: Path, config: Mapping[str, Any], header: Header, name: str) -> None:
    """Check that the tokenizer's vocabulary is not larger than the model's token embeddings.

    Tokens that were added to the tokenizer without resizing the embeddings are accepted: the model works for all texts
    without them, and a row with one becomes a row error.

    Raises:
        InvalidModel: The tokenizer and the weights belong to different models.
    """
    tables = [shape for key, shape in header.shapes.items() if key.endswith(_TABLES) and len(shape) == 2]
    rows = max((shape[0] for shape in tables), default=0)
    declared = config.get("vocab_size")
    # If the embeddings are packed or split, the configuration has the larger, correct number.
    known = max(rows, declared if isinstance(declared, int) and not isinstance(declared, bool) else 0)
    if not tables or not known:
        return
    largest = _largest_id(folder, name)
    if largest is not None and largest >= known:
        raise invalid(
            name,
            f"its tokenizer has ids up to {largest}, but the model has vectors for only {known} tokens; use the "
            "tokenizer that belongs to the model",
        )


def check_templates(folder: Path, name: str) -> None:
    """Check that the chat templates in a folder are valid Jinja.

    Raises:
        InvalidModel: One is not valid; the message names the file and the line.
    """
    for where, text in _templates(folder, name):
        reason = template_fault(text)
        if reason is not None:
            raise invalid(name, f"its chat template ({where}) cannot be used: {reason}")


def template_fault(text: str) -> str | None:
    """Why a text is not a valid chat template, or None if it is valid.

    The text is only parsed, because compiling it would evaluate constants such as `'a' | center(10 ** 12)`.
    """
    if len(text) > _LONGEST_TEMPLATE_CHARACTERS:
        return f"it has more than {_LONGEST_TEMPLATE_CHARACTERS} characters"
    try:
        _environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {short(str(error.message))}"
    except RecursionError:
        return "it is nested too deeply"
    return None


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` of transformers, which marks messages of the assistant."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 requires it

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """Return the statements inside the tag."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@functools.cache
def _environment() -> jinja2.Environment:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]  # the same extensions as in transformers
    return jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)


def _templates(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        if path.is_file():
            try:
                yield path.name, path.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise invalid(name, f"its {path.name} cannot be read as text: {error}") from error
    for file in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        found = read_json(folder / file, name=name, required=False).get("chat_template")
        for template in found if isinstance(found, list) else [found]:
            text = template.get("template") if isinstance(template, dict) else template
            if isinstance(text, str):
                yield file, text


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A configuration and all nested ones, each with the prefix of its fields' names."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return
        where, part = waiting.pop(0)
        yield where, part
        waiting += [(f"{where}{key}.", value) for key, value in part.items() if isinstance(value, dict)]


def _size(value: object) -> int | None:
    """The number in a field, or the sum of a list of numbers; None for any other value."""
    if isinstance(value, list) and value and all(_size(item) is not None for item in value):
        return sum(_size(item) or 0 for item in value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _largest_id(folder: Path, name: str) -> int | None:
    """The largest id in a tokenizer's vocabulary, without added tokens; None if it is unknown."""
    for file in ("tokenizer.json", "vocab.json", "vocab.txt"):
        path = folder / file
        if path.is_file():
            return _largest_id_in(path, file_stamp(path.stat()), name)
    return None


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _largest_id_in(path: Path, _stamp: str, name: str) -> int | None:
    if path.suffix == ".txt":
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip(b"\r\n")) - 1
    value = parse_json(path, name=name)
    vocabulary: object = value
    if path.name == "tokenizer.json":
        if not isinstance(value, dict):
            raise invalid(name, "its tokenizer.json does not contain a JSON object")
        model = value.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        added = value.get("added_tokens")
        if isinstance(vocabulary, dict) and isinstance(added, list):
            # Some tokenizers also list their added tokens in the vocabulary.
            contents = {token.get("content") for token in added if isinstance(token, dict)}
            vocabulary = {token: number for token, number in vocabulary.items() if token not in contents}
    if isinstance(vocabulary, dict):
        return max((number for number in vocabulary.values() if isinstance(number, int)), default=None)
    return len(vocabulary) - 1 if isinstance(vocabulary, list) and vocabulary else None
