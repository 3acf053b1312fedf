"""Compare text generation end to end with transformers' own ways to generate many texts, in one run.

    python ops/benchmarks/generation.py [--rows 256] [--rounds 3] [--shared-prefix 0] [--report FILE.json]

A Llama with random weights gets prompts of 8 to 256 tokens, cut from the docstrings of Python's standard library, and
generates 8 to 160 tokens for each, greedily. `--shared-prefix` puts the same tokens before each prompt, like a system
prompt. Each round measures in turns on the same cores:

1. end to end: a job through `stoker up` with one warm slot, from submission to completion by the database's clock,
2. static: `generate` over batches of 16, sorted by the length of their prompts, with tensors prepared in advance,
3. continuous: the manager behind `generate_batch` (paged cache, continuous batching), each request with its own
   number of new tokens.

Rates are requested tokens per second. The ratios are medians over the rounds. The texts of 1 are compared with those of
`generate` for each row alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# This folder goes last: it has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path += [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent)]

import torch
import transformers
from daemon import Daemon
from docstrings import standard_library
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from worker import device as devices

BATCH_ROWS = 16
CONTEXT_TOKENS = 1024
SIZES = {
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "large": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
}


@dataclass(frozen=True)
class Wanted:
    """A prompt, and the number of tokens to generate."""

    prompt: list[int]
    max_new_tokens: int


def make_model(folder: Path, texts: list[str], size: str) -> None:
    """Save a Llama in this folder. No token ends its texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=CONTEXT_TOKENS)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        vocab_size=len(fast),
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def make_rows(tokenizer: Any, texts: list[str], count: int, *, shared_prefix: int = 0) -> list[Wanted]:
    """Prompts of 8 to 256 tokens with 8 to 160 tokens to generate; short ones are more frequent, as in practice."""
    chosen = random.Random(0)
    prefix = tokenizer(" ".join(texts[:100]))["input_ids"][:shared_prefix]
    rows: list[Wanted] = []
    while len(rows) < count:
        ids = tokenizer(chosen.choice(texts))["input_ids"]
        length = round(8 * 32 ** chosen.random())
        if len(ids) >= length:
            rows.append(Wanted(prefix + ids[:length], round(8 * 20 ** chosen.random())))
    return rows


def static_side(model: Any, rows: list[Wanted]) -> Callable[[], None]:
    """Run `generate` over batches padded on the left. Each batch runs as long as its longest row."""
    ordered = sorted(rows, key=lambda row: len(row.prompt))
    batches = [ordered[start : start + BATCH_ROWS] for start in range(0, len(ordered), BATCH_ROWS)]
    collated = []
    for batch in batches:
        width = max(len(row.prompt) for row in batch)
        tokens = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in batch], device=model.device)
        collated.append((tokens, mask, max(row.max_new_tokens for row in batch)))

    def run() -> None:
        for tokens, mask, most in collated:
            model.generate(tokens, attention_mask=mask, max_new_tokens=most, do_sample=False)

    return run


def continuous_side(model: Any, rows: list[Wanted]) -> Callable[[], None]:
    """Do what `generate_batch` does, but with each request's own number of new tokens."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run() -> None:
        with model.continuous_batching_context_manager(generation_config=config, timeout=5) as manager:
            for row in sorted(rows, key=lambda row: row.prompt, reverse=True):
                manager.add_request(row.prompt, max_new_tokens=row.max_new_tokens)
            num_left = len(rows)
            while num_left:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    num_left -= 1
                elif result is None and not manager.is_running():
                    raise SystemExit("the continuous batching thread ended")

    return run


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared-prefix", type=int, default=0, help="number of tokens that all prompts begin with")
    parser.add_argument(
        "--model", default="small", choices=sorted(SIZES), help="model size: 12 or 300 million parameters"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    texts = [record["text"] for record in standard_library()]
    with tempfile.TemporaryDirectory(prefix="stoker-benchmark-") as name:
        folder = Path(name)
        make_model(folder / "model", texts, options.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
        rows = make_rows(tokenizer, texts, options.rows, shared_prefix=options.shared_prefix)
        document = {
            "task": "text-generation",
            "model": str(folder / "model"),
            "dtype": options.dtype,
            "input": {"columns": {"text": "prompt", "parameters": "parameters"}},
        }
        lines = [{"prompt": row.prompt, "parameters": {"max_new_tokens": row.max_new_tokens}} for row in rows]
        daemon = Daemon(folder, lines, document)
        with daemon.running():
            report = measure_all(daemon, rows, folder / "model", options)
    show(report)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n")


def measure_all(daemon: Daemon, rows: list[Wanted], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every side in every round, in turns."""
    device = devices.pick_device()
    dtype = devices.resolve_dtype(options.dtype, device)
    devices.prepare(device, num_threads=daemon.num_threads())
    # Two copies, because the manager changes the attention of its model.
    static, continuous = (LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval() for _ in range(2))
    num_wanted = sum(row.max_new_tokens for row in rows)
    sides = {"static": static_side(static, rows), "continuous": continuous_side(continuous, rows)}
    seconds: dict[str, list[float]] = {"end_to_end": [], "static": [], "continuous": []}
    for side in sides.values():
        side()  # choose kernels and capture graphs before the clock runs
    for number in range(1, options.rounds + 1):
        job_id = daemon.run_job()
        seconds["end_to_end"].append(daemon.measure(job_id).seconds)
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
        rates = ", ".join(f"{name} {num_wanted / each[-1]:,.0f}" for name, each in seconds.items())
        print(f"round {number}: tokens/s: {rates}", flush=True)
    return {
        "rows": options.rows,
        "model": options.model,
        "shared_prefix": options.shared_prefix,
        "wanted_tokens": num_wanted,
        "prompt_tokens": sum(len(row.prompt) for row in rows),
        "dtype": str(dtype).removeprefix("torch."),
        "device": devices.device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens_per_second": {name: [num_wanted / one for one in each] for name, each in seconds.items()},
        "ratios": {name: ratios(seconds["end_to_end"], seconds[name]) for name in sides},
        "texts_equal_to_generate_alone": count_equal(daemon, job_id, rows, static, folder),
    }


def count_equal(daemon: Daemon, job_id: str, rows: list[Wanted], model: Any, folder: Path) -> str:
    """Number of texts of a job that equal those of `generate` for the row alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    num_equal = 0
    for row, result in zip(rows, daemon.results(job_id), strict=True):
        prompt = torch.tensor([row.prompt], device=model.device)
        mask = torch.ones_like(prompt)
        tokens = model.generate(prompt, attention_mask=mask, max_new_tokens=row.max_new_tokens, do_sample=False)
        before = tokenizer.decode(row.prompt)
        num_equal += before + result["output"][0]["generated_text"] == tokenizer.decode(tokens[0])
    return f"{num_equal} of {len(rows)}"


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float | list[float]]:
    """Speed of the end-to-end side relative to another, for each round, and the median."""
    each = [other / one for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "rounds": each}


def show(report: dict[str, Any]) -> None:
    """Print the medians."""
    print(
        f"{report['rows']:,} rows, {report['wanted_tokens']:,} new tokens, {report['model']} Llama "
        f"in {report['dtype']} on {report['device']}, {report['threads']} threads"
    )
    for name, rates in report["tokens_per_second"].items():
        print(f"{name:<14}{statistics.median(rates):>10,.1f} tokens/s")
    for name, aim in (("static", ""), ("continuous", "   (target: at least 0.95)")):
        print(f"end to end / {name:<14}{report['ratios'][name]['median']:>6.3f}{aim}")
    print(f"texts equal to `generate` for the row alone: {report['texts_equal_to_generate_alone']}")


if __name__ == "__main__":
    main()
