"""How what is at an address is opened (by fsspec) without waiting for ever."""

from __future__ import annotations

from typing import Any

import fsspec

HTTP = ("http", "https")
STALL = 30.0  # seconds without a byte after which a connection is given up
_BLOCK = 16 << 20  # bytes asked for in one request, where the protocol has requests for parts


def file_system(address: str, *, tried_again: bool = False) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it. May raise anything.

    tried_again: by the caller, when something fails, so that the driver of S3 need not.
    """
    protocol = address.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in HTTP:
        import aiohttp  # slow to import

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        options = {"client_kwargs": {"timeout": timeout}}
    elif protocol == "s3":
        limits: dict[str, Any] = {"connect_timeout": STALL, "read_timeout": STALL}
        options = {"config_kwargs": limits | ({"retries": {"max_attempts": 1}} if tried_again else {})}
    filesystem, path = fsspec.core.url_to_fs(address, **options)
    return filesystem, path


def open_in_order(filesystem: Any, path: str, size: int | None = None) -> Any:
    """The file, to be read front to back. size: that it should have, which spares asking for it. May raise anything.

    Of HTTP the whole is asked for in one request: not every server has parts of a file, or says how long it is.
    """
    if "http" in filesystem.protocol:
        return filesystem.open(path, block_size=0, size=size or 1, headers={"Accept-Encoding": "identity"})
    return filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
