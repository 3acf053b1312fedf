"""Helpers of the examples: run a stack and `stoker` commands, print titles, read labels."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def say(line: str) -> None:
    """Print the title of a step."""
    print(f"\n{line}", flush=True)


@contextmanager
def stack(data_dir: Path) -> Iterator[Path]:
    """Run `stoker up` on the example's own data directory during the block."""
    up = subprocess.Popen(
        ["stoker", "up", "--data-dir", str(data_dir), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert up.stdout is not None
        for line in up.stdout:
            print(f"   {line.rstrip()}", flush=True)
            if line.startswith("stoker ready"):
                break
        else:
            raise SystemExit(f"stoker up ended with exit code {up.wait()}; see {data_dir / 'logs'}")
        yield data_dir
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait()


def run(data_dir: Path, *arguments: str) -> str:
    """Run a `stoker` command against that stack and return what it prints."""
    command, *rest = arguments
    argv = ["stoker", command, "--data-dir", str(data_dir), *rest]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with exit code {done.returncode}")
    return done.stdout


def top_label(output: dict[str, object] | list[dict[str, object]]) -> object:
    """The best label of a text-classification output."""
    return (output[0] if isinstance(output, list) else output)["label"]
