"""Options of `stoker run` that become fields of the input."""

from __future__ import annotations

import pytest

from scheduler.cli import command_line as cli


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("path=x", "--input-option: 'path' has an option of its own, --input"),
        ("encoding", "--input-option wants NAME=VALUE"),
        ("encodin=latin-1", "input.encodin: unknown field"),
        ("quoting=some", "input.quoting: must be 'auto', 'minimal' or 'none'"),
    ],
)
def test_a_wrong_input_option_is_refused_before_anything_starts(
    option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "embeddings", "--model", "m", "--input", "in.csv", "--input-option", option]
    assert cli.main(words) == cli.USAGE
    assert said in capsys.readouterr().err
