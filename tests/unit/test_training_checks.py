"""Faults of a training spec are one sentence that names the field, before a slot is granted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto import modeling_auto as auto

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.errors import InvalidInput, InvalidModel, InvalidSpec, UserError
from jobs.ledger import jobs as job_ledger
from jobs.specs.architectures import read_architectures
from jobs.specs.inference import TrainingSpec, parse_spec
from jobs.specs.training_options.learning_rate_schedules import SCHEDULES
from jobs.specs.training_options.training_arguments import RESERVED, TrainingArguments
from scheduler.control.planning.planner import check_submission, plan_job
from tests.support import tiny
from tests.support.rows import write_rows

Change = Callable[[dict[str, Any]], None]
MAPPINGS = {
    "text-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "text-generation": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "automatic-speech-recognition": auto.MODEL_FOR_CTC_MAPPING_NAMES,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.tiny_encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.tiny_gpt2(tmp_path_factory.mktemp("models") / "gpt2"))


@pytest.fixture
def document(tmp_path: Path, encoder: str) -> dict[str, Any]:
    """A spec that is right, over two files."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": encoder,
        "data": {"train": write(tmp_path / "train.jsonl", ["a", "b"]), "eval": write(tmp_path / "eval.jsonl", ["a"])},
    }


def write(path: Path, labels: list[Any], **fields: Any) -> str:
    """Rows with these labels."""
    return str(write_rows(path, [{"text": "some text", "label": label, **fields} for label in labels]))


def set_field(name: str, value: Any) -> Change:
    """Change a field, dotted."""

    def change(document: dict[str, Any]) -> None:
        *parents, last = name.split(".")
        for parent in parents:
            document = document.setdefault(parent, {})
        document[last] = value

    return change


def scheduled(name: str, **given: Any) -> Change:
    """Give arguments to a schedule of learning rates."""
    return set_field("arguments", {"lr_scheduler_type": name, "lr_scheduler_kwargs": given})


SCHEDULER = "arguments.lr_scheduler_kwargs"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        (set_field("task", "image-segmentation"), "task", "text-classification"),
        (set_field("arguments.learning_rat", 1), "arguments.learning_rat", "did you mean 'learning_rate'?"),
        (set_field("arguments.output_dir", "/tmp"), "arguments.output_dir", "Stoker chooses the folders"),
        (set_field("arguments.push_to_hub", True), "arguments.push_to_hub", "does not upload or report anything"),
        (set_field("arguments.max_steps", 2**31), "arguments.max_steps", "1 to 2147483647, not 2147483648"),
        (set_field("arguments.max_steps", 0), "arguments.max_steps", "a whole number from 1 to 2147483647, not 0"),
        (set_field("arguments.num_train_epochs", 1e300), "arguments.num_train_epochs", "up to 1000000"),
        (set_field("arguments.dataloader_num_workers", 10**5), "arguments.dataloader_num_workers", "from 0 to 256"),
        (set_field("arguments.num_train_epochs", float("inf")), "arguments.num_train_epochs", "a number above 0"),
        (set_field("slots", 0), "slots", "must be at least 1"),
        (set_field("slots", 65), "slots", "must be at most 64"),
        (set_field("data.columns", {"txt": "a"}), None, "has no input 'txt'"),
        (set_field("lora", {"r": 4}), None, "can only be used with task: text-generation"),
        (set_field("lora", {"target_modules": []}), "lora.target_modules", "must not be empty"),
        (set_field("checkpoint.every_steps", 0), "checkpoint.every_steps", "must be at least 1"),
        (set_field("data.evl", "x"), "data.evl", "unknown field; did you mean 'eval'?"),
        (
            set_field("checkpoint.best", "eval_beauty"),
            "checkpoint.best",
            "its metrics are eval_loss, eval_accuracy, eval_f1",
        ),
        (set_field("checkpoint.best", "accuracy"), "checkpoint.best", "did you mean 'eval_accuracy'?"),
        (
            set_field("checkpoint.best", "beauty"),
            "checkpoint.best",
            "no metric 'beauty'; its metrics are eval_loss, eval_accuracy, eval_f1",
        ),
        (set_field("checkpoint.mode", "max"), "checkpoint.mode", "can only be used with checkpoint.best"),
        (set_field("arguments", {"eval_strategy": "epoch", "eval_steps": 5}), "arguments.eval_steps", "not epoch"),
        (set_field("task", "image-classification"), "data.max_length", "does not truncate texts"),
        (set_field("task", "text-generation"), "data.max_length", "must be at least 2"),
        (set_field("task", "text-generation"), "arguments.train_sampling_strategy", "no length to group by"),
        (set_field("task", "automatic-speech-recognition"), "arguments.label_smoothing_factor", "CTC"),
        (scheduled("linear", power=1), SCHEDULER, ".power: the schedule 'linear' has no such argument; it has none"),
        (scheduled("cosine", num_cycle=1), SCHEDULER, ".num_cycle: the schedule 'cosine' has no such argument"),
        (scheduled("cosine", num_cycles="2"), SCHEDULER, ".num_cycles: must be a number from 0, not '2'"),
        (scheduled("cosine", num_cycles=None), SCHEDULER, ".num_cycles: must be a number from 0, not None"),
        (scheduled("cosine", last_epoch=3), SCHEDULER, ".last_epoch: the schedule 'cosine' has no such argument"),
        (scheduled("cosine_with_min_lr"), SCHEDULER, "needs exactly one of min_lr, min_lr_rate"),
        (
            scheduled("cosine_with_min_lr", min_lr=0, min_lr_rate=0),
            SCHEDULER,
            "needs exactly one of min_lr, min_lr_rate",
        ),
        (scheduled("warmup_stable_decay"), SCHEDULER, "the schedule 'warmup_stable_decay' needs num_decay_steps"),
        (scheduled("warmup_stable_decay", decay_type="flat"), SCHEDULER, "one of linear, cosine, 1-sqrt, not 'flat'"),
        (scheduled("polynomial", lr_end=0.1), SCHEDULER, "lr_end (0.1) must be smaller than the learning rate (5e-05)"),
    ],
)
def test_a_bad_field_is_refused_by_name(
    document: dict[str, Any], change: Change, param: str | None, words: str
) -> None:
    if param == "data.max_length":
        document["data"]["max_length"] = 1
    if param == "arguments.label_smoothing_factor":
        document["arguments"] = {"label_smoothing_factor": 0.1}
    if param == "arguments.train_sampling_strategy":
        document["arguments"] = {"train_sampling_strategy": "group_by_length"}
    change(document)
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(document)
    assert words in caught.value.message
    if param is not None:
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "options", "param", "words"),
    [
        ("cnn", {"hiden": 4}, "options.hiden", "unknown option; the options are channels, hidden"),
        ("lstm", {"hidden": 2.5}, "options.hidden", "must be a whole number"),
        ("vae", {"latent": 0}, "options.latent", "must be at least 1"),
        ("ctc", {"min_letters": 9}, "options.max_letters", "must be at least options.min_letters"),
    ],
)
def test_options_of_a_recipe_are_checked_with_the_spec(
    name: str, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({"kind": "training", "trainer": "torch", "module": f"recipes.{name}", "options": options})
    assert caught.value.message.startswith(f"{param}: {words}")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ndef build(setup:\n", "is not valid Python: line 2: '(' was never closed"),
        ("x = '\0'", "is not valid Python: source code"),
        ("x = " + "-" * 50_000 + "1", "is not valid Python: "),
        ("def biuld(setup): ...", "has no function build(setup)"),
        ("def build(setup): raise SystemExit", None),
        ("from parts import *", None),
        ("from parts import build", None),
        ("globals()['bu' + 'ild'] = print", None),
    ],
    ids=["syntax", "zero", "deep", "none", "there", "star", "imported", "made"],
)
def test_a_module_that_cannot_be_used_is_refused_unrun(
    settings: Settings, sqlite_database: Database, tmp_path: Path, text: str, words: str | None
) -> None:
    module = tmp_path / "module.py"
    module.write_text(text)
    spec = parse_spec({"kind": "training", "trainer": "torch", "module": str(module)})
    own = settings.model_copy(update={"code_roots": [tmp_path]})

    def check() -> None:
        check_submission(spec, rules=own, store=Store(own.resolved_store_url), database=sqlite_database)

    if words is None:
        check()
        return
    with pytest.raises(InvalidSpec) as caught:
        check()
    assert caught.value.message.startswith(f"module: '{module}' {words}")
    assert "\n" not in caught.value.message
    assert caught.value.param == "module"


@pytest.mark.parametrize("neighbour", ["jobs.py", "worker"])
def test_a_module_may_not_import_a_neighbour_by_our_packages_names(
    settings: Settings, sqlite_database: Database, tmp_path: Path, neighbour: str
) -> None:
    module = tmp_path / "module.py"
    spec = parse_spec({"kind": "training", "trainer": "torch", "module": str(module)})
    own = settings.model_copy(update={"code_roots": [tmp_path]})
    if neighbour.endswith(".py"):
        (tmp_path / neighbour).write_text("x = 1")
    else:
        (tmp_path / neighbour).mkdir()
    name = neighbour.removesuffix(".py")
    for text in (
        "def build(setup): ...",
        f"from .{name} import x\ndef build(setup): ...",
        "from scheduler import build",
    ):
        module.write_text(text)
        check_submission(spec, rules=own, store=Store(own.resolved_store_url), database=sqlite_database)
    for text in (f"def build(setup):\n    import {name}.x", f"from {name} import build"):
        module.write_text(text)
        with pytest.raises(InvalidSpec, match=f"imports '{name}', which .*; rename '{neighbour}'"):
            check_submission(spec, rules=own, store=Store(own.resolved_store_url), database=sqlite_database)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["c_atn"], "has no module 'c_atn'; it has c_attn, c_fc"),
        (["q_proj", "v_proj"], "has no module 'q_proj'; it has c_attn, c_fc, c_proj, wpe, wte"),
        (["h.7.attn.c_attn"], "has no module 'h.7.attn.c_attn'"),
        (["q_proj", "c_attn"], None),
        (["transformer.h.0.attn.c_attn"], None),
        (["lm_head"], None),
        ("all-linear", None),
    ],
    ids=str,
)
def test_adapters_for_no_module_of_the_model_are_refused(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, tmp_path: Path, gpt2: str,
    targets: list[str] | str, words: str | None,
) -> None:  # fmt: skip
    document |= {"task": "text-generation", "model": gpt2, "lora": {"target_modules": targets}}
    spec, store = parse_spec(document), Store(settings.resolved_store_url)
    if words is None:
        check_submission(spec, rules=settings, store=store, database=sqlite_database)
        return
    with pytest.raises(InvalidSpec) as caught:
        check_submission(spec, rules=settings, store=store, database=sqlite_database)
    assert words in caught.value.message
    assert caught.value.param == "lora.target_modules"


def test_evaluations_need_rows(document: dict[str, Any]) -> None:
    del document["data"]["eval"]
    asks: dict[str, Any] = {
        "checkpoint.best": "eval_loss", "arguments.eval_strategy": "epoch", "arguments.eval_steps": 5,
        "arguments.eval_on_start": True,
    }  # fmt: skip
    for name, value in asks.items():
        changed = json.loads(json.dumps(document))
        set_field(name, value)(changed)
        with pytest.raises(InvalidSpec, match=f"{name}: needs rows to evaluate") as caught:
            parse_spec(changed)
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        (set_field("data.train", "/nowhere/rows.jsonl"), "data.train", "there is no file"),
        (set_field("data.eval", "/nowhere/rows.jsonl"), "data.eval", "there is no file"),
        (set_field("data.columns", {"label": "stars"}), "data.columns.label", "no column 'stars'; it has text, label"),
        (set_field("model", "/nowhere"), "model", "no such folder"),
        (set_field("model", {"architecture": "brt"}), "model.architecture", "transformers has no architecture 'brt'"),
        (set_field("model", {"architecture": "bert"}), "model.processor", "is required for a model from scratch"),
        (set_field("model", {"architecture": "vit"}), "model.architecture", "a vit has no text-classification head"),
        (set_field("model", "job:job_nothing"), "model", "there is no such job"),
    ],
)
def test_a_mismatch_is_reported_at_submission(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, change: Change, param: str, words: str
) -> None:
    change(document)
    store = Store(settings.resolved_store_url)
    with pytest.raises(UserError) as caught:
        check_submission(parse_spec(document), rules=settings, store=store, database=sqlite_database)
    assert words in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("labels", "eval_labels", "words"),
    [
        (
            ["a", "a"],
            ["a"],
            "data.train: all rows have the same label 'a'; a training needs at least two different ones",
        ),
        (["a", "b"], ["c"], "data.eval: the label 'c' is in no row of data.train"),
        (["a", "b", None], ["a"], "data.train: row 2, line 3: column 'label' is null"),
        (["a", ""], ["a"], "data.train: row 1, line 2: column 'label' has no label"),
        (
            ["a", "b", ["a"]],
            ["a"],
            "data.train: row 2, line 3: column 'label' contains a list of labels, but task "
            "text-classification needs one class for each row",
        ),
        ([-100, -100], [-100], "data.train: no row has a label; a training needs at least two different ones"),
    ],
)
def test_labels_that_cannot_be_learned_fail_the_job_before_a_slot(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, tmp_path: Path, labels: list[Any],
    eval_labels: list[Any], words: str,
) -> None:  # fmt: skip
    document["data"] = {"train": write(tmp_path / "t.jsonl", labels), "eval": write(tmp_path / "e.jsonl", eval_labels)}
    job_id = job_ledger.submit(sqlite_database, parse_spec(document)).id
    plan_job(sqlite_database, Store(settings.resolved_store_url), settings, job_id)
    with sqlite_database.read() as session:
        job = job_ledger.get(session, job_id)
    assert (job.state, job.error_message) == (JobState.FAILED, words)


@pytest.mark.parametrize(
    ("labels", "fields", "words"),
    [
        (["a", 0.5], {}, "data.train: row 1, line 2: column 'label' contains 0.5, a number with a decimal point"),
        ([[1, 0], [0, 1]], {}, "data.train: row 0, line 1: column 'label' contains a list of labels"),
        ([-1, 1], {}, "data.train: row 0, line 1: column 'label' contains -1"),
        (["a", "b"], {"text": ["some", "text"]}, "data.train: row 0, line 1: column 'text' must be text for input"),
        (["a", "b"], {"text": [{"role": "user", "content": "hi"}]}, "data.train: row 0, line 1: column 'text' "),
    ],
)
def test_the_first_rows_are_looked_at_while_the_client_waits(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, tmp_path: Path, labels: list[Any],
    fields: dict[str, Any], words: str,
) -> None:  # fmt: skip
    document["data"] = {"train": write(tmp_path / "t.jsonl", labels, **fields)}
    store = Store(settings.resolved_store_url)
    with pytest.raises(InvalidInput) as caught:
        check_submission(parse_spec(document), rules=settings, store=store, database=sqlite_database)
    assert caught.value.message.startswith(words)
    assert caught.value.param == "data.train"


def test_texts_of_every_row_are_looked_at_before_a_slot(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    rows = [{"text": "some text"}] * 100 + [{"text": ["some", "text"]}]
    document |= {"task": "text-generation", "data": {"train": str(write_rows(tmp_path / "t.jsonl", rows))}}
    job_id = job_ledger.submit(sqlite_database, parse_spec(document)).id
    plan_job(sqlite_database, Store(settings.resolved_store_url), settings, job_id)
    with sqlite_database.read() as session:
        message = job_ledger.get(session, job_id).error_message
    assert message is not None
    assert message.startswith("data.train: row 100, line 101: column 'text' must be text")


@pytest.mark.parametrize("eval_labels", [[1, 2], ["neutral", "pos"]])
def test_names_of_a_data_set_are_the_classes(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, tmp_path: Path, eval_labels: list[Any]
) -> None:
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg", "neutral"])
    )
    rows = [{"text": "some text", "label": label} for label in (0, 1, -1)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "t.parquet"))
    document["data"] = {"train": str(tmp_path / "t.parquet"), "format": "parquet"}
    datasets.Dataset.from_list([{"text": "b", "label": label} for label in eval_labels]).to_parquet(
        tmp_path / "e.parquet"
    )
    document["data"]["eval"] = str(tmp_path / "e.parquet")
    job_id = job_ledger.submit(sqlite_database, parse_spec(document)).id
    plan_job(sqlite_database, Store(settings.resolved_store_url), settings, job_id)
    with sqlite_database.read() as session:
        job = job_ledger.get(session, job_id)
    assert (job.state, job.error_message) == (JobState.QUEUED, None)


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_what_a_module_trained_is_no_model_to_start_from(
    document: dict[str, Any], settings: Settings, sqlite_database: Database, kind: str
) -> None:
    trained = {"kind": "training", "trainer": "torch", "module": "recipes.cnn"}
    document["model"] = f"job:{job_ledger.submit(sqlite_database, parse_spec(trained)).id}"
    if kind == "inference":
        document = {"task": document["task"], "model": document["model"], "input": {"path": document["data"]["train"]}}
    store = Store(settings.resolved_store_url)
    with pytest.raises(InvalidModel, match="that training used `trainer: torch`") as caught:
        check_submission(parse_spec(document), rules=settings, store=store, database=sqlite_database)
    assert caught.value.param == "model"


def test_a_good_one_is_queued(document: dict[str, Any], settings: Settings, sqlite_database: Database) -> None:
    job_id = job_ledger.submit(sqlite_database, parse_spec(document)).id
    plan_job(sqlite_database, Store(settings.resolved_store_url), settings, job_id)
    with sqlite_database.read() as session:
        assert job_ledger.get(session, job_id).state == JobState.QUEUED


def test_the_architectures_are_those_of_transformers() -> None:
    listed = read_architectures()
    for task, names in MAPPINGS.items():
        assert listed.trainable[task] == set(names), f"run ops/list_architectures.py: {task} has changed"
    assert set(auto.MODEL_MAPPING_NAMES).union(*MAPPINGS.values()) == listed.known


def test_models_whose_weights_are_renamed_are_those_of_transformers() -> None:
    """Adapters for their modules would be refused by the names in the files."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping as conversion

    for kind, names in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        classes = [names] if isinstance(names, str) else names
        if any(conversion(name) is not None for name in (kind, *classes)):
            assert kind in read_architectures().renamed, f"run ops/list_architectures.py: {kind} has changed"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_accepts_the_arguments_of_transformers(name: str) -> None:
    import inspect

    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    set_by_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
    own = {key: one.default for key, one in taken.items() if key not in set_by_trainer}
    model = SCHEDULES[name]
    required = {key: 1 for key, field in model.model_fields.items() if field.is_required()}
    assert own == {
        key: inspect.Parameter.empty if field.is_required() else field.default
        for key, field in model.model_fields.items()
    }
    given = {key: default for key, default in own.items() if default not in (None, inspect.Parameter.empty)}
    given |= required | dict.fromkeys(model.ONE_OF[:1], 0)
    TrainingArguments.read({"lr_scheduler_type": name, "lr_scheduler_kwargs": given})


def test_arguments_have_the_names_and_defaults_of_transformers() -> None:
    import transformers

    theirs = {field.name: field.default for field in dataclasses.fields(transformers.TrainingArguments)}
    ours = {
        name: field.get_default(call_default_factory=True) for name, field in TrainingArguments.model_fields.items()
    }
    assert ours.keys() <= theirs.keys()
    assert not ours.keys() & RESERVED.keys()
    differing = {name for name in ours if ours[name] != theirs[name] and (ours[name] or theirs[name])}
    assert differing == {"max_steps", "logging_steps"}


def test_the_usual_recipe_is_a_good_spec() -> None:
    import yaml

    path = Path(__file__).parents[2] / "ops" / "examples" / "training" / "bert-recipe.yaml"
    spec = parse_spec(yaml.safe_load(path.read_text()))
    assert isinstance(spec, TrainingSpec)
    arguments = spec.arguments
    assert (arguments["num_train_epochs"], arguments["warmup_steps"], arguments["weight_decay"]) == (3, 500, 0.01)
