"""Addresses that may be called: every kind that is not public is refused, in any notation."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config.addresses import find_addresses, is_public
from jobs.config.settings import Settings
from jobs.errors import ServiceUnavailable, UserError


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "99.255.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255",
        "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1", "2001:200::1",
    ],
)  # fmt: skip
def test_a_public_address_is_called(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1",
        "127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8",
        "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808",
        "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:2::1", "2001:20::1", "2001:db8::1",
        "2002:7f00:1::1", "2002:a00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1",
        "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_not_called(address: str) -> None:
    assert not is_public(ip_address(address))


@given(st.ip_addresses())
def test_what_python_knows_to_be_private_is_never_public(address: Any) -> None:
    assert address.is_global or not is_public(address)


class Resolver:
    """Replaces the system's resolver; has the addresses of each name and counts the lookups."""

    def __init__(self, **answers: list[str] | int) -> None:
        self.answers, self.num_lookups = answers, 0

    def __call__(self, host: str, port: int, **options: Any) -> list[Any]:
        self.num_lookups += 1
        found = self.answers[host.replace(".", "_")]
        if isinstance(found, int):
            raise socket.gaierror(found, "no")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


def test_a_host_is_called_at_its_public_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Resolver(good_test=["1.1.1.1", "1.1.1.1", "2606:4700:4700::1111"], inner_test=["10.0.0.5"])
    names.answers |= {"both_test": ["1.1.1.1", "127.0.0.1"], "none_test": socket.EAI_NONAME, "away_test": -3}
    monkeypatch.setattr(socket, "getaddrinfo", names)
    found = find_addresses("good.test", 443, private_hosts=[])
    assert [str(address) for address in found] == ["1.1.1.1", "2606:4700:4700::1111"]
    for host in ("inner.test", "both.test"):
        with pytest.raises(UserError, match="an address that is not public") as refusal:
            find_addresses(host, 443, private_hosts=[])
        assert "10.0.0.5" not in refusal.value.message, "what names stand for inside is told to nobody"
    with pytest.raises(UserError, match="does not exist"):
        find_addresses("none.test", 443, private_hosts=[])
    with pytest.raises(ServiceUnavailable):
        find_addresses("away.test", 443, private_hosts=[])


@pytest.mark.parametrize(
    ("listed", "is_called"),
    [
        (["10.0.0.5"], True),
        (["10.0.0.0/8"], True),
        (["inner.test"], True),
        (["INNER.test."], True),
        (["192.168.0.0/16", "10.0.0.4", "other.test", "test", "::/0"], False),
    ],
)
def test_the_operator_may_allow_private_addresses(
    listed: list[str], is_called: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(Inner_test=["10.0.0.5"]))
    hosts = Settings(webhook_private_hosts=listed).webhook_private_hosts
    if is_called:
        assert find_addresses("Inner.test", 80, private_hosts=hosts)
    else:
        with pytest.raises(UserError):
            find_addresses("Inner.test", 80, private_hosts=hosts)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "017700000001", "localhost", "::1"])
def test_loopback_is_not_called_however_it_is_written(host: str) -> None:
    with pytest.raises(UserError):
        find_addresses(host, 80, private_hosts=[])


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test", "-"])
def test_an_invalid_host_name_is_reported_in_one_sentence(host: str) -> None:
    with pytest.raises((UserError, ServiceUnavailable)):
        find_addresses(host, 80, private_hosts=[])


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "10.0.0.0/40", "http://inner.test", "inner.test:80", "", "a b", "*"])
def test_an_entry_that_lists_nothing_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValidationError, match="webhook_private_hosts"):
        Settings(webhook_private_hosts=[entry])
