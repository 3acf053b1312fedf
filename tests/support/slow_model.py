"""A real text classifier with custom code: each step of its training takes long while a file exists.

A tiny model's training is over in seconds. A busy machine may need longer than that to find the process to kill.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import tiny

STEP_SECONDS = 0.3
"""How much longer a step takes."""

_CODE = f'''
import functools
import os
import time

from transformers import BertForSequenceClassification


class SlowForSequenceClassification(BertForSequenceClassification):
    """Computes what a BertForSequenceClassification does."""

    @functools.wraps(BertForSequenceClassification.forward)  # the Trainer passes the columns that its signature names
    def forward(self, *inputs, **others):
        if self.training and os.path.exists(self.config.slow_path):
            time.sleep({STEP_SECONDS})
        return super().forward(*inputs, **others)
'''


def slow_classifier(folder: Path, *, while_exists: Path) -> Path:
    """A tiny BERT whose head is not trained yet. It must be listed in `STOKER_TRUSTED_REMOTE_CODE`.

    Args:
        folder: Folder of the model, created if missing.
        while_exists: A file; while it exists, each step of a training takes `STEP_SECONDS` longer.
    """
    tiny.tiny_encoder(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "slow.SlowForSequenceClassification"}
    config["slow_path"] = str(while_exists)
    path.write_text(json.dumps(config))
    (folder / "slow.py").write_text(_CODE)
    return folder
