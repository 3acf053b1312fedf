"""The built wheel in a folder where a user has modules called `jobs`, `scheduler` and `worker`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 600


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("jobs", "scheduler", "worker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, timeout=_TIMEOUT_SECONDS)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site_packages(wheel: Path) -> Path:
    """A folder with the files that the wheel installs."""
    target = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's folder, with modules of their own under our packages' names."""
    (tmp_path / "jobs.py").write_text("WHOSE = 'the user'\n")
    (tmp_path / "scheduler.py").write_text("import jobs\nWHOSE = jobs.WHOSE\n")
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("WHOSE = 'the user'\n")
    return tmp_path


def run(home: Path, site_packages: Path, *argv: str) -> str:
    """What a Python that finds the user's folder before the installed packages prints."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(home), str(site_packages)])}
    done = subprocess.run(
        [sys.executable, *argv], cwd=home, env=environ, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_data_file(site_packages: Path) -> None:
    for package in ("jobs", "scheduler", "worker"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc") and "sdk" not in path.parts:
                assert (site_packages / path.relative_to(ROOT)).exists(), path


_BOTH = """
import jobs, scheduler, worker
assert jobs.WHOSE == scheduler.WHOSE == worker.WHOSE == "the user"
"""
_CLIENT = """
import stoker
assert stoker.__file__.startswith(SITE), stoker.__file__
spec = stoker.InferenceSpec(task="embeddings", model="org/model", input=stoker.InputSpec(path="rows.jsonl"))
with stoker.Client("http://127.0.0.1:1", retry_seconds=0) as client:
    try:
        client.submit(spec)
    except stoker.StokerError as error:
        assert type(error) is stoker.ServiceUnavailable, error
import sys
heavy = {"torch", "transformers", "fastapi", "starlette", "uvicorn", "sqlalchemy", "celery", "numpy", "pyarrow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
ours = [module for name, module in sys.modules.items() if name.startswith("stoker._own.")]
assert len(ours) > 10
assert all(module.__file__.startswith(SITE) for module in ours)
"""


@pytest.mark.parametrize("parts", [(_BOTH, _CLIENT), (_CLIENT, _BOTH)], ids=["theirs first", "ours first"])
def test_a_program_has_its_own_modules_and_the_client(home: Path, site_packages: Path, parts: tuple[str, str]) -> None:
    program = home / "program.py"
    program.write_text(f"SITE = {str(site_packages)!r}\n" + "".join(parts) + _BOTH)
    run(home, site_packages, "program.py")


def test_the_command_starts_beside_modules_of_the_same_names(home: Path, site_packages: Path) -> None:
    assert "Commands" in run(home, site_packages, "-m", "stoker", "--help")
    script = "import sys; from stoker.__main__ import main; sys.argv = ['stoker', '--help']; sys.exit(main())"
    assert "Commands" in run(home, site_packages, "-c", script)


_MODULE = """
import torch
from torch import nn

from stoker.training import Parts, Phase, Setup


def build(setup: Setup) -> Parts:
    model = nn.Linear(1, 1)

    def loss(batch):
        return model(batch).square().mean()

    rows = [torch.ones(1), torch.zeros(1)]
    phase = Phase(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), loss=loss)
    return Parts(models={"model": model}, phases=[phase], train=rows)
"""


def test_a_module_and_a_recipe_are_rehearsed_beside_them(home: Path, site_packages: Path) -> None:
    (home / "my_module.py").write_text(_MODULE)
    program = home / "program.py"
    program.write_text(
        "import stoker\n"
        "rehearsal = stoker.training.rehearse('my_module.py', arguments={'max_steps': 2})\n"
        "assert len(rehearsal.losses) == 2\n"
        "open('my_module.py', 'a').write('import jobs')\n"
        "try:\n"
        "    stoker.training.rehearse('my_module.py')\n"
        "    raise SystemExit('a job would import another jobs')\n"
        "except stoker.InvalidSpec as error:\n"
        "    assert 'would load that one; rename' in error.message\n"
        "stoker.training.rehearse('recipes.ctc', arguments={'max_steps': 1})\n"
        f"{_BOTH}"
    )
    run(home, site_packages, "program.py")
