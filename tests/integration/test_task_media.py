"""Images, sounds and films come from files, data URLs, base64, bytes and arrays; anything else is a row error."""

from __future__ import annotations

import base64
import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from PIL import Image
from transformers import pipeline

from jobs.config.settings import Settings
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.data.sources.media import media_value
from jobs.errors import InvalidModel, InvalidSpec
from tests.support.task_kit import error_codes, load, outputs, same
from tests.support.tiny import tiny_ctc, tiny_image_classifier
from tests.support.tiny_media import tiny_film_classifier, tiny_sound_classifier, write_film, write_wav
from tests.support.tiny_vision import tiny_llava
from worker.inference.generation.images.image_chats import open_chat
from worker.inference.pipelines import open_pipeline
from worker.models.media.fast_images import find_fast_images
from worker.models.media.open_media import open_media


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Files of three images of different sizes and kinds."""
    random = np.random.default_rng(0)
    paths = []
    for index, (shape, kind) in enumerate((((40, 30, 3), "png"), ((64, 80), "png"), ((33, 32, 4), "webp"))):
        path = tmp_path / f"image-{index}.{kind}"
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def _rows(name: str, values: list[Any]) -> list[Row]:
    return [Row(index, None, {name: value}) for index, value in enumerate(values)]


def _everywhere(**settings: Any) -> Settings:
    return Settings(input_roots=["/"], **settings)


def test_images_from_files_equal_the_pipelines(classifier: Path, tmp_path: Path, images: list[Path]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:100])
    values = [*map(str, images), str(broken), str(tmp_path / "absent.png"), "https://example.com/a.png", ["a"], 7]
    reference = pipeline("image-classification", model=str(classifier), device="cpu", dtype=torch.float32)
    results = outputs(load("image-classification", classifier, {"top_k": 2}), _rows("image", values))
    assert all(map(same, results[:3], [reference(str(path), top_k=2) for path in images]))
    assert error_codes(results[3:]) == [
        "invalid_image", "missing_file", "url_not_allowed", "wrong_type", "wrong_type",
    ]  # fmt: skip
    assert orjson.loads(orjson.dumps(results[:3])) == results[:3]


def test_the_backend_that_prepares_images_is_named(classifier: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pixels differ by 1/255 between backends, and transformers would choose one by the installed packages."""
    with caplog.at_level("INFO", logger="worker"):
        load("image-classification", classifier, {})
    assert "images are prepared by ViTImageProcessorPil" in caplog.messages


def test_an_image_is_the_same_in_every_form(classifier: Path, images: list[Path]) -> None:
    data = images[0].read_bytes()
    text = base64.b64encode(data).decode()
    small = io.BytesIO()
    Image.open(images[0]).resize((4, 4)).save(small, "PNG")
    values = [str(images[0]), f"file://{images[0]}", f"data:image/png;base64,{text}", text, data, Image.open(images[0])]
    values += [media_value("image", {"bytes": text}), media_value("image", {"bytes": data, "path": None})]
    results = outputs(load("image-classification", classifier), _rows("image", values))
    assert all(same(result, results[0]) for result in results)
    short = base64.b64encode(small.getvalue()).decode()
    assert open_media("image", short, _everywhere()).size == (4, 4)


@pytest.mark.parametrize("form", ["usual", "url-safe", "unpadded", "in lines"])
def test_base64_is_taken_in_every_alphabet_and_layout(form: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (31, 32, 3), dtype=np.uint8)).save(stream, "PNG")
    data = stream.getvalue() + b"\0" * (1 - len(stream.getvalue()) % 3)  # bytes after the end of an image are not read
    text = {
        "usual": base64.b64encode(data),
        "url-safe": base64.urlsafe_b64encode(data),
        "unpadded": base64.urlsafe_b64encode(data).rstrip(b"="),
        "in lines": base64.encodebytes(data),
    }[form].decode()
    assert "-" in text or "+" in text
    expected = open_media("image", data, _everywhere())
    for value in (text, f"data:image/png;base64,{text}", media_value("image", {"bytes": text})):
        assert open_media("image", value, _everywhere()) == expected


def test_text_that_is_neither_a_file_nor_media_is_one_sentence(tmp_path: Path) -> None:
    for value in ("xx-_" * 100, "data:image/png;base64,i*VBOR"):
        found = open_media("image", value, _everywhere())
        assert isinstance(found, RowError)
        assert (
            "is neither an existing file nor base64 of a known kind" if value.startswith("xx") else "is not valid"
        ) in found.message
    folder = tmp_path / "-".join("a" * 60) / "_".join("b" * 60)
    folder.mkdir(parents=True)
    Image.new("RGB", (3, 4)).save(folder / "image", "PNG")
    assert len(str(folder)) > 200
    assert open_media("image", str(folder / "image"), _everywhere()).size == (3, 4), "a long path of such letters"


def test_files_outside_the_roots_are_not_opened(classifier: Path, tmp_path: Path, images: list[Path]) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "link.png").symlink_to(images[0])
    settings = Settings(input_roots=[tmp_path / "roots", classifier])
    values = [str(images[0]), str(tmp_path / "roots" / "link.png"), f"file://{images[0]}"]
    results = outputs(load("image-classification", classifier, settings=settings), _rows("image", values))
    assert error_codes(results) == ["forbidden_path"] * 3


def test_messages_hold_neither_data_nor_addresses() -> None:
    data = base64.b64encode(bytes(range(256)) * 5000).decode()
    for value in (
        data,
        f"data:image/png;base64,{data}",
        b"no image",
        "x" * 100_000,
        "/" * 100_000,
        "a\0b",
        {"bytes": 1},
    ):
        found = open_media("image", value, _everywhere())
        assert isinstance(found, RowError)
        assert len(found.message) < 300
        assert "0x" not in found.message
        assert "Errno" not in found.message


def test_sounds_from_files_data_and_arrays(tmp_path: Path) -> None:
    model = tiny_ctc(tmp_path / "model")
    samples = (np.random.default_rng(0).integers(-3000, 3000, 4000) / 2**15).astype(np.float32)
    path = write_wav(tmp_path / "sound.wav", samples, 16_000)
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    values = [str(path), data, f"data:audio/wav;base64,{text}", text, samples.tolist()]
    values += [{"array": samples.tolist(), "sampling_rate": 16_000}, {"raw": samples, "sampling_rate": 16_000.0}]
    broken = ["https://example.com/a.wav", b"RIFF", str(tmp_path / "no.wav"), {"array": ["a"], "sampling_rate": 1}, []]
    broken += [[0.1, None], [float("nan")] * 4000, {"array": [0.1], "sampling_rate": 0}]
    broken += [{"array": [0.1], "sampling_rate": rate} for rate in (16_000.5, float("inf"), True)]
    not_finite = write_wav(tmp_path / "nan.wav", samples, 16_000).read_bytes()
    broken.append(not_finite[:20] + b"\x03\0" + not_finite[22:34] + b"\x20\0" + not_finite[36:44] + b"\xff" * 8000)
    reference = pipeline("automatic-speech-recognition", model=str(model), device="cpu", dtype=torch.float32)
    results = outputs(load("automatic-speech-recognition", model), _rows("audio", [*values, *broken]))
    assert all(same(result, reference(samples)) for result in results[: len(values)])
    assert error_codes(results[len(values) :]) == [
        "url_not_allowed", "invalid_audio", "missing_file", "wrong_type", "wrong_type",
        "invalid_audio", "invalid_audio", "wrong_type", "wrong_type", "wrong_type", "wrong_type", "invalid_audio",
    ]  # fmt: skip


def test_sounds_of_other_rates_are_resampled(tmp_path: Path) -> None:
    model = tiny_sound_classifier(tmp_path / "model")
    time = np.arange(8000) / 8000
    values = [{"array": np.sin(2 * np.pi * 440 * time).tolist(), "sampling_rate": 8000}]
    values.append({"array": np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).tolist(), "sampling_rate": 16_000})
    one, other = outputs(load("audio-classification", model), _rows("audio", values))
    assert same(one, other, tolerance=0.05)


def test_the_images_of_a_chat_are_opened_as_those_of_rows(tmp_path: Path, images: list[Path]) -> None:
    image = Image.new("RGB", (30, 40))
    data = base64.b64encode(images[0].read_bytes()).decode()

    def opened(*parts: Any, **settings: Any) -> Any:
        return open_chat(
            [{"role": "user", "content": list(parts)}], image, Settings(**settings or {"input_roots": ["/"]})
        )

    for part in (
        {"type": "image", "path": str(images[0])},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    ):
        assert opened(part)[0]["content"][0]["image"].size == image.size
    assert opened({"type": "image"}, {"type": "text", "text": "x"})[0]["content"][0]["image"] is image
    for part, code in (
        ({"type": "image", "url": "https://example.com/a.png"}, "url_not_allowed"),
        ({"type": "text", "text": "no image"}, "invalid_messages"),
        ({"type": "video", "url": "a.mp4"}, "invalid_messages"),
        ("a text", "invalid_messages"),
    ):
        assert opened(part).code == code
    assert opened({"type": "image", "path": str(images[0])}, input_roots=[tmp_path / "none"]).code == "forbidden_path"


@pytest.mark.parametrize("bytes_to_device", [False, True])
def test_films_from_files_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bytes_to_device: bool) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    monkeypatch.setattr(open_pipeline, "find_fast_images", partial(find_fast_images, bytes_to_device=bytes_to_device))
    model = tiny_film_classifier(tmp_path / "model")
    films = [write_film(tmp_path / f"{seed}.mp4", seed) for seed in (0, 1, 2)]
    data = films[0].read_bytes()
    text = base64.b64encode(data).decode()
    reference = pipeline("video-classification", model=str(model), device="cpu", dtype=torch.float32)
    values = [*map(str, films), data, text, f"data:video/mp4;base64,{text}"]
    for parameters in ({}, {"num_frames": 4, "frame_sampling_rate": 2, "top_k": 1}):
        results = outputs(load("video-classification", model, parameters), _rows("video", values))
        expected = [reference(str(film), **parameters) for film in (*films, *films[:1] * 3)]
        assert all(map(same, results, expected))
    encoded = load("video-classification", model).encode(_rows("video", values[:1]))[0].features.items[0]
    assert (encoded["pixel_values"].dtype == torch.uint8) is bytes_to_device


def test_a_number_of_frames_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    model = tiny_film_classifier(tmp_path / "model")
    with pytest.raises(InvalidSpec, match=r"^parameters\.num_frames: must be 4, since the model") as caught:
        load("video-classification", model, {"num_frames": 3})
    assert caught.value.param == "parameters.num_frames"
    film = write_film(tmp_path / "film.mp4", 0)
    task_model = load("video-classification", model, {"frame_sampling_rate": 4})
    [found] = outputs(task_model, _rows("video", [str(film)]))
    assert found == RowError(
        RowErrorCode.INVALID_VIDEO, "input 'video' is too short: it has only 2 of the 4 frames that the model needs"
    )


def test_a_damaged_description_of_images_is_named(classifier: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(classifier, tmp_path / "model"))
    settings = {**json.loads((model / "preprocessor_config.json").read_text()), "size": "large"}
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidModel, match=r"its preprocessor_config\.json cannot be used: "):
        load("image-classification", model)


def test_an_image_without_its_place_in_the_text_is_refused(tmp_path: Path, images: list[Path]) -> None:
    model = tiny_llava(tmp_path / "model")
    texts = ["What is it?", "<image> What is it?", "<image><image> What is it?"]
    rows = [Row(index, None, {"image": str(images[0]), "text": text}) for index, text in enumerate(texts)]
    none, once, twice = outputs(load("image-text-to-text", model, {"max_new_tokens": 2}), rows)
    sentence = (
        "input 'text' must have '<image>' once, where the image belongs, but has it {} times; "
        "or give a list of chat messages"
    )
    assert (none.code, none.message, twice.message) == ("invalid_value", sentence.format(0), sentence.format(2))
    assert once[0]["generated_text"].startswith("<image> What is it?") or "What" in once[0]["generated_text"]


def test_odd_films_are_row_errors(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    model = tiny_film_classifier(tmp_path / "model")
    film = write_film(tmp_path / "film.mp4", 0).read_bytes()
    sound = write_wav(tmp_path / "sound.wav", np.zeros(1600, np.float32), 16_000)
    (tmp_path / "other.mp4").write_bytes(film)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/other.mp4\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile {tmp_path}/other.mp4\n"
    values = [
        str(tmp_path / "no.mp4"), b"no film", b"", str(sound), film[: len(film) // 2], playlist.encode(),
        concat.encode(), 7, "https://example.com/a.mp4", film,
    ]  # fmt: skip
    results = outputs(load("video-classification", model), _rows("video", values))
    assert error_codes(results) == [
        "missing_file", *["invalid_video"] * 6, "wrong_type", "url_not_allowed", None,
    ]  # fmt: skip
    assert results[3].message == "input 'video' cannot be read as a video: it contains no pictures"
    small = Settings(input_roots=["/"], max_image_pixels=64 * 48 - 1)
    [found] = outputs(load("video-classification", model, settings=small), _rows("video", [film]))
    assert (found.code, "max_image_pixels" in found.message) == ("row_too_large", True)
