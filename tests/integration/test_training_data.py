"""What each training task makes of rows, a tokenizer and a model, in this process and before any step."""

from __future__ import annotations

import json
import logging
import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from transformers import (
    AutoTokenizer,
    CanineConfig,
    CanineModel,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)

from jobs.config.settings import Settings
from jobs.errors import InvalidInput, InvalidModel, InvalidSpec, LossNotFinite, UserError
from jobs.specs.training import TrainingSpec
from tests.support import tiny
from tests.support.rows import write_rows
from worker.stop import Stop
from worker.training.collectives import SingleProcess
from worker.training.loops import trainer
from worker.training.plan import Plan
from worker.training.reports import Progress, RankReport
from worker.training.tasks import build
from worker.training.tasks.data import rows_of
from worker.training.tasks.setup import NO_LABEL, TaskContext, TaskSetup
from worker.training.tasks.token_classification import words_of_tokens
from worker.training.tasks.vocabulary import Vocabulary

WORDS = ["My", "name", "is", "U.S.", "", "Ada-Lovelace", "Ünï", "你好", "s'il", "\u200d", "a b"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: `bert`, `gpt2`, `llama` and others, each made at its first use."""
    return tmp_path_factory.mktemp("models")


def model_of(models: Path, name: str) -> str:
    made = {
        "bert": tiny.tiny_encoder, "named": tiny.tiny_classifier, "gpt2": tiny.tiny_gpt2, "llama": tiny.tiny_causal_lm,
        "vit": tiny.tiny_image_classifier, "ctc": tiny.tiny_ctc,
    }  # fmt: skip
    if not (models / name).exists():
        made[name](models / name)
    return str(models / name)


def plan_of(
    folder: Path, task: str, model: str, rows: list[dict[str, Any]], *, eval_rows: list[dict[str, Any]] | None = None,
    max_length: int | None = None, **arguments: Any,
) -> Plan:  # fmt: skip
    """The plan of a training on some rows."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"train": str(write_rows(folder / "rows.jsonl", rows)), "max_length": max_length}
    if eval_rows is not None:
        data["eval"] = str(write_rows(folder / "eval.jsonl", eval_rows))
    spec = {"kind": "training", "task": task, "model": model, "data": data, "arguments": arguments}
    return Plan(
        job_id="job_1",
        spec=TrainingSpec.model_validate(spec),
        folder=str(folder),
        device="cpu",
        num_threads=1,
        model=model,
    )


def setup_of(plan: Plan, settings: Settings) -> TaskSetup:
    spec = plan.spec
    return build(TaskContext.of(plan, settings), *rows_of(spec, settings))


def refusal(plan: Plan, settings: Settings) -> str:
    with pytest.raises(UserError) as caught:
        setup_of(plan, settings)
    assert isinstance(caught.value, InvalidInput | InvalidModel)
    return caught.value.message


def texts(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": tiny.SENTENCES[at % 8], "label": label} for at, label in enumerate(labels)]


def test_a_file_that_changed_since_submission_is_named_by_its_field(tmp_path: Path, settings: Settings) -> None:
    plan = plan_of(tmp_path, "text-classification", "bert", texts(0, 1), eval_rows=texts(1))
    (tmp_path / "rows.jsonl").unlink()
    assert refusal(plan, settings).startswith("data.train: ")
    str(write_rows(tmp_path / "rows.jsonl", texts(0, 1)))
    (tmp_path / "eval.jsonl").unlink()
    assert refusal(plan, settings).startswith("data.eval: ")


# -- classes -------------------------------------------------------------------------------------------------------


def test_rows_without_a_label_are_left_out_and_reported(
    tmp_path: Path, settings: Settings, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = texts(-100, 0, 1, -100, 1)
    plan = plan_of(tmp_path, "text-classification", model_of(models, "bert"), rows, eval_rows=texts(1, -100))
    with caplog.at_level(logging.WARNING):
        setup = setup_of(plan, settings)
    assert setup.model.config.id2label == {0: "0", 1: "1"}
    assert list(setup.train["labels"]) == [0, 1, 1]
    assert list(setup.evaluation["labels"]) == [1]
    assert "data.train: 2 of 5 rows are left out: they have no label" in caplog.text
    assert "2 of 5 rows have no label and were left out" in setup.facts


def test_pictures_without_a_label_are_left_out(tmp_path: Path, settings: Settings, models: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = [{"image": str(tmp_path / "red.png"), "label": label} for label in (2, -100, 0, 1)]
    setup = setup_of(plan_of(tmp_path, "image-classification", model_of(models, "vit"), rows), settings)
    assert setup.model.config.id2label == {0: "thing-0", 1: "thing-1", 2: "thing-2"}, "given ids are the model's own"
    assert list(setup.train["labels"]) == [2, 0, 1]


def test_given_ids_keep_the_names_of_the_model(tmp_path: Path, settings: Settings, models: Path) -> None:
    plan = plan_of(tmp_path, "text-classification", model_of(models, "named"), texts(2, 0, 1, 2))
    setup = setup_of(plan, settings)
    assert setup.model.config.label2id == {"label-0": 0, "label-1": 1, "label-2": 2}
    assert list(setup.train["labels"]) == [2, 0, 1, 2]


def test_names_of_a_data_set_become_the_models(tmp_path: Path, settings: Settings, models: Path) -> None:
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg", "neutral"])
    )
    datasets.Dataset.from_list(texts(0, 1, -1, 2), features=features).save_to_disk(str(tmp_path / "set"))
    plan = plan_of(tmp_path, "text-classification", model_of(models, "bert"), [], eval_rows=texts("neg", 0, -1))
    data = plan.spec.data.model_copy(update={"train": str(tmp_path / "set")})
    plan = replace(plan, spec=plan.spec.model_copy(update={"data": data}))
    setup = setup_of(plan, settings)
    assert setup.model.config.id2label == {0: "pos", 1: "neg", 2: "neutral"}
    assert list(setup.train["labels"]) == [0, 1, 2], "-1 is how the library writes a row without a label"
    assert list(setup.evaluation["labels"]) == [1, 0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (texts("a", ["b"]), "data.train: row 1: column 'label' contains a list of labels"),
        (texts("a", 0.5), "data.train: row 1: column 'label' contains 0.5, a number with a decimal point"),
        ([{"text": ["a", "b"], "label": "a"}], "data.train: row 0: column 'text' must be text for input 'text', not a"),
    ],
)
def test_what_the_worker_finds_in_a_row_is_one_sentence(
    tmp_path: Path, settings: Settings, models: Path, rows: list[dict[str, Any]], words: str
) -> None:
    assert words in refusal(plan_of(tmp_path, "text-classification", model_of(models, "bert"), rows), settings)


def test_a_class_that_is_not_learned_is_named(tmp_path: Path, settings: Settings, models: Path) -> None:
    plan = plan_of(
        tmp_path, "text-classification", model_of(models, "bert"), texts("a", "b"), eval_rows=texts("a", "c")
    )
    assert refusal(plan, settings) == "data.eval: row 1: its class 'c' is in no row of data.train"


# -- words ---------------------------------------------------------------------------------------------------------


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    state = json.loads(tiny.byte_level_tokenizer().backend_tokenizer.to_str())["model"]
    first = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = [*first, *(token for token in sorted(state["vocab"], key=state["vocab"].get) if token not in first)]
    merges = [tuple(merge) for merge in state["merges"]]
    return RobertaTokenizerFast(vocab={token: at for at, token in enumerate(tokens)}, merges=merges)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted({letter for word in WORDS for letter in word} | set(string.ascii_letters))
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)], 0)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "make", [tiny.wordpiece_tokenizer, tiny.byte_level_tokenizer, roberta_tokenizer, metaspace_tokenizer]
)
def test_pieces_are_those_of_running_text_and_each_is_of_its_word(make: Any) -> None:
    tokenizer = make()
    text = " ".join(word for word in WORDS if word)
    features = tokenizer(text, return_offsets_mapping=True)
    owners = words_of_tokens(WORDS, features["offset_mapping"], features.sequence_ids(0))
    for number, word in enumerate(WORDS):
        pieces = [piece for piece, owner in zip(features["input_ids"], owners, strict=True) if owner == number]
        if make is tiny.wordpiece_tokenizer:
            split = tokenizer(WORDS, is_split_into_words=True)
            assert owners == split.word_ids(), "as the library assigns them where no space is part of a piece"
            assert features["input_ids"] == split["input_ids"]
        elif make is metaspace_tokenizer:
            written = "".join(tokenizer.convert_ids_to_tokens(pieces)).replace("▁", " ")
            assert written.strip() == word
        else:
            assert tokenizer.decode(pieces).strip() == word
    first = [place for place, owner in enumerate(owners) if owner is not None and owner != ([None, *owners][place])]
    assert [owners[place] for place in first] == sorted(set(owners) - {None}), "each word has one first piece"  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_words_are_tokenized_as_inference_tokenizes_their_text(
    tmp_path: Path, settings: Settings, models: Path, name: str
) -> None:
    rows = [{"tokens": ["My", "name", "is", "Ada"], "labels": ["O", "O", "O", "PER"]}]
    model = model_of(models, name)
    setup = setup_of(plan_of(tmp_path, "token-classification", model, rows), settings)
    found = AutoTokenizer.from_pretrained(model)("My name is Ada")
    assert list(setup.train["input_ids"]) == [found["input_ids"]]
    labels = setup.train["labels"][0]
    pieces = setup.processing.convert_ids_to_tokens(found["input_ids"])
    assert [piece for piece, label in zip(pieces, labels, strict=True) if label == setup.model.config.label2id["PER"]]
    assert sum(label != NO_LABEL for label in labels) == 4


@pytest.mark.parametrize("words", [["", ""], ["\u200d"], ["My", "name"]], ids=["empty", "no pieces", "unlabelled"])
def test_rows_of_words_that_teach_nothing_are_left_out(
    tmp_path: Path, settings: Settings, models: Path, words: list[str]
) -> None:
    label = -100 if words[0] == "My" else "O"
    rows = [{"tokens": words, "labels": [label] * len(words)}, {"tokens": ["I", "live"], "labels": ["O", "B"]}]
    setup = setup_of(plan_of(tmp_path, "token-classification", model_of(models, "bert"), rows), settings)
    assert setup.model.config.label2id == {"B": 0, "O": 1}
    assert list(setup.train["labels"]) == [[NO_LABEL, 1, 0, NO_LABEL]] or words == ["My", "name"]
    assert "1 of 2 rows have no word with a label and were left out" in setup.facts


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_a_length_without_room_for_a_word_is_refused(
    tmp_path: Path, settings: Settings, models: Path, task: str
) -> None:
    rows = [{"tokens": ["I"], "labels": [label], "text": "I", "label": label} for label in ("a", "b")]
    plan = plan_of(tmp_path, task, model_of(models, "bert"), rows, max_length=2)
    assert refusal(plan, settings).startswith("data.max_length: 2 leaves no room for a text beside a row's 2 special")


# -- tokenizer and model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_a_token_without_a_vector_is_named(tmp_path: Path, settings: Settings, models: Path, task: str) -> None:
    name = "llama" if task == "text-generation" else "bert"
    model = tmp_path / "plus"
    (tiny.tiny_causal_lm if name == "llama" else tiny.tiny_encoder)(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    num_ids = len(tokenizer)
    tokenizer.add_tokens(["stokerword"])
    tokenizer.save_pretrained(model)
    rows = [
        {"text": text, "tokens": text.split(), "label": label, "labels": [label] * len(text.split())}
        for text, label in (("My name", "a"), ("the stokerword fox", "b"))
    ]
    error = refusal(plan_of(tmp_path / "a", task, str(model), rows), settings)
    assert (
        f"has embeddings for {num_ids} tokens, but its tokenizer uses 'stokerword' (id {num_ids}) for data.train, row 1"
        in error
    )
    assert "resize" in error
    setup_of(plan_of(tmp_path / "b", task, str(model), [rows[0], {**rows[0], "label": "b"}]), settings)


def test_pairs_are_learned_where_a_row_has_one(tmp_path: Path, settings: Settings, models: Path) -> None:
    """From the column `text_pair` by default, as in inference."""
    model = model_of(models, "bert")
    rows = [
        {"text": "a fox", "text_pair": "a cat", "label": "a"},
        {"text": "a fox", "text_pair": None, "label": "b"},
        {"text": "a fox", "text_pair": "", "label": "a"},
        {"text": "a fox", "label": "b"},
    ]
    setup = setup_of(plan_of(tmp_path, "text-classification", model, rows), settings)
    tokenizer = AutoTokenizer.from_pretrained(model)
    alone = tokenizer("a fox")["input_ids"]
    assert list(setup.train["input_ids"]) == [tokenizer("a fox", "a cat")["input_ids"], alone, alone, alone]


def test_a_text_without_tokens_is_named(tmp_path: Path, settings: Settings, models: Path) -> None:
    plain = tiny.byte_level_tokenizer()
    plain.backend_tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    model = tiny.tiny_gpt2(tmp_path / "m")
    plain.save_pretrained(model)
    rows = [{"text": "a fox", "label": "a"}, {"text": "", "label": "b"}]
    error = refusal(plan_of(tmp_path / "a", "text-classification", str(model), rows), settings)
    assert error == "data.train: row 1: its text has no tokens"


def test_a_model_without_a_table_of_vectors_takes_every_token(tmp_path: Path, settings: Settings, models: Path) -> None:
    config = CanineConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_hash_buckets=64,
        local_transformer_stride=16, max_position_embeddings=64,
    )  # fmt: skip
    plan = plan_of(tmp_path, "text-classification", model_of(models, "bert"), texts("a", "b"))
    origin, (rows, _) = TaskContext.of(plan, settings), rows_of(plan.spec, settings)
    vocabulary = Vocabulary.of(origin, CanineModel(config), origin.tokenizer())
    assert vocabulary.num_ids is None
    vocabulary.check_row(rows, 0, [10**6])


def test_a_model_whose_forward_names_no_inputs_is_refused(
    tmp_path: Path, settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(_: Any, *rows: Any, **named: Any) -> None:
        raise AssertionError((rows, named))

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", forward)
    plan = plan_of(tmp_path, "text-classification", model_of(models, "bert"), texts("a", "b"))
    assert refusal(plan, settings).endswith("its `forward` has no parameter such as `input_ids` or `labels`")


@pytest.mark.parametrize(("name", "value"), [("gradient_checkpointing", True), ("neftune_noise_alpha", 5.0)])
def test_an_argument_that_the_model_cannot_follow_is_refused(
    tmp_path: Path, settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    def no_embeddings(_: Any) -> None:
        raise NotImplementedError

    plan = plan_of(tmp_path, "text-classification", model_of(models, "bert"), texts("a", "b"), **{name: value})
    setup_of(plan, settings)
    monkeypatch.setattr(transformers.BertModel, "get_input_embeddings", no_embeddings)
    monkeypatch.setattr(transformers.BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(InvalidSpec, match=f"arguments.{name}: a bert "):
        setup_of(plan, settings)


def test_texts_that_the_tokenizer_does_not_know_are_reported(
    tmp_path: Path, settings: Settings, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "Καλημέρα κόσμε", "label": "a"}, {"text": "Καλησπέρα", "label": "b"}]
    with caplog.at_level(logging.WARNING):
        setup_of(plan_of(tmp_path, "text-classification", model_of(models, "bert"), rows), settings)
    assert "data.train: 43% of the tokens are '[UNK]'" in caplog.text


# -- sounds --------------------------------------------------------------------------------------------------------


def recogniser(folder: Path, letters: str, *, has_head: bool, num_letters: int | None = None) -> str:
    """A Wav2Vec2 of these letters, whose configuration may say another number of them."""
    folder.mkdir(parents=True)
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    (folder / "vocab.json").write_text(json.dumps({symbol: at for at, symbol in enumerate(symbols)}))
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, return_attention_mask=False)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=num_letters or len(symbols), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(5, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, pad_token_id=0,
    )  # fmt: skip
    (Wav2Vec2ForCTC if has_head else Wav2Vec2Model)(config).save_pretrained(folder)
    return str(folder)


def sounds(*written: str, num_samples: int = 800) -> list[dict[str, Any]]:
    sound = [math.sin(at) for at in range(num_samples)]
    return [{"audio": sound, "text": text} for text in written]


TASK = "automatic-speech-recognition"


def test_an_encoder_gets_a_head_of_the_tokenizers_size(tmp_path: Path, settings: Settings) -> None:
    letters = string.ascii_lowercase + "'äöüßéèç"
    model = recogniser(tmp_path / "m", letters, has_head=False, num_letters=32)
    setup = setup_of(plan_of(tmp_path / "a", TASK, model, sounds("éèçab", "ba")), settings)
    assert setup.model.lm_head.out_features == setup.model.config.vocab_size == len(letters) + 5
    torch.manual_seed(0)
    loss = setup.model(**setup.collate([setup.train[0], setup.train[1]])).loss
    assert torch.isfinite(loss)


def test_a_head_that_is_too_small_for_a_letter_is_reported(tmp_path: Path, settings: Settings) -> None:
    model = recogniser(tmp_path / "m", string.ascii_lowercase, has_head=True, num_letters=10)
    error = refusal(plan_of(tmp_path / "a", TASK, model, sounds("ab", "az")), settings)
    assert "has 10 letters in its head, but its tokenizer uses 'z' (id 30) in data.train, row 1" in error


def test_texts_in_the_other_case_are_refused_and_unknown_letters_reported(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    model = recogniser(tmp_path / "m", string.ascii_uppercase, has_head=True)
    error = refusal(plan_of(tmp_path / "a", TASK, model, sounds("dcab cab", "aaab")), settings)
    assert error == (
        "data.train: 100% of the letters of its texts are not in the tokenizer's vocabulary, which has only "
        "upper-case letters; write the texts in upper case"
    )
    with caplog.at_level(logging.WARNING):
        setup_of(plan_of(tmp_path / "b", TASK, model, sounds("DCAB CAB", "AAA!")), settings)
    assert "data.train: 9.1% of the letters of its texts are not in the tokenizer's vocabulary" in caplog.text


def test_sounds_that_are_too_short_are_named_or_counted(
    tmp_path: Path, settings: Settings, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(models, "ctc")
    rows = [*sounds("ab"), *sounds("ab", num_samples=9)]
    assert "row 1: its sound of 9 samples is too short" in refusal(plan_of(tmp_path / "a", TASK, model, rows), settings)
    with caplog.at_level(logging.WARNING):
        setup_of(plan_of(tmp_path / "b", TASK, model, [*sounds("ab"), *sounds("a" * 60)]), settings)
    assert "data.train: 1 of 2 rows have no effect" in caplog.text


# -- meaning of the metrics ------------------------------------------------------------------------------------------


def test_the_perplexity_is_that_of_the_texts_where_labels_are_smoothed(
    tmp_path: Path, settings: Settings, models: Path
) -> None:
    rows = [{"text": sentence} for sentence in tiny.SENTENCES]
    plan = plan_of(
        tmp_path, "text-generation", model_of(models, "llama"), rows, eval_rows=rows, max_length=16, max_steps=2,
        per_device_train_batch_size=2, learning_rate=0.01, label_smoothing_factor=0.3,
    )  # fmt: skip
    reports: list[RankReport] = []
    trainer.train(plan, gang=SingleProcess(), rules=settings, stop=Stop(), report=reports.append)
    points = [point for report in reports if isinstance(report, Progress) for point in report.points]
    metrics = {name: value for _, name, value in points if name.startswith("eval_")}
    assert set(metrics) == {"eval_loss", "eval_perplexity"}
    blocks = torch.tensor(setup_of(plan, settings).evaluation["input_ids"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "artifacts" / "model").eval()
    with torch.no_grad():
        nll = model(input_ids=blocks, labels=blocks).loss.item()
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert metrics["eval_loss"] != pytest.approx(nll, rel=1e-3), "the smoothed loss, which is learned from"


def test_a_first_loss_of_no_number_is_not_blamed_on_the_learning_rate(tmp_path: Path, settings: Settings) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny.tiny_classifier(tmp_path / "m"))
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    model.save_pretrained(tmp_path / "m")
    plan = plan_of(tmp_path / "a", "text-classification", str(tmp_path / "m"), texts("a", "b"), max_steps=1)
    with pytest.raises(LossNotFinite, match="the learning rate cannot be the cause"):
        trainer.train(plan, gang=SingleProcess(), rules=settings, stop=Stop(), report=lambda _: None)
