"""Unmodified client libraries drive a real stack; see README.md beside this file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config.settings import Settings
from tests.support import tiny
from tests.support.stack import Stack, stack

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Path]]:
    """A stack, and a tiny model that chats."""
    folder = tmp_path_factory.mktemp("clients")
    model = tiny.tiny_causal_lm(folder / "writer", chat_template=tiny.CHAT_TEMPLATE)
    with stack(folder / "data", slots=1) as up:
        yield up, model


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_client_library_works_unmodified(running: tuple[Stack, Path], program: Path, tmp_path: Path) -> None:
    python = os.environ.get("CLIENTS_PYTHON")
    if python is None:
        pytest.skip("CLIENTS_PYTHON names no environment of tests/clients/requirements.txt")
    up, model = running
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "OPENAI_BASE_URL": f"{up.url}/v1",
        "OPENAI_API_KEY": Settings(data_dir=up.data_dir).local_key_path.read_text().strip(),
        "CLIENTS_MODEL": str(model),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    ended = subprocess.run(
        [python, str(program)], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
