"""Whether the parts of a model go together: its configuration, its weights, its tokenizer and its chat template."""

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
"""Numbers of modules that are made one by one; a list of them (`depths`) counts as its sum."""
_WIDTHS = frozenset(
    {
        "hidden_size", "d_model", "n_embd", "dim", "intermediate_size", "d_ff", "ffn_dim", "n_inner",
        "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "num_labels", "num_attention_heads", "n_head",
        "num_key_value_heads", "head_dim", "embedding_size", "type_vocab_size", "image_size", "patch_size",
        "num_channels", "hidden_sizes",
    }
)  # fmt: skip
"""Sizes of tensors."""
_MOST_POSITIONS = 2**27  # many models only compute with positions, so weights do not bound them
_POSITIONS = frozenset({"max_position_embeddings", "n_positions", "n_ctx", "max_source_positions"})
_FEWEST_LAYERS = 1000  # this many layers are never too many
_LAYERS_PER_TENSOR = 4  # some models share the weights of their layers
_SMALLEST_WIDTH = 65_536  # this width is never too much
_WIDTHS_PER_DIMENSION = 64  # quantized weights are packed, and are narrower than their model
_MOST_PARTS = 1000  # configurations in one: its own, its encoder's, its decoder's, ...
_TABLES = (
    "embed_tokens.weight", "word_embeddings.weight", "wte.weight", "shared.weight", "tok_embeddings.weight",
    "token_embedding.weight", "word_embedding.weight",
)  # fmt: skip
"""What the name of the table of token vectors ends in, for most architectures."""
_LONGEST_TEMPLATE_CHARACTERS = 1_000_000
_MOST_REMEMBERED = 64  # tokenizers whose largest id is kept


def check_numbers(config: Mapping[str, Any], header: Header, name: str) -> None:
    """Refuse a configuration that asks for far more than its weights hold: making such a model fills the memory.

    Raises:
        InvalidModel: a number of layers, a width or a number of positions is absurd.
    """
    most_layers = max(_FEWEST_LAYERS, _LAYERS_PER_TENSOR * len(header.shapes))
    most_width = max(_SMALLEST_WIDTH, _WIDTHS_PER_DIMENSION * header.largest_dimension)
    limits = {_DEPTHS: most_layers, _WIDTHS: most_width, _POSITIONS: _MOST_POSITIONS}
    for where, part in _parts(config):
        for keys, limit in limits.items():
            for key in keys & part.keys():
                value = _size(part[key])
                if value is not None and not 0 <= value <= limit:
                    held = f"its weights hold {len(header.shapes)} tensors, the largest dimension of which is"
                    raise invalid(
                        name, f"its config.json says {where}{key}: {value}, but {held} {header.largest_dimension}"
                    )


def check_vocabulary(folder: Path, config: Mapping[str, Any], header: Header, name: str) -> None:
    """Refuse a tokenizer whose vocabulary is larger than the model's table of token vectors.

    Tokens that were added to a tokenizer without making the table larger are no reason: the model can be used for every
    text that does not contain them, and a row that does is a row error.

    Raises:
        InvalidModel: they are not of one model.
    """
    tables = [shape for key, shape in header.shapes.items() if key.endswith(_TABLES) and len(shape) == 2]
    rows = max((shape[0] for shape in tables), default=0)
    said = config.get("vocab_size")
    # Packed or split tables say less than the configuration does.
    known = max(rows, said if isinstance(said, int) and not isinstance(said, bool) else 0)
    if not tables or not known:
        return
    largest = _largest_id(folder, name)
    if largest is not None and largest >= known:
        raise invalid(
            name,
            f"its tokenizer has ids up to {largest}, but the model has vectors for {known} tokens only: they are not of"
            " one model",
        )


def check_templates(folder: Path, name: str) -> None:
    """Refuse a folder with a chat template that is not valid Jinja.

    Raises:
        InvalidModel: it is not; the sentence names the file and the line.
    """
    for where, text in _templates(folder, name):
        reason = template_fault(text)
        if reason is not None:
            raise invalid(name, f"its chat template ({where}) cannot be used: {reason}")


def template_fault(text: str) -> str | None:
    """Why a text is no chat template, or None where it is one.

    It is parsed only: already compiling it computes its constants, such as `'a' | center(10 ** 12)`.
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
    """`{% generation %}` of transformers, which marks what an assistant said."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@functools.cache
def _environment() -> jinja2.Environment:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]  # as transformers has them
    return jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)


def _templates(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        if path.is_file():
            try:
                yield path.name, path.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise invalid(name, f"its {path.name} cannot be read as text: {error}") from error
    for file in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        said = read_json(folder / file, name=name, required=False).get("chat_template")
        for template in said if isinstance(said, list) else [said]:
            text = template.get("template") if isinstance(template, dict) else template
            if isinstance(text, str):
                yield file, text


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A configuration and those inside it, each with what its fields' names begin with."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return
        where, part = waiting.pop(0)
        yield where, part
        waiting += [(f"{where}{key}.", value) for key, value in part.items() if isinstance(value, dict)]


def _size(value: object) -> int | None:
    """The number that a field says; of a list of numbers, their sum."""
    if isinstance(value, list) and value and all(_size(item) is not None for item in value):
        return sum(_size(item) or 0 for item in value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _largest_id(folder: Path, name: str) -> int | None:
    """The largest id in a tokenizer's vocabulary, tokens that were added to it left aside; None where it is unknown."""
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
            raise invalid(name, "its tokenizer.json does not hold a JSON object")
        model = value.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        added = value.get("added_tokens")
        if isinstance(vocabulary, dict) and isinstance(added, list):
            # Some tokenizers list their added tokens in the vocabulary as well.
            contents = {token.get("content") for token in added if isinstance(token, dict)}
            vocabulary = {token: number for token, number in vocabulary.items() if token not in contents}
    if isinstance(vocabulary, dict):
        return max((number for number in vocabulary.values() if isinstance(number, int)), default=None)
    return len(vocabulary) - 1 if isinstance(vocabulary, list) and vocabulary else None
