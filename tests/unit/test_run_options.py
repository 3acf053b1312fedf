"""Options of `stoker run` that become fields of the spec."""

from __future__ import annotations

import pytest

from jobs.specs.parameters import PARAMETERS
from scheduler.cli import command_line as cli


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("path=x", "--input-option: set 'path' with --input instead"),
        ("encoding", "--input-option: must be NAME=VALUE"),
        ("encodin=latin-1", "input.encodin: unknown field"),
        ("quoting=some", "input.quoting: must be 'auto', 'minimal' or 'none'"),
    ],
)
def test_a_wrong_input_option_is_refused_before_anything_starts(
    option: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "embeddings", "--model", "m", "--input", "in.csv", "--input-option", option]
    assert cli.main(words) == cli.USAGE
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("memory", "--needs: must be NAME=VALUE, not 'memory'"),
        ("memory=much", "needs.memory: must be a number of bytes, or a text such as '40GB' or '1.5GiB'"),
        ("device=tpu", "needs.device: must be 'cuda' or 'cpu'"),
        ("labels=a100,", "needs.labels.1: "),
        ("gpu=a100", "needs.gpu: unknown field"),
    ],
)
def test_wrong_needs_are_refused_before_anything_starts(
    option: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "embeddings", "--model", "m", "--input", "in.csv", "--needs", option]) == cli.USAGE
    assert error in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("task", [*PARAMETERS, "ner"])
def test_help_lists_the_parameters_of_the_task(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", task, "--help"]) == cli.DONE
    _, _, listed = capsys.readouterr().out.partition("\nParameters of ")
    model = PARAMETERS["token-classification" if task == "ner" else task]
    assert listed.startswith(model.TASK)
    words = " ".join(listed.split())
    for name, field in model.model_fields.items():
        assert f"{name}: {model.expected(name)}" in words
        assert field.description is not None
        assert " ".join(field.description.split()) in words


def test_help_lists_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "--name", "embeddings", "fill-mask", "-h"])
    assert "  top_k: a whole number from 1 [default: 5]\n    Number of words to suggest" in capsys.readouterr().out
    cli.main(["run", "--help"])
    assert "Parameters of" not in capsys.readouterr().out
