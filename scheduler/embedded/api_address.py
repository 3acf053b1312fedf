"""Where clients find the API, and which key they send to it: as set, or as a stack on this machine has written down."""

from __future__ import annotations

from urllib.parse import urlsplit

from jobs.config.settings import ApiAddress
from scheduler.embedded.data_dir import running_url

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def find_url(api: ApiAddress) -> str:
    """Where the API is: as set, else where the data directory's stack serves, else the default."""
    if api.url:
        return api.url
    if running := running_url(api.data_dir):
        return running
    try:
        return api.url_path.read_text().strip()
    except OSError:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(api.host, api.host)
        return f"http://{host}:{api.port}"


def find_key(api: ApiAddress, url: str) -> str:
    """The key to send: as set, else the local stack's own, which goes to this machine only."""
    if key := api.api_key.get_secret_value():
        return key
    if api.url and urlsplit(url).hostname not in _LOOPBACK:
        return ""
    try:
        return api.local_key_path.read_text().strip()
    except OSError:
        return ""
