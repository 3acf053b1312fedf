#!/usr/bin/env python
"""Write `jobs/specs/architectures.json` anew from the installed transformers.

Run it in the repository's environment after an upgrade of transformers: `python ops/list_architectures.py`. A test
compares the file with the installed release.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto as auto

FILE = Path(__file__).parents[1] / "jobs" / "specs" / "architectures.json"

TRAINABLE = {
    "text-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "text-generation": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "automatic-speech-recognition": auto.MODEL_FOR_CTC_MAPPING_NAMES,
}

UNCONFIRMED = (
    *("cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text", "gemma3n", "gemma4_assistant"),
    *("gemma4_unified_assistant", "hunyuan_v1_dense", "ministral", "musicgen", "musicgen_melody", "nemotron"),
    *("qwen3_5", "qwen3_5_moe", "qwen4_exp", "reformer"),
)
"""Language models that have no conversion in transformers' table, but that could not be built to confirm that their
modules have the names of the weights in their files."""


def is_renamed(kind: str) -> bool:
    """Whether transformers converts the names of this language model's weights when it loads them."""
    classes = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    names = [kind, *([classes] if isinstance(classes, str) else classes)]
    return any(get_checkpoint_conversion_mapping(name) is not None for name in names)


def main() -> None:
    """Write the file."""
    listed = {
        "trainable": {task: sorted(kinds) for task, kinds in TRAINABLE.items()},
        "known": sorted(set(auto.MODEL_MAPPING_NAMES).union(*TRAINABLE.values())),
        "renamed": sorted({*UNCONFIRMED, *filter(is_renamed, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}),
    }
    FILE.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
