"""Embeddings are, row by row, the vectors of sentence-transformers' `encode`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel, T5Config, T5ForConditionalGeneration

from jobs.errors import InvalidModel, InvalidSpec
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from tests.support.task_kit import LONG_TEXT, TEXTS, error_codes, load, outputs, text_rows
from tests.support.tiny import (
    byte_level_tokenizer,
    minilm_path,
    tiny_causal_lm,
    tiny_encoder,
    tiny_masked_lm,
    wordpiece_tokenizer,
)

TASK = "embeddings"
ALL_TEXTS = (*TEXTS, LONG_TEXT)
MODES = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")


def _encode(model: Any, texts: Sequence[str] = ALL_TEXTS, **options: Any) -> np.ndarray:
    reference = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model), device="cpu")
    return reference.encode(list(texts), batch_size=4, show_progress_bar=False, **options)


def _vectors(
    model: Path | str, parameters: dict[str, Any] | None = None, texts: Sequence[str] = ALL_TEXTS
) -> np.ndarray:
    results = outputs(load(TASK, model, parameters), text_rows(texts))
    assert all(isinstance(one, np.ndarray) and one.dtype == np.float32 and one.ndim == 1 for one in results)
    assert all(one.base is None for one in results), "a row's vector must not keep its whole batch in memory"
    return np.stack(results)


def _equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder of 32 dimensions."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def _save(folder: Path, encoder: Path, *modules: torch.nn.Module, **options: Any) -> Path:
    SentenceTransformer(modules=[Transformer(str(encoder)), *modules], device="cpu", **options).save(str(folder))
    return folder


def test_minilm() -> None:
    """The model that most people embed with would give other vectors than they have stored already."""
    _equal(_vectors(minilm_path()), _encode(minilm_path()))
    vectors = _vectors(
        minilm_path(), texts=["a cat sat on the mat", "there was a kitten on the rug", "interest rates rose"]
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_minilm_options() -> None:
    """The parameters would mean something else than they do in sentence-transformers."""
    _equal(_vectors(minilm_path(), {"prompt": "query: "}), _encode(minilm_path(), prompt="query: "))
    short = SentenceTransformer(minilm_path(), device="cpu")
    short.max_seq_length = 16
    _equal(_vectors(minilm_path(), {"max_length": 16}), _encode(short))
    expected = _encode(minilm_path(), truncate_dim=100, normalize_embeddings=True)
    _equal(_vectors(minilm_path(), {"dimensions": 100}), expected)
    np.testing.assert_allclose(np.linalg.norm(_vectors(minilm_path(), {"dimensions": 100}), axis=1), 1, atol=1e-5)


def test_a_plain_encoder_is_pooled_over_the_mean(encoder: Path) -> None:
    """A model that is no sentence-transformers folder could not be used, or would be pooled in another way."""
    _equal(_vectors(encoder), _encode(encoder))
    _equal(_vectors(encoder, {"normalize": True}), _encode(encoder, normalize_embeddings=True))
    _equal(_vectors(encoder, {"dimensions": 8}), _encode(encoder, truncate_dim=8))


@pytest.mark.parametrize(
    ("name", "mode"), [("mean", "mean"), ("cls", "cls"), ("last_token", "lasttoken"), ("max", "max")]
)
def test_the_parameter_pooling(encoder: Path, tmp_path: Path, name: str, mode: str) -> None:
    """Otherwise the vectors would have another pooling than requested."""
    folder = _save(tmp_path, encoder, Pooling(32, mode))
    _equal(_vectors(encoder, {"pooling": name}), _encode(folder))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", [*MODES, ("mean", "cls"), ("max", "weightedmean", "lasttoken")], ids=str)
def test_a_folders_own_pooling(encoder: Path, tmp_path: Path, mode: Any, include_prompt: bool) -> None:
    """A model with another pooling than the mean would give useless vectors."""
    folder = _save(tmp_path, encoder, Pooling(32, mode, include_prompt=include_prompt))
    _equal(_vectors(folder), _encode(folder))
    _equal(_vectors(folder, {"prompt": "My name is: "}), _encode(folder, prompt="My name is: "))


def test_a_folders_own_head(encoder: Path, tmp_path: Path) -> None:
    """What follows pooling would be left out, or its weights read in another order."""
    torch.manual_seed(1)
    folder = _save(
        tmp_path / "saved",
        encoder,
        Pooling(32, ("mean", "max")),
        Dense(64, 24, activation_function=torch.nn.GELU()),
        LayerNorm(24),
        Dropout(0.5),
        Dense(24, 24, bias=False, activation_function=None, use_residual=True),
        Dense(24, 16, use_residual=True),
        Normalize(),
    )
    _equal(_vectors(folder), _encode(folder))
    _equal(_vectors(folder, {"dimensions": 5}), _encode(folder, truncate_dim=5, normalize_embeddings=True))
    unscaled = _vectors(folder, {"normalize": False})
    assert not np.allclose(np.linalg.norm(unscaled, axis=1), 1)
    _equal(unscaled / np.linalg.norm(unscaled, axis=1, keepdims=True), _encode(folder))
    with pytest.raises(InvalidSpec, match=r"parameters\.pooling"):
        load(TASK, folder, {"pooling": "cls"})


def test_a_folders_own_prompts(encoder: Path, tmp_path: Path) -> None:
    """Otherwise a model trained with prompts would be used without them."""
    prompts = {"query": "quick query: ", "passage": ""}
    folder = _save(
        tmp_path, encoder, Pooling(32, "mean", include_prompt=False), prompts=prompts, default_prompt_name="query"
    )
    _equal(_vectors(folder), _encode(folder))
    _equal(_vectors(folder, {"prompt_name": "passage"}), _encode(folder, prompt_name="passage"))
    _equal(_vectors(folder, {"prompt": "what "}), _encode(folder, prompt="what "))
    assert not np.allclose(_vectors(folder), _vectors(folder, {"prompt_name": "passage"}))
    with pytest.raises(InvalidSpec, match="passage, query") as caught:
        load(TASK, folder, {"prompt_name": "title"})
    assert caught.value.param == "parameters.prompt_name"


def test_a_folders_own_dimensions(encoder: Path, tmp_path: Path) -> None:
    """A model saved with fewer dimensions would give all of them."""
    folder = _save(tmp_path, encoder, Pooling(32, "mean"), Normalize(), truncate_dim=8)
    _equal(_vectors(folder), _encode(folder))


def test_an_older_folder(tmp_path: Path) -> None:
    """Models saved by sentence-transformers 1 to 5, which most on the hub are, would not load."""
    source = tiny_encoder(tmp_path / "encoder")
    folder = tmp_path / "old"
    shutil.copytree(source, folder / "0_BERT")
    (folder / "1_Pooling").mkdir()
    (folder / "0_BERT" / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    kinds = (("0", "0_BERT", "Transformer"), ("1", "1_Pooling", "Pooling"))
    modules = [
        {"idx": index, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (name, path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    _equal(_vectors(folder), _encode(folder))


def test_lower_casing_a_cased_tokenizer(tmp_path: Path) -> None:
    """`do_lower_case` of a folder would be overlooked."""
    folder = tmp_path / "cased"
    encoder = tiny_encoder(tmp_path / "encoder", tokenizer=byte_level_tokenizer(128))
    SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(32, "mean")], device="cpu").save(str(folder))
    config = folder / "sentence_bert_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_lower_case": True}))
    vectors = _vectors(folder, texts=["an ANT", "An Ant"])
    _equal(vectors, _encode(folder, ["an ANT", "An Ant"]))
    _equal(vectors[0], vectors[1])


def test_positions_of_the_roberta_family(tmp_path: Path) -> None:
    """A text as long as the table of positions says would end in an index error: RoBERTa's first two are not usable."""
    tokenizer = wordpiece_tokenizer(10**30)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    reference.max_seq_length = 65
    _equal(_vectors(tmp_path), _encode(reference))
    assert error_codes(outputs(load(TASK, tmp_path, {"truncate": False}), text_rows([LONG_TEXT]))) == ["row_too_long"]
    with pytest.raises(InvalidSpec, match="at most 65 tokens"):
        load(TASK, tmp_path, {"max_length": 66})


def test_a_causal_language_model_is_pooled_over_its_last_token(tmp_path: Path) -> None:
    """Padding would be taken for the last token, or looked at by the others."""
    folder = tiny_causal_lm(tmp_path)
    _equal(_vectors(folder), _encode(folder))


TEMPLATES = {
    "flat": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}",
    "structured": (
        "{% for m in messages %}[{{ m.role }}] {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %} [end]{% endfor %}"
    ),
}


@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("is_bare", [False, True], ids=["LlamaForCausalLM", "LlamaModel"])
def test_texts_of_a_plain_chat_model_are_rendered_as_messages(tmp_path: Path, form: str, is_bare: bool) -> None:
    folder = tiny_causal_lm(tmp_path / "causal", chat_template=TEMPLATES[form])
    if is_bare:
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "bare")
        folder = tmp_path / "bare"
    expected = _encode(folder)
    _equal(_vectors(folder), expected)
    last = _vectors(folder, {"pooling": "last_token"})
    assert np.allclose(last, expected, atol=1e-5) != is_bare, "without a head its last token is not what is pooled"
    _equal(_vectors(folder, {"prompt": "be brief"}), _encode(folder, prompt="be brief"))
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    _equal(_vectors(tmp_path / "saved"), expected)


def test_a_text_that_a_chat_template_refuses_fails_alone(tmp_path: Path) -> None:
    template = "{% if 'x' in messages[0].content %}{{ raise_exception('no x') }}{% endif %}{{ messages[0].content }}"
    task_model = load(TASK, tiny_causal_lm(tmp_path, chat_template=template), {"inputs": "any"})
    assert error_codes(outputs(task_model, text_rows(["good", "x", ["good", "x"], [5, 6]]))) == [
        None, "invalid_messages", "invalid_messages", None,
    ]  # fmt: skip


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    """Sentence-T5 and its kin could not be used."""
    tokenizer = wordpiece_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _equal(_vectors(tmp_path), _encode(tmp_path))


def test_the_encoder_inside_a_model_with_a_head(tmp_path: Path) -> None:
    """A masked language model, from which most encoders are made, could not be used."""
    folder = tiny_masked_lm(tmp_path)
    _equal(_vectors(folder), _encode(folder))


def test_long_rows_are_cut_unless_that_is_refused(encoder: Path) -> None:
    """sentence-transformers cuts; who must not lose the end of a text could not say so."""
    task_model = load(TASK, encoder)
    assert [one.num_tokens for one in task_model.encode(text_rows([LONG_TEXT]))] == [128]
    results = outputs(
        task_model.with_parameters(EmbeddingsParameters.read({"truncate": False})), text_rows(["short", LONG_TEXT])
    )
    assert error_codes(results) == [None, "row_too_long"]


def test_a_text_without_tokens_fails_alone(tmp_path: Path) -> None:
    """An empty text of a model without special tokens would end its whole batch, or give NaN."""
    folder = tiny_causal_lm(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    results = outputs(load(TASK, folder), text_rows(["good", "", "good"]))
    assert error_codes(results) == [None, "empty_row", None]


def test_a_tokenizer_of_another_model_fails_by_the_row(tmp_path: Path) -> None:
    """A token that the model has no vector for would take the GPU's whole process down."""
    folder = tiny_encoder(tmp_path)
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens(["snark"])
    tokenizer.save_pretrained(folder)
    results = outputs(load(TASK, folder), text_rows(["the fox", "the snark"]))
    assert error_codes(results) == [None, "unknown_token"]


def test_a_row_that_comes_to_nothing_fails_alone(encoder: Path) -> None:
    """A vector of NaN would spoil every search over the results."""
    task_model = load(TASK, encoder)
    batch = task_model.encode(text_rows(["a", "b"]))
    vectors = task_model.forward(task_model.collate(batch)).clone()
    vectors[0, 3] = torch.inf
    assert error_codes(task_model.decode(batch, vectors)) == ["not_a_number", None]


def test_a_slow_tokenizer(tmp_path: Path) -> None:
    """Models whose tokenizer is written in Python could not be used."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    folder = tiny_encoder(tmp_path)
    vocabulary = sorted(wordpiece_tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary), encoding="utf-8")
    fast = load(TASK, folder)
    expected = np.stack(outputs(fast, text_rows(TEXTS)))
    fast.tokens.tokenizer = BertTokenizerLegacy(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=128)
    _equal(np.stack(outputs(fast, text_rows(TEXTS))), expected)


def test_bfloat16_keeps_the_direction(encoder: Path) -> None:
    """The fast dtype would find other neighbours."""
    exact = np.stack(outputs(load(TASK, encoder, {"normalize": True}), text_rows(TEXTS)))
    fast = np.stack(outputs(load(TASK, encoder, {"normalize": True}, dtype=torch.bfloat16), text_rows(TEXTS)))
    assert (exact * fast).sum(axis=1).min() > 0.99


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"dimensions": 33}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"max_length": 129}, "max_length"),
        ({"max_length": 2}, "max_length"),
        ({"pooling": "median"}, "pooling"),
        ({"prompt_name": "query"}, "prompt_name"),
        ({"normalise": True}, "normalise"),
        ({"normalize": "yes"}, "normalize"),
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(encoder: Path, parameters: dict[str, Any], param: str) -> None:
    """A misspelt parameter would be ignored, and thousands of vectors would have to be made again."""
    with pytest.raises(InvalidSpec) as caught:
        load(TASK, encoder).with_parameters(EmbeddingsParameters.read(parameters))
    assert caught.value.param == f"parameters.{param}"


def test_folders_that_cannot_be_honoured_are_refused(encoder: Path, tmp_path: Path) -> None:
    """A module that is left out would change every vector without a word."""
    folder = _save(tmp_path / "dense", encoder, Pooling(32, "mean"), Dense(32, 8))
    weights = folder / "2_Dense" / "model.safetensors"
    weights.rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(InvalidModel, match="pickle"):
        load(TASK, folder)
    (folder / "2_Dense" / "pytorch_model.bin").rename(weights)
    config = folder / "2_Dense" / "config.json"
    original = json.loads(config.read_text())
    for wrong, reason in (
        ({"activation_function": "os.system"}, "activation"),
        ({"out_features": 9}, "do not fit"),
        ({"out_features": "many"}, "damaged"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ):
        config.write_text(json.dumps({**original, **wrong}))
        with pytest.raises(InvalidModel, match=reason):
            load(TASK, folder)
    config.write_text(json.dumps(original))
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"embedding_dimension": 32, "pooling_mode": "median"}')
    with pytest.raises(InvalidModel, match="pooling mode 'median'"):
        load(TASK, folder)


def test_the_reference_is_the_models_own_arithmetic(encoder: Path) -> None:
    """Both sides could be wrong in the same way; the test computes this one itself."""
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        hidden = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state
    _equal(_vectors(encoder, texts=TEXTS[:1])[0], hidden[0].mean(dim=0).numpy())
