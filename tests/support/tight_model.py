"""A real classifier that runs out of memory above a given number of tokens, with torch's own error.

A test without a GPU cannot use up real memory: the kernel would kill the process, and others with it. So above its
limit this model requests more memory than a process can address. The allocator fails before it takes any memory, and
raises its usual error.
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
    """A tiny BERT with such a limit. It must be listed in `STOKER_TRUSTED_REMOTE_CODE`.

    Args:
        folder: Folder of the model, created if missing.
        most_tokens: Most tokens of one micro-batch, including padding.
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
