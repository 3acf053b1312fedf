"""The recipes follow the contract of modules, read their options strictly, and are documented with examples."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from jobs.errors import InvalidSpec
from jobs.specs.inference import TrainingSpec, parse_spec
from jobs.specs.training import RECIPES, recipe_name
from jobs.specs.training_options.recipe_options import OPTIONS
from jobs.specs.training_options.training_metrics import RECIPE_METRICS
from worker.training.loops.rehearsal import rehearse
from worker.training.modules.recipes.ctc import decode
from worker.training.modules.recipes.tones import BLANK, LETTERS, Tones
from worker.training.modules.user_module import Loss, Parts, Rows, Setup

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "ops" / "examples" / "training"
DIGITS = ("cnn", "lstm", "vae", "gan")
_SEED = 3

every_recipe = pytest.mark.parametrize("name", RECIPES)


def build(name: str, options: dict[str, Any] | None = None, *, seed: int = _SEED) -> Parts:
    """A recipe's parts, as the loop has them built."""
    torch.manual_seed(seed)
    module = importlib.import_module(f"worker.training.modules.recipes.{name}")
    parts = module.build(Setup(options=options or {}, seed=seed, device=torch.device("cpu")))
    assert isinstance(parts, Parts)
    return parts


def batch_of(rows: Rows, parts: Parts, num_rows: int) -> Any:
    """The first rows as one batch."""
    return parts.collate([rows[index] for index in range(num_rows)])


def scalar(loss: Loss) -> torch.Tensor:
    """A loss without its additional metrics."""
    return loss[0] if isinstance(loss, tuple) else loss


# -- the contract --------------------------------------------------------------------------------------------------


@every_recipe
@pytest.mark.parametrize("num_rows", [1, 8])
def test_each_phase_learns_by_its_own_parameters(name: str, num_rows: int) -> None:
    parts = build(name)
    learned = {id(each) for model in parts.models.values() for each in model.parameters()}
    for phase in parts.phases:
        loss = scalar(phase.loss(batch_of(parts.train, parts, num_rows)))
        assert loss.shape == ()
        assert torch.isfinite(loss)
        own = [each for group in phase.optimizer.param_groups for each in group["params"]]
        assert own
        assert {id(each) for each in own} <= learned
        loss.backward()
        # Some may be zero: those that batch normalisation cancels, such as the bias before it.
        assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in own)
        assert any(each.grad is not None and each.grad.abs().sum() > 0 for each in own)
        for model in parts.models.values():
            model.zero_grad()


@every_recipe
def test_losses_and_evaluations_compute_in_bfloat16(name: str) -> None:
    """On a GPU a recipe's dtype is bfloat16 unless the spec says otherwise."""
    parts = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for phase in parts.phases:
            loss = scalar(phase.loss(batch_of(parts.train, parts, 8)))
            loss.backward()
            assert torch.isfinite(loss)
        assert parts.evaluate is not None
        with torch.no_grad():
            found = parts.evaluate(batch_of(parts.train, parts, 8))
    assert all(torch.isfinite(value) for value in found.values())


@every_recipe
def test_the_metrics_that_a_spec_may_name_are_those_of_the_recipe(name: str) -> None:
    parts = build(name)
    assert parts.eval_data is not None
    assert parts.evaluate is not None
    with torch.no_grad():
        assert set(parts.evaluate(batch_of(parts.eval_data, parts, 2))) == set(RECIPE_METRICS[name])


@every_recipe
def test_an_evaluation_is_a_mean_over_rows(name: str) -> None:
    parts = build(name)
    assert parts.eval_data is not None
    assert parts.evaluate is not None
    for model in parts.models.values():
        model.eval()
    whole = batch_of(parts.eval_data, parts, 12)
    pieces = [parts.collate([parts.eval_data[index] for index in piece]) for piece in (range(5), range(5, 12))]
    with torch.no_grad():
        found = parts.evaluate(whole)
        cut = [parts.evaluate(piece) for piece in pieces]
    drawn = {"loss", "reconstruction"} if name == "vae" else set()  # its latents are drawn at random
    for metric, value in found.items():
        assert torch.isfinite(value), metric
        if metric not in drawn:
            mean = (5 * cut[0][metric] + 7 * cut[1][metric]) / 12
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)


@every_recipe
def test_a_build_makes_the_same_rows_and_weights_again(name: str) -> None:
    """Exact resumption needs it, since each attempt builds the model again."""
    one, other = build(name), build(name)
    assert len(one.train) == len(other.train)
    for index in (0, 1, len(one.train) - 1):
        drawn = []
        for parts in (one, other):
            torch.manual_seed(index)  # as the loop does for each row
            drawn.append(parts.train[index])
        torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    for key, model in one.models.items():
        torch.testing.assert_close(model.state_dict(), other.models[key].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", DIGITS)
def test_the_held_out_fifth_is_the_same_for_every_seed(name: str) -> None:
    one, other = build(name, seed=0), build(name, seed=1)
    assert one.eval_data is not None
    assert other.eval_data is not None
    assert (len(one.train), len(one.eval_data)) == (1438, 359)
    assert all(torch.equal(one.eval_data[index][0], other.eval_data[index][0]) for index in range(359))


def test_pictures_are_moved_from_epoch_to_epoch_by_default() -> None:
    moved = build("cnn").train
    still = build("cnn", {"augment": False}).train
    pictures = {tuple(moved[0][0].flatten().tolist()) for _ in range(40)}
    assert 2 <= len(pictures) <= 9
    assert tuple(still[0][0].flatten().tolist()) in pictures
    assert len({tuple(still[0][0].flatten().tolist()) for _ in range(40)}) == 1


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_samples_are_drawn_as_one_picture(name: str, tmp_path: Path) -> None:
    parts = build(name)
    assert parts.finish is not None
    parts.finish(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    assert pixels.shape == (640, 640)  # 8 x 8 pictures of 8 x 8 pixels with a frame, 8 times as large
    assert pixels.std() > 1


# -- speech --------------------------------------------------------------------------------------------------------


def test_transcripts_do_not_depend_on_padding() -> None:
    parts = build("ctc")
    model = parts.models["model"]
    rows = sorted((parts.train[index] for index in range(16)), key=lambda row: len(row[0]))
    alone, together = parts.collate(rows[:1]), parts.collate(rows)
    assert together[0].shape[1] > alone[0].shape[1]
    with torch.no_grad():
        log_probs_UK = model(alone[0])[0]
        torch.testing.assert_close(model(together[0])[0, : len(log_probs_UK)], log_probs_UK, rtol=1e-4, atol=1e-5)


def test_decoding_leaves_out_repetitions_and_blanks() -> None:
    paths = [[0, 1, 1, 0, 1, 2, 2, 3], [3, 3, 0, 0, 2, 2, 2, 2]]
    log_probs_BUK = torch.nn.functional.one_hot(torch.tensor(paths), 1 + len(LETTERS)).float()
    assert decode(log_probs_BUK, torch.tensor([8, 4])) == [[1, 1, 2, 3], [3]]


def test_an_utterance_has_the_given_number_of_letters_and_its_own_noise() -> None:
    quiet = Tones(40, num_letters=(2, 4), noise=0.0, part=0)
    noisy = Tones(40, num_letters=(2, 4), noise=0.5, part=0)
    lengths = {len(quiet[index][1]) for index in range(40)}
    assert lengths == {2, 3, 4}
    assert all((quiet[index][1] != BLANK).all() for index in range(40))
    assert not torch.equal(quiet[0][0], noisy[0][0])
    assert torch.equal(quiet[0][0], quiet[0][0])


# -- options -------------------------------------------------------------------------------------------------------


@every_recipe
def test_an_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as refused:
        build(name, {"learning_rat": 0.1})
    assert (
        str(refused.value)
        == f"options.learning_rat: unknown option; the options are {', '.join(OPTIONS[name].model_fields)}"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {"learning_rate": 0}, "options.learning_rate: must be greater than 0.0"),
        ("cnn", {"learning_rate": "0.1"}, "options.learning_rate: must be a number"),
        ("cnn", {"learning_rate": float("nan")}, "options.learning_rate: must be a finite number"),
        ("cnn", {"augment": 1}, "options.augment: must be true or false"),
        ("lstm", {"hidden": 2.5}, "options.hidden: must be a whole number"),
        ("lstm", {"dropout": 1}, "options.dropout: must be less than 1.0"),
        ("vae", {"latent": 0}, "options.latent: must be at least 1"),
        ("gan", {"real_label": 2}, "options.real_label: must be at most 1.0"),
        ("ctc", {"rows": True}, "options.rows: must be a whole number"),
        ("ctc", {"min_letters": 9}, "options.max_letters: must be at least options.min_letters"),
        (
            "ctc",
            {"judged_rows": 2, "eval_rows": 2},
            "options.judged_rows: is the old name of options.eval_rows; set only one of them",
        ),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        build(name, options)
    assert str(refused.value) == message


def test_an_old_name_of_an_option_is_accepted() -> None:
    eval_data = build("ctc", {"judged_rows": 3}).eval_data
    assert eval_data is not None
    assert len(eval_data) == 3


@pytest.mark.parametrize("name", DIGITS)
def test_a_missing_scikit_learn_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InvalidSpec) as refused:
        build(name)
    assert refused.value.message == f"module: recipes.{name} needs scikit-learn: pip install 'stoker[recipes]'"


@every_recipe
def test_the_reference_has_each_option_with_its_default(name: str) -> None:
    page = (ROOT / "ops" / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = ", ".join(
        f"`{option}`: {str(field.default).lower()}" for option, field in OPTIONS[name].model_fields.items()
    )
    assert f"\n| `recipes.{name}` | {listed} |\n" in page


# -- examples ------------------------------------------------------------------------------------------------------


@every_recipe
def test_each_example_is_a_spec_whose_options_are_taken(name: str) -> None:
    spec = parse_spec(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")))
    assert isinstance(spec, TrainingSpec)
    assert (spec.trainer, spec.module) == ("torch", f"recipes.{name}")
    parts = build(name, spec.options)
    best = spec.checkpoint.best
    assert parts.evaluate is not None
    assert parts.eval_data is not None
    if best is not None:
        for model in parts.models.values():
            model.eval()
        assert best.removeprefix("eval_") in parts.evaluate(batch_of(parts.eval_data, parts, 2))


def test_every_recipe_is_here() -> None:
    folder = ROOT / "worker" / "training" / "modules" / "recipes"
    modules = (path.stem for path in folder.glob("*.py") if "\ndef build(" in path.read_text(encoding="utf-8"))
    assert sorted(modules) == sorted(RECIPES)
    assert all((EXAMPLES / f"{name}.yaml").exists() for name in itertools.chain(RECIPES, ["my-module"]))


def test_a_recipe_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({"kind": "training", "trainer": "torch", "module": "recipes.nope"})
    assert caught.value.message == "module: there is no 'recipes.nope'; the recipes are cnn, ctc, gan, lstm, vae"
    assert caught.value.param == "module"
    with pytest.raises(InvalidSpec, match=r"there is no 'recipes\.nope'"):
        rehearse("recipes.nope")


@pytest.mark.parametrize(
    "module", ["recipes.py", "recipes.cnn.py", "recipes.v2/net.py", "recipes/cnn.py", "nets.py", "recipes"]
)
def test_a_file_of_that_name_is_a_file(module: str) -> None:
    assert recipe_name(module) is None
    parse_spec({"kind": "training", "trainer": "torch", "module": module})
