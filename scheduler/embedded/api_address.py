"""Where clients find the API, and which key they send to it: as set, or as a stack on this machine has written down."""

from __future__ import annotations

from urllib.parse import urlsplit

from jobs.config.settings import Settings
from scheduler.embedded.data_dir import running_url

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def find_url(settings: Settings) -> str:
    """Where the API of these settings is: as set, else where the data directory's stack serves, else the default."""
    if settings.url:
        return settings.url
    if running := running_url(settings.data_dir):
        return running
    try:
        return settings.url_path.read_text().strip()
    except OSError:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
        return f"http://{host}:{settings.port}"


def find_key(settings: Settings, url: str) -> str:
    """The key to send: as set, else the local stack's own, which goes to this machine only."""
    if key := settings.api_key.get_secret_value():
        return key
    if settings.url and urlsplit(url).hostname not in _LOOPBACK:
        return ""
    try:
        return settings.local_key_path.read_text().strip()
    except OSError:
        return ""
