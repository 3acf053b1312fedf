"""Each recipe's example reaches the metrics in the docs, and the example of a user's module learns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from jobs.errors import InvalidSpec
from jobs.specs.inference import TrainingSpec, parse_spec
from worker.training.loops.rehearsal import Rehearsal, rehearse

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "training"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads are no faster for models this small, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(name: str) -> TrainingSpec:
    """An example's spec."""
    spec = parse_spec(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")))
    assert isinstance(spec, TrainingSpec)
    return spec


def rehearsed(name: str, folder: Path) -> Rehearsal:
    """A recipe's example, trained to its end."""
    spec = example(name)
    assert spec.module is not None
    found = rehearse(spec.module, folder=folder, options=spec.options, arguments=spec.arguments)
    assert all(math.isfinite(value) for values in found.metrics.values() for value in values)
    return found


@pytest.mark.parametrize(
    ("name", "metric", "least"), [("cnn", "accuracy", 0.93), ("lstm", "accuracy", 0.89), ("ctc", "exact", 0.9)]
)
def test_what_is_right_comes_to_its_share(name: str, metric: str, least: float, tmp_path: Path) -> None:
    found = rehearsed(name, tmp_path)
    assert found.metrics[f"eval_{metric}"][-1] >= least
    assert found.metrics["eval_loss"][-1] < found.metrics["eval_loss"][0]
    if name == "ctc":
        assert found.metrics["eval_cer"][-1] < 0.05
        assert (found.folder / "letters.txt").read_text().split() == list("abcdefgh")


def test_a_variational_autoencoder_comes_to_its_bound(tmp_path: Path) -> None:
    found = rehearsed("vae", tmp_path)
    assert found.losses[0] > 40
    assert found.metrics["eval_loss"][-1] < 26
    parts = found.metrics["reconstruction"], found.metrics["kl"]
    assert len(parts[0]) == len(parts[1]) == len(found.losses)
    for loss, reconstruction, kl in zip(found.losses, *parts, strict=True):
        assert loss == pytest.approx(reconstruction + kl, rel=1e-4)
    Image.open(found.folder / "samples.png").verify()


@pytest.mark.soak
def test_adversaries_come_to_the_real_mean_and_spread(tmp_path: Path) -> None:
    found = rehearsed("gan", tmp_path)
    assert found.metrics["eval_distance"][-1] < 0.9  # 2.6 at the start
    assert found.metrics["eval_spread_distance"][-1] < 0.8  # 2.1 at the start
    assert len(found.metrics["loss_discriminator"]) == len(found.metrics["loss_generator"]) == len(found.losses)
    Image.open(found.folder / "samples.png").verify()
    for model in ("generator", "discriminator"):
        with safe_open(found.folder / "model" / f"{model}.safetensors", "pt") as weights:
            assert list(weights.keys())


def test_the_module_of_ones_own_learns_from_its_rows(tmp_path: Path) -> None:
    spec = example("my-module")
    assert spec.data is not None
    assert spec.module == "my_module.py"
    found = rehearse(
        EXAMPLES / spec.module,
        folder=tmp_path,
        options=spec.options,
        arguments=spec.arguments,
        rows=rows_of(spec.data.train, spec),
        eval_rows=rows_of(spec.data.eval, spec),
    )
    assert found.metrics["eval_loss"][-1] < found.metrics["eval_loss"][0] / 10


def rows_of(path: str | list[str] | None, spec: TrainingSpec) -> list[dict[str, float]]:
    """The rows of an example's file, by the names in `data.columns`."""
    assert isinstance(path, str)
    lines = (EXAMPLES / path).read_text(encoding="utf-8").splitlines()
    return [{name: json.loads(line)[column] for name, column in spec.columns().items()} for line in lines]


def test_a_wrong_option_fails_a_job_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as refused:
        rehearse("recipes.gan", folder=tmp_path, options={"hiden": 3})
    assert refused.value.message == (
        "options.hiden: unknown option; the options are noise, hidden, learning_rate, real_label, dropout"
    )
