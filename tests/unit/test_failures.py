"""The message of a library's exception becomes a sentence without addresses and without data."""

from __future__ import annotations

import io

from worker.models.failures import plain_sentence


def test_addresses_and_data_are_left_out() -> None:
    sentence = plain_sentence(ValueError(f"cannot identify image file {io.BytesIO()!r}\nand more"))
    assert sentence == "ValueError: cannot identify image file a BytesIO"
    assert plain_sentence(OSError(f"no file {'x' * 1000} here")) == f"OSError: no file {'x' * 39}… here"
    assert len(plain_sentence(TypeError("word " * 1000))) == 300
