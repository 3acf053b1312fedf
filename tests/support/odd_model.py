"""A real encoder with custom code that misbehaves on certain words: it kills its process, hangs, raises or waits."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import tiny

KILLS, HANGS, RAISES, WAITS = "zzkills", "zzhangs", "zzraises", "zzwaits"
"""Words of the tokenizer that make the model misbehave."""

_CODE = '''
import os
import signal
import threading
import time

from transformers import BertModel


class OddModel(BertModel):
    """Computes what a BertModel does, after what the words of its rows make it do."""

    def forward(self, input_ids, **others):
        seen = set(input_ids.flatten().tolist())
        odd = self.config.odd_ids
        if odd["zzkills"] in seen:
            os.kill(os.getpid(), signal.SIGKILL)
        if odd["zzhangs"] in seen:
            threading.Event().wait()
        if odd["zzraises"] in seen:
            raise ArithmeticError("the model met a row that it cannot compute")
        while odd["zzwaits"] in seen and not os.path.exists(self.config.gate_path):
            time.sleep(0.01)  # a file's appearance is not told; the runner may be killed meanwhile
        return super().forward(input_ids, **others)
'''


def odd_encoder(folder: Path, *, gate: Path) -> Path:
    """A tiny BERT encoder that misbehaves on the words above. It must be listed in `STOKER_TRUSTED_REMOTE_CODE`.

    Args:
        folder: Folder of the model, created if missing.
        gate: A file; rows with `WAITS` are computed once it exists.
    """
    tokenizer = tiny.wordpiece_tokenizer()
    # Special tokens, since probes of a model with tokens of its vocabulary do not use those.
    tokenizer.add_special_tokens({"additional_special_tokens": [KILLS, HANGS, RAISES, WAITS]})
    tiny.tiny_encoder(folder, tokenizer=tokenizer)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architectures"], config["auto_map"] = ["OddModel"], {"AutoModel": "odd.OddModel"}
    config["gate_path"] = str(gate)
    words = (KILLS, HANGS, RAISES, WAITS)
    config["odd_ids"] = dict(zip(words, tokenizer.convert_tokens_to_ids(list(words)), strict=True))
    path.write_text(json.dumps(config))
    (folder / "odd.py").write_text(_CODE)
    return folder


def trusting(folder: Path, modules: Path) -> dict[str, str]:
    """The environment variables with which a stack runs this model.

    Args:
        folder: Folder of the model.
        modules: Folder to which transformers may copy the model's code.
    """
    return {"STOKER_TRUSTED_REMOTE_CODE": json.dumps([str(folder)]), "HF_MODULES_CACHE": str(modules)}
