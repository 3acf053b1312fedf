"""Vectors of texts and images in one space: each is what the model computes for that row alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from PIL import Image

from jobs.access.joint_models import JOINT_TYPES
from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidInput, InvalidModel, InvalidSpec, UserError
from jobs.specs.inference import InferenceSpec, parse_spec
from scheduler.control.planning.planner import check_submission
from scheduler.openai.requests import TASK_PARAMETERS
from tests.support.task_kit import LONG_TEXT, error_codes, load, outputs
from tests.support.through_engine import compute
from tests.support.tiny import SENTENCES, tiny_encoder
from tests.support.tiny_media import tiny_clip, tiny_siglip, tiny_siglip2
from worker.inference.tasks import check_inputs
from worker.inference.tasks.joint_embeddings import JointEmbeddings
from worker.models.task_model import EncodesRowByRow

MODELS: dict[str, Callable[[Path], Path]] = {"clip": tiny_clip, "siglip": tiny_siglip, "siglip2": tiny_siglip2}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def texts_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of noise; the first two are of one size, and one is turned by its EXIF data."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = []
    for index, size in enumerate([(40, 30), (40, 30), (64, 20), (90, 90)]):
        image = Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 2 else 1
        image.save(folder / f"{index}.png", exif=exif)
        paths.append(folder / f"{index}.png")
    return paths


def rows_of(images: list[Path]) -> list[Row]:
    """Texts and images in mixed order, with texts of equal length and the same text twice."""
    texts = [*SENTENCES, SENTENCES[0], "a cat", "a dog", "", LONG_TEXT]
    values = [{"text": text} for text in texts] + [{"image": str(path)} for path in [*images, images[0]]]
    order = np.random.default_rng(1).permutation(len(values))
    return [Row(place, None, values[index]) for place, index in enumerate(order)]


def by_hand(folder: Path, row: Row) -> np.ndarray:
    """The vector of one row, by the model's own methods."""
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        if "image" in row.values:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
            image = transformers.image_utils.load_image(row.values["image"])
            found = model.get_image_features(**processor(images=image, return_tensors="pt"))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            padding = "max_length" if "siglip" in model.config.model_type else True
            inputs = tokenizer(row.values["text"], padding=padding, truncation=True, return_tensors="pt")
            found = model.get_text_features(**{name: value for name, value in inputs.items() if "type" not in name})
    return found.pooler_output[0].numpy()


def test_rows_of_a_mixed_batch_are_the_models_for_each_alone(folder: Path, images: list[Path]) -> None:
    rows = rows_of(images)
    computed = compute(load("embeddings", folder), rows)
    assert computed.is_shared
    for row, output in zip(rows, computed.outputs, strict=True):
        expected = by_hand(folder, row)
        assert (output.dtype, output.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(output, expected, atol=1e-5, rtol=0)


def test_vectors_of_a_plain_folder_are_those_of_sentence_transformers(clip: Path, images: list[Path]) -> None:
    """Not for SigLIP, whose texts it does not pad as in the model's training."""
    reference = sentence_transformers.SentenceTransformer(str(clip), device="cpu")
    expected = [reference.encode(SENTENCES[0]), reference.encode(Image.open(images[0]))]
    rows = [Row(0, None, {"text": SENTENCES[0]}), Row(1, None, {"image": str(images[0])})]
    np.testing.assert_allclose(outputs(load("embeddings", clip), rows), expected, atol=1e-5)


def test_rows_of_several_inputs_have_the_vectors_of_each_alone(
    folder: Path, images: list[Path], settings: Settings, sqlite_database: Database
) -> None:
    """As lines for `/v1/embeddings` have them: texts, token ids, and lists of both forms."""
    texts = ["a fox", "a cat", "the dog"]
    parameters = {**TASK_PARAMETERS["embeddings"]}
    rows = [Row(index, None, {"text": text}) for index, text in enumerate(texts)]
    alone = outputs(load("embeddings", folder), rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    values: list[Any] = [texts[0], texts, [texts[1]], ids[2], [ids[0], ids[2]], [], [-1], [10**30], [[1] * 99], 5]
    many = [*(Row(place, None, {"text": value}) for place, value in enumerate(values))]
    many.append(Row(len(values), None, {"image": str(images[0])}))
    computed = compute(load("embeddings", folder, parameters), many)
    places = [[0], [0, 1, 2], [1], [2], [0, 2]]
    for output, expected in zip(computed.outputs, places, strict=False):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, [alone[place] for place in expected], atol=1e-5)
    codes = ["empty_input", "unknown_token", "unknown_token", "row_too_long", "wrong_type"]
    assert error_codes(computed.outputs[len(places) : -1]) == codes
    assert computed.outputs[-1].shape == (1, len(alone[0]))
    submit(folder, {"text": "a"}, settings, sqlite_database, parameters=parameters)
    assert computed.is_shared


def test_rows_that_share_a_batch_are_of_one_kind_and_shape(clip: Path, images: list[Path]) -> None:
    batches = compute(load("embeddings", clip), rows_of(images)).batches
    for batch in batches:
        assert len({frozenset(one.row.values) for one in batch}) == 1
        assert len({one.num_tokens for one in batch}) == 1
    image_rows = [one for batch in batches for one in batch if "image" in one.row.values]
    assert all(one.num_bytes == 3 * 32 * 32 * 4 for one in image_rows)


def test_each_thread_encodes_with_a_tokenizer_of_its_own(clip: Path, images: list[Path]) -> None:
    model = load("embeddings", clip)
    assert isinstance(model, EncodesRowByRow)
    assert isinstance(model, JointEmbeddings)
    other = model.for_thread(1)
    assert other._encoder.tokenizer is not model._encoder.tokenizer
    assert model.for_thread(1)._encoder is other._encoder
    np.testing.assert_array_equal(outputs(other, rows_of(images)), outputs(model, rows_of(images)))


def test_vectors_are_cut_and_then_normalized(folder: Path, images: list[Path]) -> None:
    rows = rows_of(images)
    plain = np.stack(outputs(load("embeddings", folder), rows))
    cut = np.stack(outputs(load("embeddings", folder, {"dimensions": 5, "normalize": True}), rows))
    expected = plain[:, :5] / np.linalg.norm(plain[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)
    with pytest.raises(InvalidSpec, match="dimensions: the model's vectors have only") as caught:
        load("embeddings", folder, {"dimensions": 33})
    assert caught.value.param == "parameters.dimensions"


def test_a_bad_row_fails_alone(clip: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    values: list[dict[str, Any]] = [
        {"text": "a", "image": str(images[0])}, {}, {"image": str(tmp_path / "text.png")}, {"image": "/none.png"},
        {"image": "https://example.com/a.png"}, {"text": ["a"]}, {"text": "\ud800"}, {"text": "good"},
        {"image": str(images[0])},
    ]  # fmt: skip
    computed = compute(load("embeddings", clip), [Row(index, None, value) for index, value in enumerate(values)])
    assert error_codes(computed.outputs) == [
        "invalid_value", "null_value", "invalid_image", "missing_file", "url_not_allowed", "wrong_type",
        "invalid_text", None, None,
    ]  # fmt: skip
    assert computed.outputs[0].message == "the row has a text and an image; it must have only one of them"
    assert computed.outputs[1].message == "the row has neither a text nor an image"
    whole = load("embeddings", clip, {"truncate": False})
    assert error_codes(outputs(whole, [Row(0, None, {"text": LONG_TEXT})])) == ["row_too_long"]


@pytest.mark.parametrize("parameters", [{"pooling": "cls"}, {"max_length": 9}, {"prompt": "q"}, {"prompt_name": "q"}])
def test_parameters_of_texts_only_are_refused(
    clip: Path, parameters: dict[str, Any], settings: Settings, sqlite_database: Database
) -> None:
    [name] = parameters
    with pytest.raises(InvalidSpec, match="with a model of texts and images") as caught:
        load("embeddings", clip, parameters)
    assert caught.value.param == f"parameters.{name}"
    with pytest.raises(InvalidSpec, match="with a model of texts and images"):
        submit(clip, {"text": "a"}, settings, sqlite_database, parameters=parameters)


def submit(model: Path, record: dict[str, str], settings: Settings, database: Database, **fields: Any) -> InferenceSpec:
    """Check a job about a CSV file with one row, as at its submission."""
    rows = Path(settings.data_dir).parent / "rows.csv"
    rows.write_text(",".join(record) + "\n" + ",".join(record.values()) + "\n")
    columns = fields.pop("columns", {})
    spec = parse_spec(
        {"task": "embeddings", "model": str(model), "input": {"path": str(rows), "columns": columns}, **fields}
    )
    assert isinstance(spec, InferenceSpec)
    rules = settings.model_copy(update={"input_roots": [Path("/")]})
    check_submission(spec, rules=rules, store=Store(settings.resolved_store_url), database=database)
    return spec


def test_images_are_read_only_from_a_column_that_the_job_names(
    clip: Path, texts_only: Path, settings: Settings, sqlite_database: Database
) -> None:
    both = {"text": "a", "image": "a.png"}
    spec = submit(texts_only, both, settings, sqlite_database)
    assert (spec.columns(), spec.optional_inputs) == ({"text": "text"}, set())
    spec = submit(clip, both, settings, sqlite_database, columns={"image": "image"})
    assert (spec.columns(), spec.optional_inputs) == ({"text": "text", "image": "image"}, {"text", "image"})
    spec = submit(clip, {"file": "a.png"}, settings, sqlite_database, columns={"image": "file"})
    assert spec.columns() == {"text": "text", "image": "file"}
    spec = submit(clip, both, settings, sqlite_database, columns={"image": "image", "text": None})
    assert spec.columns() == {"image": "image"}


@pytest.mark.parametrize(
    ("columns", "record", "refusal", "words"),
    [
        ({"image": "file"}, {"text": "a"}, InvalidInput, "input.columns.image: the input has no column 'file'"),
        ({}, {"image": "a.png"}, InvalidInput, "input.columns.text: .* has no column 'text'"),
        ({"text": None}, {"image": "a.png"}, InvalidSpec, "input.columns.text: must name a column"),
        ({"text": None, "image": None}, {"text": "a"}, InvalidSpec, "input.columns.text: must name a column"),
    ],
)
def test_a_job_without_a_column_to_read_is_refused(
    clip: Path, columns: Any, record: Any, refusal: type[UserError], words: str, settings: Settings,
    sqlite_database: Database,
) -> None:  # fmt: skip
    with pytest.raises(refusal, match=words):
        submit(clip, record, settings, sqlite_database, columns=columns)


def test_images_for_a_model_of_texts_are_refused(
    texts_only: Path, settings: Settings, sqlite_database: Database
) -> None:
    with pytest.raises(InvalidSpec, match="the model takes only texts") as caught:
        submit(texts_only, {"image": "a.png"}, settings, sqlite_database, columns={"image": "image"})
    assert caught.value.param == "input.columns.image"
    document = {"task": "embeddings", "model": "org/name", "input": {"path": "x", "columns": {"image": "image"}}}
    with pytest.raises(InvalidSpec, match="the model takes only texts"):  # for a hub id, the runner says so
        check_inputs(load("embeddings", texts_only), InferenceSpec.model_validate(document))


def test_images_without_their_processor_are_refused(
    tmp_path: Path, images: list[Path], settings: Settings, sqlite_database: Database
) -> None:
    model = tiny_clip(tmp_path / "clip")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidModel, match=r"has no preprocessor_config\.json"):
        submit(model, {"image": "a.png"}, settings, sqlite_database, columns={"image": "image"})
    found = load("embeddings", model)
    assert outputs(found, [Row(0, None, {"text": "a"})])[0].shape == (16,)
    with pytest.raises(InvalidModel, match=r"has no preprocessor_config\.json"):
        found.encode([Row(0, None, {"image": str(images[0])})])


def test_the_list_has_all_models_of_both_kinds_in_transformers() -> None:
    folders = (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
    both = ("def get_text_features", "def get_image_features")
    found = {path.parent.name for path in folders if all(word in path.read_text("utf-8") for word in both)}
    # BLIP-2's text features are the outputs of a language model.
    assert found - {"blip_2"} == {name.replace("-", "_") for name in JOINT_TYPES}
    mapping = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES
    for name in JOINT_TYPES:
        model_class = getattr(transformers, mapping[name])
        assert all(hasattr(model_class, word.removeprefix("def ")) for word in both), name
