"""The catalogue: a client's name for a model leads to one model, and a wrong one to a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.config.catalogue import CatalogueModel, resolve, with_catalogue
from jobs.config.settings import Settings
from jobs.errors import InvalidModel, UnknownModel
from jobs.specs.inference import parse_spec


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With a catalogue in `stoker.toml`, in both forms."""
    config = tmp_path / "stoker.toml"
    config.write_text(
        '[models]\n"org/short:1" = "/models/short"\n'
        '[models.minilm]\nmodel = "/models/minilm"\ntask = "embedding"\ndtype = "float16"\n'
        "parameters = {normalize = true, max_length = 64}\n"
    )
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    return Settings()


def test_a_name_leads_to_its_model(settings: Settings) -> None:
    """A client must not know where the operator keeps models."""
    assert resolve("org/short:1", settings.models, task="fill-mask").model == "/models/short"
    entry = resolve("minilm", settings.models, task="embeddings")
    assert (entry.model, entry.task, entry.dtype) == ("/models/minilm", "embeddings", "float16")


def test_other_names_are_refused_with_a_hint(settings: Settings) -> None:
    """A misspelt name must not become a download."""
    with pytest.raises(UnknownModel, match="did you mean 'minilm'"):
        resolve("minilmm", settings.models, task="embeddings")
    with pytest.raises(UnknownModel):
        resolve("/models/minilm", settings.models, task="embeddings")
    with pytest.raises(InvalidModel, match="is for embeddings, not for fill-mask"):
        resolve("minilm", settings.models, task="fill-mask")


def test_any_model_takes_folders_and_hub_ids(settings: Settings) -> None:
    """The embedded stack needs no catalogue."""
    free = settings.model_copy(update={"any_model": True})
    assert resolve("/models/other", free.models, task="embeddings", any_model=True).model == "/models/other"
    assert resolve("org/name@main", free.models, task="embeddings", any_model=True).model == "org/name@main"
    with pytest.raises(UnknownModel):
        resolve("gpt-4o-mini", free.models, task="embeddings", any_model=True)


def test_a_spec_may_name_a_model_of_the_catalogue(settings: Settings) -> None:
    """A name has the same settings everywhere; fields of the spec take precedence."""
    document = {"task": "embeddings", "model": "minilm", "input": {"path": "x"}, "parameters": {"max_length": 8}}
    spec = with_catalogue(parse_spec(document), settings.models)
    assert (spec.model, spec.dtype) == ("/models/minilm", "float16")
    assert spec.parameters == {"normalize": True, "max_length": 8}
    plain = parse_spec({**document, "model": "/models/minilm"})
    assert with_catalogue(plain, settings.models) == plain


def test_an_engine_goes_with_a_model_of_the_catalogue(settings: Settings) -> None:
    entry = CatalogueModel(model="/models/llama", engine="vllm")
    served = settings.model_copy(update={"models": {"llama": entry}})
    document = {"task": "text-generation", "model": "llama", "input": {"path": "x"}}
    assert with_catalogue(parse_spec(document), served.models).engine == "vllm"
    assert with_catalogue(parse_spec({**document, "engine": "transformers"}), served.models).engine == "transformers"
    assert with_catalogue(parse_spec({**document, "task": "embeddings"}), served.models).engine == "auto"


@pytest.mark.parametrize(
    "text",
    [
        '[models."a b"]\nmodel = "x"\n',
        "[models.a]\n",
        '[models.a]\nmodel = "x"\ntask = "x"\n',
        "[models.a]\nmodle = 1\n",
        '[models.a]\nmodel = "x"\ntask = "embeddings"\nparameters = {max_len = 1}\n',
    ],
)
def test_a_wrong_catalogue_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """An operator's slip shows when the daemon starts, not at a client's."""
    config = tmp_path / "stoker.toml"
    config.write_text(text)
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    with pytest.raises(ValidationError, match="models"):
        Settings()
