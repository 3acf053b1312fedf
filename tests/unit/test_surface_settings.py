"""The settings are frozen: a change of a name or default changes running installations, and needs a changelog line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from jobs.config.settings import Settings

REFERENCE = Path(__file__).parents[2] / "ops" / "docs" / "reference.md"
SETTINGS: dict[str, Any] = {
    "data_dir": Path("~/.stoker"),
    "database_url": "",
    "redis_url": "",
    "store_url": "",
    "host": "127.0.0.1",
    "port": 8470,
    "api_processes": 1,
    "url": "",
    "api_key": SecretStr(""),
    "max_upload_bytes": 20 * 2**30,
    "connections": 1000,
    "request_seconds": 20.0,
    "client_idle_seconds": 60.0,
    "key_uploads": 8,
    "projects": {},
    "input_roots": [],
    "output_roots": [],
    "code_roots": [],
    "input_urls": [],
    "trusted_remote_code": [],
    "max_row_bytes": 16 * 2**20,
    "max_dataset_bytes": 100 * 2**30,
    "max_image_pixels": 64_000_000,
    "max_audio_seconds": 4 * 3600,
    "batch_lines": 1_000_000,
    "webhook_private_hosts": [],
    "models": {},
    "any_model": False,
    "slots": 0,
    "slot_threads": 0,
    "encode_threads": 0,
    "host_name": "",
    "labels": [],
    "warm_models": 2,
    "chunk_seconds": 2.0,
    "packed_attention": "auto",
    "lease_seconds": 15.0,
    "doorbell_seconds": 5.0,
    "doorbell_rings": 3,
    "preemptable_seconds": 300.0,
    "slot_seconds": 15.0,
    "sweep_seconds": 1.0,
    "leader_seconds": 5.0,
    "grace_seconds": 10.0,
    "stall_seconds": 300.0,
    "stall_limits": {},
    "chunk_crashes": 2,
    "chunk_attempts": 5,
    "job_crashes": 5,
    "retry_seconds": 1.0,
    "retry_max_seconds": 60.0,
    "webhook_timeout_seconds": 10.0,
    "webhook_attempts": 18,
    "webhook_retry_seconds": 5.0,
    "webhook_retry_max_seconds": 3600.0,
    "upload_days": 30.0,
    "job_days": 0.0,
    "webhook_days": 30.0,
    "log_lines": 10_000,
}


def shown(default: Any) -> str:
    """A default as the reference writes it."""
    if default == "" or isinstance(default, SecretStr):
        return "empty"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_settings_and_their_defaults_are_these() -> None:
    assert {name: field.default for name, field in Settings.model_fields.items()} == SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_the_reference_has_each_setting_with_its_default(name: str) -> None:
    row = f"| `STOKER_{name.upper()}` | {shown(SETTINGS[name])} | "
    assert row in REFERENCE.read_text(encoding="utf-8")


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "stoker.toml"
    config.write_text("lease_secods = 30\n")
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    with pytest.raises(ValidationError, match="lease_secods"):
        Settings()


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "stoker.toml"
    config.write_text('lease_seconds = 30\nslots = 3\ninput_roots = ["/data"]\n')
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    monkeypatch.setenv("STOKER_SLOTS", "5")
    monkeypatch.setenv("STOKER_OUTPUT_ROOTS", '["/"]')
    settings = Settings()
    assert (settings.lease_seconds, settings.slots) == (30.0, 5)
    assert (settings.input_roots, settings.output_roots) == ([Path("/data")], [Path("/")])
