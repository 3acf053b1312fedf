"""One try of a delivery against real receivers: signed as the SDK checks it, to the checked address and no other."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import trustme

from jobs.config.settings import Settings
from jobs.errors import UserError
from jobs.ledger.records.webhooks import Sending
from scheduler.control import webhook_sender
from scheduler.control.webhook_sender import Undelivered, check_url, send
from tests.support.receiver import receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A timeout that a slow machine does not reach; loopback may be called."""
    return Settings(data_dir=tmp_path, webhook_private_hosts=["127.0.0.1"], webhook_timeout_seconds=60.0)


def sending(url: str, event_type: str = "batch.completed") -> Sending:
    """A try of a delivery, as it is claimed."""
    event = {
        "id": "event_1",
        "object": "event",
        "created_at": 1,
        "type": event_type,
        "data": {"id": "batch_ä"},
    }
    return Sending("delivery_1", "webhook_1", 1, url, SECRET, orjson.dumps(event).decode(), time.time())


class Resolver:
    """Stands in for the system's resolver for some names."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers, self.num_lookups, self._real = answers, 0, socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        name = str(host).replace(".", "_")
        if name not in self.answers:
            return self._real(host, port, *arguments, **options)
        self.num_lookups += 1
        found = self.answers[name].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Names of the test's own."""
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


def test_the_sdk_unwraps_what_is_sent(settings: Settings) -> None:
    with receiver(204) as hooks:
        for event_type in ("batch.completed", "job.completed", "webhook.test"):
            assert send(sending(f"{hooks.url}?token=a%2Fb", event_type), settings) == 204
        client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
        for got, event_type in zip(hooks.received, ("batch.completed", "job.completed", "webhook.test"), strict=True):
            event = client.webhooks.unwrap(got.body, got.headers)
            assert (event.type, event.id, event.data.id) == (event_type, "event_1", "batch_ä")
            assert got.path == "/hook?token=a%2Fb"
            assert got.headers["host"] == f"127.0.0.1:{hooks.port}"
            assert got.headers["content-type"] == "application/json"
            forged = got.body.replace(b"batch_", b"catch_")
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.unwrap(forged, got.headers)
        client.close()


def test_the_signature_is_that_of_the_published_example() -> None:
    """The values are Standard Webhooks' own test vector."""
    body = b'{"test": 2432232314}'
    example = Sending(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook_1", 1, "http://x.test", SECRET, body.decode(), 1614265330.5
    )
    headers = webhook_sender._signed(example, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


@pytest.mark.parametrize("status", [199, 300, 400, 401, 404, 410, 429, 500, 503])
def test_any_answer_but_a_2xx_is_a_failed_try(settings: Settings, status: int) -> None:
    with receiver(status) as hooks, pytest.raises(Undelivered) as failure:
        send(sending(hooks.url), settings)
    if status == 199:  # no final answer
        assert failure.value.status_code is None
    else:
        assert (failure.value.message, failure.value.status_code) == (f"HTTP status {status}", status)
    assert failure.value.retryable == (status != 410)


def test_a_redirect_is_not_followed(settings: Settings) -> None:
    with receiver(200) as inner:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(307)
            handler.send_header("Location", inner.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with receiver(redirect) as hooks, pytest.raises(Undelivered, match="HTTP status 307"):
            send(sending(hooks.url), settings)
        assert inner.received == []


def test_a_name_is_resolved_once_and_the_checked_address_is_called(settings: Settings, resolver: Resolver) -> None:
    with receiver(200) as hooks, receiver(200, host="127.0.0.2", port=hooks.port) as inner:
        resolver.answers = {"hooks_test": [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"], ["127.0.0.2"]]}
        url = f"http://hooks.test:{hooks.port}/hook"
        check_url(url, settings)
        with pytest.raises(Undelivered, match=r"'hooks.test' has an address that is not public"):
            send(sending(url), settings)
        assert send(sending(url), settings) == 200
        assert resolver.num_lookups == 3
        (got,) = hooks.received
        assert got.headers["host"] == f"hooks.test:{hooks.port}"
        assert inner.received == []


def test_of_several_addresses_the_first_that_answers_is_called(settings: Settings, resolver: Resolver) -> None:
    with receiver(200) as hooks:
        resolver.answers = {"hooks_test": [["127.0.0.3", "127.0.0.1"]]}
        anywhere = settings.model_copy(update={"webhook_private_hosts": ["hooks.test"]})
        assert send(sending(f"http://hooks.test:{hooks.port}/"), anywhere) == 200


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.2/x", "url: the host '127.0.0.2' has an address that is not public"),
        ("https://[::1]/x", "url: the host '::1' has an address that is not public"),
        ("http://2130706434/", "url: the host '2130706434' has an address that is not public"),
        ("http://[::ffff:127.0.0.1]/", "url: the host '::ffff:127.0.0.1' has an address that is not public"),
        ("ftp://127.0.0.1/", "url: must begin with http:// or https:// and a host"),
        ("file:///etc/passwd", "url: must begin with http:// or https:// and a host"),
        ("/hook", "url: must begin with http:// or https:// and a host"),
        ("http://", "url: must begin with http:// or https:// and a host"),
        ("http://127.0.0.1:0/", "url: must have a port between 1 and 65535, or none"),
        ("http://127.0.0.1:70000/", "url: must have a port between 1 and 65535, or none"),
        ("http://user:pass@127.0.0.1/", "url: must not contain a user or a password"),
        ("http://127.0.0.2\\@127.0.0.1/", "url: must not contain a user or a password"),
        ("http://127.0.0.1/" + "x" * 2000, "url: must have at most 2000 characters"),
        ("http://127.0.0.1/\n", "url: must be a URL"),
        ("http://xn--/", "url: the host 'xn--' does not exist"),
        ("http://a..b/", "url: the host 'a..b' does not exist"),
    ],
)
def test_a_url_that_nothing_may_go_to_is_refused_in_one_sentence(settings: Settings, url: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_url(url, settings)
    assert refusal.value.message.startswith(sentence)
    assert (refusal.value.param, refusal.value.http_status) == ("url", 400)
    with pytest.raises(Undelivered):
        send(sending(url), settings)


def test_the_environments_proxies_are_not_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(200) as hooks, receiver(200) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(sending(hooks.url), settings) == 200
        assert proxy.received == []


# -- receivers that misbehave --------------------------------------------------------------------------------------


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Answers nothing until the sender hangs up."""
    handler.rfile.read(1)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Sends one byte of a header after the other, each soon enough for a timeout that starts again with each."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)  # the test is about this pace


def going(handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection without an answer."""


def rambling(handler: BaseHTTPRequestHandler) -> None:
    """Sends no HTTP."""
    handler.wfile.write(b"\0" * 1000 + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("behaviour", "timeout_seconds", "message"),
    [
        (silent, 0.5, "no response in 0.5 s"),
        (dripping, 0.5, "no response in 0.5 s"),
        (going, 60.0, "no response: the receiver does not speak HTTP"),
        (rambling, 60.0, "no response: the receiver does not speak HTTP"),
    ],
)
def test_a_try_ends_in_time_with_any_receiver(
    settings: Settings, behaviour: Callable[[BaseHTTPRequestHandler], None], timeout_seconds: float, message: str
) -> None:
    settings = settings.model_copy(update={"webhook_timeout_seconds": timeout_seconds})
    with receiver(behaviour) as hooks, pytest.raises(Undelivered) as failure:
        send(sending(hooks.url), settings)
    assert (failure.value.message, failure.value.status_code) == (message, None)


def test_an_endless_answer_is_not_read(settings: Settings) -> None:

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            handler.wfile.write(b"x" * 65536)  # until the connection is closed

    with receiver(endless) as hooks:
        assert send(sending(hooks.url), settings) == 200


def test_a_receiver_that_is_not_there_has_the_systems_error_message(settings: Settings) -> None:
    with receiver() as hooks:
        url = hooks.url
    with pytest.raises(Undelivered, match=r"^no response: connection refused$"):
        send(sending(url), settings)


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """An authority that this process trusts, as an operator's own is."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    webhook_sender._tls.cache_clear()
    yield made
    webhook_sender._tls.cache_clear()


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """A server's end of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_a_certificate_must_be_for_the_name_and_not_for_the_address(
    settings: Settings, resolver: Resolver, authority: trustme.CA
) -> None:
    resolver.answers = {"hooks_test": [["127.0.0.1"]] * 3, "other_test": [["127.0.0.1"]]}
    with receiver(200, tls=server_side(authority.issue_cert("hooks.test"))) as hooks:
        assert send(sending(f"https://hooks.test:{hooks.port}/"), settings) == 200
        for wrong in (f"https://other.test:{hooks.port}/", hooks.url):
            with pytest.raises(Undelivered, match="certificate is not valid"):
                send(sending(wrong), settings)
        assert len(hooks.received) == 1
    with receiver(200, tls=server_side(authority.issue_cert("127.0.0.1"))) as hooks:
        assert send(sending(hooks.url), settings) == 200
        with pytest.raises(Undelivered, match="certificate is not valid"):
            send(sending(f"https://hooks.test:{hooks.port}/"), settings)
    with receiver(200, tls=server_side(trustme.CA().issue_cert("hooks.test"))) as hooks:
        with pytest.raises(Undelivered, match="certificate is not valid"):
            send(sending(f"https://hooks.test:{hooks.port}/"), settings)
        assert hooks.received == []


def test_secrets_are_in_no_log_and_no_representation(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="scheduler"), receiver(500) as hooks, pytest.raises(Undelivered):
        send(sending(hooks.url), settings)
    assert SECRET not in caplog.text + repr(sending("http://x.test"))
    assert json.loads(sending("http://x.test").body)["id"] == "event_1"
