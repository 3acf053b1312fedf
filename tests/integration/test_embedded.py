"""The embedded stack: one on a data directory, alive while its parts die, and gone without a trace when it ends."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs.config.settings import Settings
from jobs.errors import ServiceUnavailable
from scheduler.client.http_client import StokerClient
from scheduler.embedded import redis_server
from scheduler.embedded.data_dir import AlreadyRunning, StackLock, Use, is_running
from scheduler.embedded.environment import settings_environment
from tests.conftest import wait_until
from tests.support.frozen import frozen
from tests.support.stack import Stack, bare_stack, stack


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """A running `stoker up` with two slots; stopped afterwards, with nothing left behind."""
    with stack(tmp_path / "data", slots=2) as up:
        yield up


def client_of(running: Stack) -> StokerClient:
    """A client with the stack's own key."""
    return StokerClient(running.url, (running.data_dir / "local.key").read_text().strip(), retry_seconds=20.0)


def is_healthy(running: Stack) -> bool:
    """Whether every part works and both slots are online."""
    with client_of(running) as client:
        try:
            return client.health()["status"] == "ok" and [slot["state"] for slot in client.slots()] == ["online"] * 2
        except ServiceUnavailable:
            return False


def test_ready_means_ready_and_only_one_stack_lives_in_a_directory(running: Stack) -> None:
    """A second stack would fight over the slots; a first request right after the line must not fail."""
    assert is_healthy(running)
    assert stat.S_IMODE(running.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((running.data_dir / "local.key").stat().st_mode) == 0o600
    with redis.Redis(unix_socket_path=str(running.data_dir / "redis.sock")) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
        assert {name: dict(client.config_get(name))[name] for name in wanted} == wanted
    second = running.run("up", "--port", "0", code=2)
    assert second.stderr == f"error: a stack is already running on {running.data_dir}, at {running.url}\n"
    assert is_healthy(running)
    assert "2 of 2 online" in running.run("doctor").stdout


@pytest.mark.slow
def test_parts_that_are_killed_come_back_at_the_same_place(running: Stack) -> None:
    """One killed process must not end the service, nor move it to another port."""
    for role in ("redis", "scheduler", "supervisor"):
        (victim,) = running.of_role(role)
        victim.kill()
        wait_until(lambda role=role, pid=victim.pid: [p.pid for p in running.of_role(role)] not in ([], [pid]), role)
        wait_until(lambda: is_healthy(running), f"healthy again after {role} was killed")


@pytest.mark.slow
def test_nothing_outlives_a_stack_that_was_killed(tmp_path: Path) -> None:
    """Orphans would hold GPUs, and the next start would meet them."""
    with bare_stack(tmp_path / "data", slots=2) as killed:
        killed.start()
        killed.kill()
        with stack(tmp_path / "data", slots=2) as up:  # waits for what is still ending, then works
            wait_until(lambda: is_healthy(up), "it works")
        wait_until(lambda: not killed.processes(), "all processes of the killed stack are gone")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """A part that does not end must not keep a person waiting."""
    with bare_stack(tmp_path / "data", STOKER_GRACE_SECONDS="600") as up:
        up.start()
        assert up.up is not None
        (supervisor,) = up.of_role("supervisor")
        with frozen(supervisor.pid):  # it cannot end in order
            up.up.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                up.up.wait(1.0)
            assert up.stop() == 0
            wait_until(lambda: not up.processes(), "nothing is left")


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    """A stack that restarts its API for ever would say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = Stack(tmp_path / "data").run("up", "--port", str(port), code=2)
    assert refused.stderr.startswith(f"error: port {port} on 127.0.0.1 cannot be served")
    assert len(refused.stderr.splitlines()) == 1
    assert not is_running(tmp_path / "data")


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The user must learn which directory it is."""
    (tmp_path / "file").write_text("")
    refused = Stack(tmp_path / "file" / "data").environment
    argv = [sys.executable, "-m", "scheduler.cli", "up", "--port", "0"]
    done = subprocess.run(argv, env=refused, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"error: the data directory {tmp_path / 'file' / 'data'} cannot be made: Not a directory\n"


@pytest.mark.slow
def test_damaged_redis_files_do_not_keep_the_stack_down(tmp_path: Path) -> None:
    """No work lives in Redis, so its files may go; a power cut must not cost a person's morning."""
    folder = tmp_path / "data" / "redis"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_bytes(b"this is no append-only file\r\n" * 40)
    with stack(tmp_path / "data", slots=2) as up:
        wait_until(lambda: is_healthy(up), "it works")
        assert (up.data_dir / "redis.damaged" / "appendonly.aof").exists()


# -- the parts, each by itself -------------------------------------------------------------------------------------


def test_the_lock_is_free_when_the_last_process_is_gone(settings: Settings) -> None:
    """A start must wait for the processes of a killed stack: two workers on one slot would fight."""
    settings.data_dir.mkdir()
    first = StackLock()
    first.take(settings, patience_seconds=1.0)
    (inherited,) = first.inherited
    child = subprocess.Popen(["sleep", "600"], pass_fds=[inherited])
    try:
        assert is_running(settings.data_dir)
        with pytest.raises(AlreadyRunning, match="is already running"):
            StackLock().take(settings, patience_seconds=1.0)
        first.give_back()
        assert not is_running(settings.data_dir)
        second = StackLock()
        with pytest.raises(Exception, match="do not end"):
            second.take(settings, patience_seconds=0.1)
        second.give_back()
    finally:
        child.kill()
        child.wait()
    third = StackLock()
    third.take(settings, patience_seconds=10.0)
    third.give_back()


def test_a_stack_in_use_is_not_ended(tmp_path: Path) -> None:
    """The first of two `stoker run` must not take the stack away from the second."""
    owner, other = Use(tmp_path), Use(tmp_path)
    owner.begin()
    other.begin()
    assert not owner.try_end_all()
    other.close()
    assert owner.try_end_all()
    owner.close()


def test_children_read_the_very_settings_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on another database than the API would never find its jobs."""
    made = Settings(data_dir=tmp_path, slots=3, input_roots=[Path("/")], trusted_remote_code=["a/b"], lease_seconds=2.5)
    for name, value in settings_environment(made).items():
        monkeypatch.setenv(name, value)
    assert Settings() == made


def test_the_clients_key_stays_out_of_the_children(tmp_path: Path) -> None:
    """A secret that is not needed must not be where it can leak."""
    variables = settings_environment(Settings(data_dir=tmp_path, api_key="sk-secret", url="http://elsewhere"))  # type: ignore[arg-type]
    assert variables.keys() == {"STOKER_DATA_DIR", "PYTHONPATH"}


def test_a_deep_data_directory_has_its_socket_elsewhere(tmp_path: Path) -> None:
    """A socket's path may have some hundred bytes; a longer one would keep Redis from starting."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    settings = Settings(data_dir=deep)
    redis_server.prepare_folders(settings)
    folder = settings.redis_socket.parent
    assert folder != deep
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(Exception, match="not this user's own folder"):
        redis_server.prepare_folders(settings)
    folder.rmdir()


def test_redis_is_found_on_the_path_or_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person without a Redis of their own must need nothing but pip."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_redis_server().name == "redis-server"
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert redis_server.find_redis_server() == own
