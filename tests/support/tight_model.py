"""A real classifier whose device holds only so many tokens at once: beyond, torch's own allocator refuses it memory.

A machine without a GPU has no small memory to run out of: a process that takes all of the host's is killed, and others
with it. So above its limit this model asks the allocator for more than a process can address, which is refused before a
byte of it is taken: the error is the true one, from where it truly comes.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import tiny

_CODE = '''
import torch

from transformers import BertForSequenceClassification


class TightModel(BertForSequenceClassification):
    """Computes what a BertForSequenceClassification does, where there is room for it."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        if input_ids.numel() > self.config.most_tokens:
            torch.empty(1 << 48, dtype=torch.uint8)
        return super().forward(input_ids, attention_mask=attention_mask, labels=labels)
'''


def tight_classifier(folder: Path, *, most_tokens: int) -> Path:
    """A tiny BERT with that limit. It must be listed in `STOKER_TRUSTED_REMOTE_CODE`.

    Args:
        folder: made if it is not there.
        most_tokens: of one micro-batch, padding counted.
    """
    tiny.tiny_encoder(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "architectures": ["TightModel"],
        "auto_map": {"AutoModelForSequenceClassification": "tight.TightModel"},
        "most_tokens": most_tokens,
    }
    path.write_text(json.dumps(config))
    (folder / "tight.py").write_text(_CODE)
    return folder
