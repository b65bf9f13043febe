"""Input at an address in trouble: what is final, what is waited for, and for how long."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest
import web_faults as faults
from multidict import CIMultiDict
from unbroken_samples import NAME, prepared
from web_faults import Server

from glomo_dist.data.preparing.sources import documents
from glomo_dist.data.storage import patience
from glomo_dist.data.storage.patience import insist
from glomo_dist.data.storage.places import Address, read_place
from glomo_dist.runtime.errors import DataError

pytestmark = pytest.mark.usefixtures("quick")

FINAL = {"404": "does not exist", **{n: f"cannot be read: .*{n}" for n in ("403", "401", "410")}}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("number", FINAL)
def test_what_is_final_is_not_tried_again(web: Server, tmp_path: Path, number: str, later: bool) -> None:
    web.faults[NAME] = [faults.cut_after(100_000)] * later
    web.always[NAME] = faults.code(int(number))
    with pytest.raises(DataError, match=rf"{web.address}/{NAME} {FINAL[number]}"):
        prepared(f"{web.address}/{NAME}", tmp_path / "out")
    assert web.asked[NAME] == 1 + later


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid"])
def test_a_host_that_never_answered_is_not_waited_for(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=rf"http://{host}/a\.txt cannot be read: .*Check the file"):
        list(documents([f"http://{host}/a.txt"]))
    assert "again" not in capfd.readouterr().err


def test_a_host_that_answered_is_waited_for(web: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(documents([f"{web.address}/{NAME}"]))
    web.shutdown()
    web.server_close()
    with pytest.raises(
        DataError, match=r"b\.txt cannot be read: .*[Cc]onnect.*\(6 tries\)\. Try again later"
    ) as error:
        list(documents([f"{web.address}/b.txt"]))
    assert str(error.value).count("cannot be read") == 1
    assert capfd.readouterr().err.count("trying again") == 5


def test_a_bad_certificate_is_final() -> None:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise aiohttp.ClientConnectorCertificateError(None, ssl.CertificateError("self-signed"))  # type: ignore[arg-type]

    insist(lambda: None, "https://host/b")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        insist(attempt, "https://host/a")
    assert len(tried) == 1


def tries(error: Exception, name: str) -> int:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise error

    with pytest.raises((type(error), DataError)):
        insist(attempt, name)
    return len(tried)


def test_what_may_pass() -> None:
    insist(lambda: None, "https://host/b")  # it has answered, the other never
    for error in (ConnectionRefusedError(), socket.gaierror(socket.EAI_AGAIN, "Temporary failure")):
        assert (tries(error, "https://host/a"), tries(error, "https://other/a")) == (6, 1)
    for number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EBUSY, errno.EREMOTEIO):
        assert tries(OSError(number, "trouble"), "https://other/a") == 6
    assert tries(OSError(errno.ENOSPC, "No space left"), "https://host/a") == 1
    for kept in ("simplecache::https://host/a", "zip://b.txt::filecache::https://host/a"):
        assert tries(ConnectionResetError(), kept) == 1, "its cut copy would be taken for the whole"
    assert {status for status in range(400, 510) if patience.status_passes(status)} == {
        408, 425, 429, *range(500, 510),
    }  # fmt: skip


def test_bytes_of_all_pieces_are_counted() -> None:
    reading = patience.Patience("https://host/a")
    for size in (3, 4):
        reading.came(size)

    def cut() -> None:
        raise ConnectionResetError

    with pytest.raises(DataError, match=r"https://host/a cannot be read: .*\(6 tries after 7 bytes\)"):
        reading.insist(cut)


def test_a_server_that_asks_for_time_gets_it(web: Server, capfd: pytest.CaptureFixture[str]) -> None:
    web.faults[NAME] = [faults.code(429, retry_after="1")]
    began = time.monotonic()
    rows = list(documents([f"{web.address}/{NAME}"]))
    assert len(rows) == 1000 and time.monotonic() - began >= 1.0
    assert "the server answers 429, trying again in 1 s (1 of 5)" in capfd.readouterr().err
    web.faults[NAME] = [faults.code(503, retry_after="1")]
    began = time.monotonic()
    assert read_place(Address(f"{web.address}/{NAME}"), 10.0) == (web.folder / NAME).read_bytes()
    assert time.monotonic() - began >= 1.0


def asking(header: str) -> float:
    refused = OSError("429")
    refused.headers = CIMultiDict({"retry-after": header})  # type: ignore[attr-defined]
    return patience.asked_to_wait(refused)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7), (" 30 ", 30), ("86400", 300), ("0", 0), ("-5", 0), ("1.5", 0), ("", 0), ("soon", 0), ("9" * 400, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct 2015", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300), ("1 Jan 99999999999 00:00:00 GMT", 0),
        (f"Mon, 1 Jan 2024 00:00:00 +{10**14}", 0),
    ],
)  # fmt: skip
def test_how_long_a_server_may_ask_for(header: str, seconds: float) -> None:
    assert asking(header) == seconds


def test_a_server_may_name_the_time_when() -> None:
    assert patience.asked_to_wait(OSError("no headers")) == 0
    assert 150 < asking(formatdate(time.time() + 250, usegmt=True)) <= 250
    assert asking(formatdate(time.time() + 600, usegmt=True)) == 300


@pytest.mark.parametrize("name", ["server_error", "cut"])
def test_what_does_not_pass_is_an_error_that_says_how_often(
    web: Server, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    web.faults[NAME] = [faults.cut_after(100_000)]
    web.always[NAME] = faults.server_error if name == "server_error" else faults.cut_after(0)
    what = "503" if name == "server_error" else "payload"
    with pytest.raises(
        DataError, match=rf"{web.address}/{NAME} cannot be read: .*{what}.*\(6 tries after 100,000 bytes\)"
    ) as error:
        prepared(f"{web.address}/{NAME}", tmp_path / "out")
    assert str(error.value).count("cannot be read") == 1
    assert web.asked[NAME] == 6 and capfd.readouterr().err.count("trying again") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["web"], "nothing is left behind"
