"""Which parameters a task takes and which values they may have, so that a wrong one is refused at submission."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, shown
from jobs.specs.parameter_pairs import check_together

Check = Callable[[Any], bool]
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
"""transformers' names of how a row that is too long is cut; `true` is `longest_first`."""
POOLINGS = ("mean", "cls", "last_token", "max")
"""How the vectors of a row's tokens become one."""
MOST_STOPS = 16
"""Stop strings of one generated row."""
MOST_CHOICES = 128
"""Continuations of one generated row."""
MOST_TOP_LOGPROBS = 20
"""Likeliest tokens that are told of each generated token."""
NO_TEMPLATE_VARIABLES = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
        "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "self",
        "tokenize", "tokenizer_kwargs", "truncation",
    }
)  # fmt: skip
"""What `apply_chat_template` does not hand to the template, or is not to be replaced there."""
FORBIDDEN_NAMES = frozenset(
    {
        "assistant_model", "assistant_tokenizer", "custom_generate", "generation_config", "logits_processor", "model",
        "monitor_progress", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer", "tokenizer",
        "trust_remote_code",
    }
)  # fmt: skip
"""Arguments of `generate` and of loaders that would bring code, objects or models from elsewhere."""
MOST_TOKENS = 2**20
"""Tokens of the longest row that a job may ask for; with `padding: max_length` each row takes as many."""
_SEEDS = 2**63  # what a signed integer of eight bytes holds


def check_parameters(task: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the task does not have, and values that they cannot take.

    Of a task without an entry in `PARAMETERS`, only the model says which names there are, in the runner; looked at here
    are the values of those that every model has, and what no job may set.

    Raises:
        InvalidSpec: one of them is wrong; the message names it, and `param` is `parameters.<name>`.
    """
    closed = PARAMETERS.get(task)
    known = OPEN_PARAMETERS.get(task, {}) if closed is None else closed
    for name, value in parameters.items():
        if name not in known and closed is not None:
            raise unknown_parameter(task, name, tuple(known))
        if closed is None:
            _check_allowed(task, name, value)
        check, expected = known.get(name, _ANYTHING)
        if not check(value):
            param = f"parameters.{name}"
            raise InvalidSpec(f"{param}: must be {expected}, not {shown(value, 80)}", param=param)
    check_together(task, parameters)


def check_inner_names(name: str, value: object) -> None:
    """Refuse a parameter whose value holds a forbidden name, or a row length beyond `MOST_TOKENS`, at any depth.

    Raises:
        InvalidSpec: it does; the message names both.
    """
    if any(isinstance(length, int) and length > MOST_TOKENS for length in _inner_lengths(value)):
        param = f"parameters.{name}.max_length"
        raise InvalidSpec(f"{param}: must be at most {MOST_TOKENS} tokens", param=param)
    forbidden = sorted(FORBIDDEN_NAMES & _inner_names(value))
    if forbidden:
        param = f"parameters.{name}.{forbidden[0]}"
        raise InvalidSpec(f"{param}: cannot be set by a job", param=param)


def _inner_names(value: object) -> set[str]:
    if isinstance(value, Mapping):
        return set(value).union(*map(_inner_names, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_inner_names, value))
    return set()


def _inner_lengths(value: object) -> list[object]:
    """Values named `max_length` at any depth."""
    if isinstance(value, Mapping):
        found = [value["max_length"]] if "max_length" in value else []
        return found + [length for inner in value.values() for length in _inner_lengths(inner)]
    if isinstance(value, (list, tuple)):
        return [length for inner in value for length in _inner_lengths(inner)]
    return []


def _check_allowed(task: str, name: str, value: object) -> None:
    if name in FORBIDDEN_NAMES:
        raise unknown_parameter(task, name, tuple(OPEN_PARAMETERS.get(task, ())))
    check_inner_names(name, value)


def unknown_parameter(task: str, name: str, known: tuple[str, ...]) -> InvalidSpec:
    """The error for a parameter that a task does not have."""
    has = f"; it has {', '.join(known)}" if known else "; it has none"
    param = f"parameters.{name}"
    message = f"task '{task}' has no parameter '{name}'{did_you_mean(name, known)}{has}"
    return InvalidSpec(f"{param}: {message}", param=param)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or (_is_texts(value) and bool(value))


def _is_labels(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.replace(",", "").strip())
    return _is_texts(value) and bool(value)


def _is_template(value: object) -> bool:
    """Whether a text has the label's place in it, and nothing else that `str.format` would act on.

    A width (`{:>2000000000}`) would fill the host's memory, and a text without a place says the same of every label.
    """
    if not isinstance(value, str):
        return False
    try:
        places = [
            (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(value) if name is not None
        ]
    except ValueError:
        return False
    return places == [("", "", None)] or (bool(places) and all(place == ("0", "", None) for place in places))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names


def _is_truncation(value: object) -> bool:
    return value is None or isinstance(value, bool) or (isinstance(value, str) and value in TRUNCATIONS)


def _is_number(value: object) -> bool:
    # NaN and the infinities are numbers to Python and to some JSON readers.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _between(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """Whether a value is a number from `low` (beyond it where `above`) to `high`."""
    return lambda value: _is_number(value) and (low < value if above else low <= value) and value <= high


def _is_whole_between(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_stop(value: object) -> bool:
    stops = [value] if isinstance(value, str) else value
    return isinstance(stops, list) and len(stops) <= MOST_STOPS and all(_is_text(stop) and stop for stop in stops)


def _is_tokenizer_kwargs(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(name in _TOKENIZER and _TOKENIZER[name][0](inner) for name, inner in value.items())


def _is_template_kwargs(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(name) and name not in NO_TEMPLATE_VARIABLES for name in value)


_TOKENIZER: Mapping[str, tuple[Check, str]] = {
    "truncation": (_is_truncation, f"true, false or one of {', '.join(TRUNCATIONS)}"),
    "max_length": (_or_null(_is_whole_between(1, MOST_TOKENS)), f"a whole number from 1 to {MOST_TOKENS}"),
    # Rows are always padded to the longest of their batch; taken because calls of pipelines often say it.
    "padding": (
        lambda value: isinstance(value, bool) or value in ("longest", "max_length", "do_not_pad"),
        "true, false, 'longest', 'max_length' or 'do_not_pad'",
    ),
}

_FLAG = (_or_null(_is_flag), "true or false")
_PADDING = (
    lambda value: value is None or isinstance(value, bool) or value in ("longest", "max_length", "do_not_pad"),
    "true, false, 'longest', 'max_length' or 'do_not_pad'",
)
_LABELS = (_is_labels, "a list of labels, or a text that separates them by commas")
_HYPOTHESIS = (_or_null(_is_template), "a text with one {} in it, where the label goes")
_TEXT = (_or_null(_is_text), "a text")
_NUMBER = (lambda value: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)), "a number")
_COUNT = (_or_null(_is_count), "a whole number from 1")
_INPUTS = (_one_of("text", "any"), "'text', or 'any' for rows of a text, texts or token ids")
_STOPS = (_or_null(_is_stop), f"a text or a list of at most {MOST_STOPS}, none of them empty")
_CHOICES = (_or_null(_is_whole_between(1, MOST_CHOICES)), f"a whole number from 1 to {MOST_CHOICES}")
_FUNCTION = (_or_null(_one_of("sigmoid", "softmax", "none")), "one of sigmoid, softmax, none")

_MAPPING = (lambda value: value is None or isinstance(value, dict), "a mapping of names to values")
_ANYTHING: tuple[Check, str] = (lambda _: True, "")
_MULTIMODAL: Mapping[str, tuple[Check, str]] = {
    "max_new_tokens": _COUNT,
    "generate_kwargs": _MAPPING,
    "processor_kwargs": _MAPPING,
    "return_full_text": _FLAG,
    "continue_final_message": _FLAG,
    "skip_special_tokens": _FLAG,
    "stop_sequence": _TEXT,
}

PARAMETERS: Mapping[str, Mapping[str, tuple[Check, str]]] = {
    "embeddings": {
        "pooling": (_or_null(_one_of(*POOLINGS)), f"one of {', '.join(POOLINGS)}"),
        "normalize": (_or_null(_is_flag), "true or false"),
        "dimensions": (_or_null(_is_count), "a whole number from 1"),
        "max_length": _TOKENIZER["max_length"],
        "truncate": (_is_flag, "true or false"),
        "prompt": (_or_null(_is_text), "a text"),
        "prompt_name": (_or_null(_is_text), "the name of one of the model's prompts"),
        "inputs": _INPUTS,
    },
    "text-classification": {
        "top_k": (_or_null(_is_count), "a whole number from 1, or null for all labels"),
        "function_to_apply": _FUNCTION,
        "inputs": _INPUTS,
        **_TOKENIZER,
    },
    "token-classification": {
        "aggregation_strategy": (
            _or_null(_one_of("none", "simple", "first", "average", "max")),
            "one of none, simple, first, average, max",
        ),
        "ignore_labels": (_or_null(_is_texts), "a list of labels"),
        "stride": (_or_null(_is_size), "a whole number from 0"),
        "is_split_into_words": (_is_flag, "true or false"),
        "delimiter": (_or_null(_is_text), "a text"),
        **_TOKENIZER,
    },
    "fill-mask": {
        "top_k": (_or_null(_is_count), "a whole number from 1"),
        "targets": (_or_null(_is_text_or_texts), "a word or a list of words"),
        "tokenizer_kwargs": (_or_null(_is_tokenizer_kwargs), f"a mapping of {', '.join(_TOKENIZER)} to their values"),
        **_TOKENIZER,
    },
    "text-generation": {
        "max_new_tokens": _COUNT,
        "do_sample": (_or_null(_is_flag), "true or false"),
        "temperature": (_or_null(_between(0)), "a number from 0"),
        "top_p": (_or_null(_between(0, 1, above=True)), "a number above 0 and up to 1"),
        "top_k": _COUNT,
        "repetition_penalty": (_or_null(_between(0, above=True)), "a number above 0"),
        "seed": (_or_null(_is_whole_between(-_SEEDS, _SEEDS - 1)), "a whole number of 64 bits"),
        "stop": _STOPS,
        "stop_strings": _STOPS,
        "n": _CHOICES,
        "num_return_sequences": _CHOICES,
        "logprobs": (_or_null(_is_flag), "true or false"),
        "top_logprobs": (
            _or_null(_is_whole_between(0, MOST_TOP_LOGPROBS)),
            f"a whole number from 0 to {MOST_TOP_LOGPROBS}",
        ),
        "return_full_text": (_or_null(_is_flag), "true or false"),
        "continue_final_message": (_or_null(_is_flag), "true or false"),
        "chat_template_kwargs": (
            _or_null(_is_template_kwargs),
            "a mapping of the chat template's own variables to their values",
        ),
    },
    # The pipelines of the following tasks ignore what they do not know.
    "zero-shot-classification": {
        "candidate_labels": _LABELS,
        "hypothesis_template": _HYPOTHESIS,
        "multi_label": (_is_flag, "true or false"),
    },
    "zero-shot-image-classification": {"candidate_labels": _LABELS, "hypothesis_template": _HYPOTHESIS},
    "zero-shot-audio-classification": {"candidate_labels": _LABELS, "hypothesis_template": _HYPOTHESIS},
    "zero-shot-object-detection": {"candidate_labels": _LABELS, "threshold": _NUMBER, "top_k": _COUNT},
    "object-detection": {"threshold": _NUMBER},
    "image-segmentation": {
        "subtask": (_or_null(_one_of("semantic", "instance", "panoptic")), "one of semantic, instance, panoptic"),
        "threshold": _NUMBER,
        "mask_threshold": _NUMBER,
        "overlap_mask_area_threshold": _NUMBER,
    },
    "depth-estimation": {},
    "decision": {},
    "image-classification": {"top_k": _COUNT, "function_to_apply": _FUNCTION},
    "keypoint-matching": {"threshold": _NUMBER},
    "mask-generation": {
        "points_per_batch": (_or_null(_is_count), "a whole number from 1, or null for all points at once"),
        "points_per_crop": (_or_null(_is_whole_between(1, 256)), "a whole number from 1 to 256"),
        "crops_n_layers": (_or_null(_is_whole_between(0, 6)), "a whole number from 0 to 6"),
        "crop_overlap_ratio": _NUMBER,
        "crop_n_points_downscale_factor": _COUNT,
        "pred_iou_thresh": _NUMBER,
        "stability_score_thresh": _NUMBER,
        "stability_score_offset": _NUMBER,
        "mask_threshold": _NUMBER,
        "max_hole_area": _NUMBER,
        "max_sprinkle_area": _NUMBER,
        "crops_nms_thresh": _NUMBER,
        "output_rle_mask": _FLAG,
        "output_bboxes_mask": _FLAG,
    },
    "table-question-answering": {
        "sequential": _FLAG,
        "padding": _PADDING,
        "truncation": (
            lambda value: _is_truncation(value) or value == "drop_rows_to_fit",
            f"true, false, drop_rows_to_fit or one of {', '.join(TRUNCATIONS)}",
        ),
    },
    "document-question-answering": {
        "top_k": _COUNT,
        "max_answer_len": _COUNT,
        "max_seq_len": _COUNT,
        "max_question_len": _COUNT,
        "doc_stride": _COUNT,
        "handle_impossible_answer": _FLAG,
        "padding": _PADDING,
        "lang": _TEXT,
    },
    "video-classification": {
        "top_k": _COUNT,
        "function_to_apply": _FUNCTION,
        "num_frames": (_or_null(_is_whole_between(1, 1024)), "a whole number from 1 to 1024"),
        "frame_sampling_rate": _COUNT,
    },
    "audio-classification": {"top_k": _COUNT, "function_to_apply": _FUNCTION},
}
"""Task -> its parameters -> whether a value is possible, and what it must be in words."""

OPEN_PARAMETERS: Mapping[str, Mapping[str, tuple[Check, str]]] = {
    "feature-extraction": {"truncation": (_is_truncation, _TOKENIZER["truncation"][1]), "tokenize_kwargs": _MAPPING},
    "image-feature-extraction": {"pool": _FLAG, "image_processor_kwargs": _MAPPING},
    "text-to-audio": {"forward_params": _MAPPING, "generate_kwargs": _MAPPING},
    "automatic-speech-recognition": {
        "chunk_length_s": (_or_null(_between(0)), "a number from 0"),
        "return_timestamps": (
            lambda value: value is None or isinstance(value, bool) or value in ("char", "word"),
            "true, false, 'char' or 'word'",
        ),
        "return_language": _FLAG,
        "language": _TEXT,
        "task": _TEXT,
        "generate_kwargs": _MAPPING,
    },
    "image-text-to-text": _MULTIMODAL,
    "any-to-any": _MULTIMODAL,
}
"""The same for tasks whose further parameters are the model's: names that are not listed here are no fault here."""
