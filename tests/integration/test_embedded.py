"""The embedded stack: one per data directory, alive while its parts die, and without leftovers when it ends."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from jobs.config.settings import Settings
from jobs.errors import ServiceUnavailable
from jobs.supervisor import Program
from scheduler.client.http_client import StokerClient
from scheduler.embedded import redis_server
from scheduler.embedded import stack as embedded
from scheduler.embedded.data_dir import AlreadyRunning, StackLock, StackUseLock, is_running
from scheduler.embedded.environment import settings_environment
from tests.conftest import wait_until
from tests.support.frozen import frozen
from tests.support.stack import Stack, bare_stack, stack


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running `stoker up` with two slots; stopped afterwards, with nothing left behind."""
    with stack(tmp_path_factory.mktemp("up") / "data", slots=2) as up:
        yield up


def client_of(running: Stack) -> StokerClient:
    """A client with the stack's own key."""
    return StokerClient(running.url, (running.data_dir / "local.key").read_text().strip(), retry_seconds=20.0)


def is_healthy(running: Stack) -> bool:
    """Whether every part works and all slots are online."""
    with client_of(running) as client:
        try:
            states = [slot["state"] for slot in client.slots()]
            return client.health()["status"] == "ok" and states == ["online"] * running.num_slots
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
    with bare_stack(tmp_path / "data") as killed:
        killed.start()
        killed.kill()
        with stack(tmp_path / "data") as up:  # it waits for the processes that are still ending
            wait_until(lambda: is_healthy(up), "it works")
        wait_until(lambda: not killed.processes(), "all processes of the killed stack are gone")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """A part that does not end must not keep the user waiting."""
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stack_whose_supervision_fails_ends_with_an_error(tmp_path: Path) -> None:
    """Otherwise `stoker up` would look alive with no part of it running."""

    def fail(_num_quick_deaths: int) -> subprocess.Popen[bytes]:
        raise RuntimeError("a defect")

    before = psutil.Process().children()
    failing = embedded.Stack(Settings(data_dir=tmp_path / "data", port=0, slots=1))
    with failing:
        failing._supervisor.start(Program("broken", fail, grace_seconds=1.0))
        with pytest.raises(ServiceUnavailable, match="all parts have ended"):
            failing.wait()
        assert psutil.Process().children() == before


def test_a_port_in_use_is_reported_before_anything_is_started(tmp_path: Path) -> None:
    """A stack that restarts its API for ever would report nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = Stack(tmp_path / "data").run("up", "--port", str(port), code=2)
    assert refused.stderr.startswith(f"error: cannot listen on port {port} of 127.0.0.1")
    assert len(refused.stderr.splitlines()) == 1
    assert not is_running(tmp_path / "data")


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The message must name the directory."""
    (tmp_path / "file").write_text("")
    refused = Stack(tmp_path / "file" / "data").environment
    argv = [sys.executable, "-m", "scheduler.cli", "up", "--port", "0"]
    done = subprocess.run(argv, env=refused, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot create the data directory {tmp_path / 'file' / 'data'}: Not a directory\n"


@pytest.mark.slow
def test_damaged_redis_files_do_not_keep_the_stack_down(tmp_path: Path) -> None:
    """Redis holds no state that matters, so a stack must start after a power cut damaged its files."""
    folder = tmp_path / "data" / "redis"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_bytes(b"this is no append-only file\r\n" * 40)
    with stack(tmp_path / "data") as up:
        wait_until(lambda: is_healthy(up), "it works")
        assert (up.data_dir / "redis.damaged" / "appendonly.aof").exists()


# -- the parts, each by itself -------------------------------------------------------------------------------------


def test_the_lock_is_free_when_the_last_process_is_gone(settings: Settings) -> None:
    """A start must wait for the processes of a killed stack: two workers on one slot would fight."""
    settings.data_dir.mkdir()
    first = StackLock()
    first.take(settings, wait_seconds=1.0)
    (inherited,) = first.inherited
    child = subprocess.Popen(["sleep", "600"], pass_fds=[inherited])
    try:
        assert is_running(settings.data_dir)
        with pytest.raises(AlreadyRunning, match="is already running"):
            StackLock().take(settings, wait_seconds=1.0)
        first.give_back()
        assert not is_running(settings.data_dir)
        second = StackLock()
        with pytest.raises(Exception, match="still run"):
            second.take(settings, wait_seconds=0.1)
        second.give_back()
    finally:
        child.kill()
        child.wait()
    third = StackLock()
    third.take(settings, wait_seconds=10.0)
    third.give_back()


def test_a_stack_in_use_is_not_ended(tmp_path: Path) -> None:
    """The first of two `stoker run` must not take the stack away from the second."""
    owner, other = StackUseLock(tmp_path), StackUseLock(tmp_path)
    owner.share()
    other.share()
    assert not owner.try_take()
    other.close()
    assert owner.try_take()
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
    with pytest.raises(Exception, match="must belong to this user"):
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
