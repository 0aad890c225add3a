"""Files over HTTP below an address that the operator names. httpx2 is imported at the first use.

A server may hold a tenant's files, so a redirect from it is not trusted. The client follows a redirect only where the
operator allows it, never with a credential, and never to an address that is not public.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from manylora.adapters.sources.download import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    FileReplaced,
    RemoteFile,
    StoreDenies,
    StoreRefused,
)
from manylora.http.public_addresses import HTTPS_PORT, public_address

if TYPE_CHECKING:
    import ssl

    import httpx2

VERSION_HEADERS = (
    "x-amz-version-id",
    "x-goog-generation",
    "x-ms-version-id",
    "repr-digest",
    "digest",
    "content-md5",
    "x-goog-hash",
    "x-amz-checksum-sha256",
    "x-checksum-sha256",
)
"""Headers whose value differs for different content. An ETag is none of them: many servers make it of size and time."""
MAX_REDIRECTS = 5
MAX_WORTH_ANOTHER_TRY = 599
MAX_VERSION_CHARACTERS = 256
_CHUNK_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class RedirectRule:
    """The hosts that a redirect may lead to, besides the server itself.

    hosts    names that the operator lists, with http or https, at any address and port
    public   whether any other host is allowed too, with https at port 443, if all its addresses are public
    """

    hosts: frozenset[str] = frozenset()
    public: bool = False


class HttpPlace:
    """An address that the operator names, with its credentials and its rule for redirects."""

    def __init__(self, url: str, rule: RedirectRule, token: str = "") -> None:
        self._url = url.rstrip("/")
        self._rule = rule
        self._token = token

    @asynccontextmanager
    async def opened(self) -> "AsyncIterator[HttpFiles]":
        """Open the files below the address; the connections close at the end of the context."""
        import httpx2

        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        # It follows no redirect by itself; `HttpFiles` looks at each.
        async with httpx2.AsyncClient(verify=_trusted(), timeout=timeout, limits=limits) as client:
            yield HttpFiles(self._url, self._rule, self._token, client)


class HttpFiles:
    """A `FileStore` below one address."""

    def __init__(self, url: str, rule: RedirectRule, token: str, client: "httpx2.AsyncClient") -> None:
        self._url = url
        self._rule = rule
        self._token = token
        self._client = client

    async def look_up(self, path: str) -> RemoteFile | None:
        async with self.answer("HEAD", quote(path)) as answer:
            if answer.status_code in (404, 410):
                return None
            check_status(answer)
            size, modified = answer.headers.get("content-length", ""), answer.headers.get("last-modified")
            version = _version(answer)
        if not (size.isascii() and size.isdecimal()):
            raise StoreRefused("it does not give the size of its files")
        return RemoteFile(path, int(size), answer.headers.get("etag"), _as_iso(modified), version=version)

    async def read(self, file: RemoteFile, start: int, stop: int) -> AsyncGenerator[memoryview]:
        headers = _conditions(file)
        if (start, stop) != (0, file.num_bytes):
            headers["range"] = f"bytes={start}-{stop - 1}"
        async with self.answer("GET", quote(file.path), headers) as answer:
            if answer.status_code in (404, 410, 412, 416):
                raise FileReplaced
            check_status(answer)
            _check_version(answer, file, is_part="range" in headers)
            with _translated():
                async for chunk in answer.aiter_raw(_CHUNK_BYTES):
                    yield memoryview(chunk)

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> "AsyncIterator[httpx2.Response]":
        """Return the answer to a request, of any status, with its body unread. Raises as `FileStore`.

        `path` is quoted, and may have a query. The client has followed the redirects that the rule allows.
        """
        import httpx2

        home = httpx2.URL(f"{self._url}/{path}")
        url = home
        for _ in range(MAX_REDIRECTS + 1):
            request = await self._request(method, url, home, headers or {})
            with _translated():
                answer = await self._client.send(request, stream=True)
            try:
                if not answer.has_redirect_location:
                    yield answer
                    return
                url = self._target(url, answer.headers["location"])
            finally:
                await answer.aclose()
        raise StoreRefused(f"it redirects more than {MAX_REDIRECTS} times")

    async def _request(
        self, method: str, url: "httpx2.URL", home: "httpx2.URL", headers: Mapping[str, str]
    ) -> "httpx2.Request":
        own = {"accept-encoding": "identity", "user-agent": "manylora", **headers}
        if _origin(url) == _origin(home):
            own |= {"authorization": f"Bearer {self._token}"} if self._token else {}
            return self._client.build_request(method, url, headers=own)
        if url.host in self._rule.hosts:
            return self._client.build_request(method, url, headers=own)
        # The connection goes to the checked address: a second look-up of the name could give another one.
        address = await _public_address(url.host)
        own["host"] = url.host
        names = {"sni_hostname": url.host}  # the certificate must be for this name
        return self._client.build_request(method, url.copy_with(host=address), headers=own, extensions=names)

    def _target(self, url: "httpx2.URL", location: str) -> "httpx2.URL":
        """Return the target of a redirect. Raises `StoreRefused` if the rule does not allow it."""
        import httpx2

        try:
            target = url.join(location)
        except (httpx2.InvalidURL, ValueError) as error:
            raise StoreRefused("it redirects to what is no address") from error
        is_plain = target.scheme in ("http", "https") and not target.userinfo and bool(target.host)
        is_home = _origin(target) == _origin(httpx2.URL(self._url))
        is_listed = target.host in self._rule.hosts
        is_public = self._rule.public and target.scheme == "https" and target.port in (None, HTTPS_PORT)
        if not is_plain or not (is_home or is_listed or is_public):
            raise StoreRefused("it redirects to where it may not (adapters.redirect_hosts)")
        return target


def check_status(answer: "httpx2.Response") -> None:
    """Raise as `FileStore` for every status that is not a success."""
    status = answer.status_code
    if status in (401, 403):
        raise StoreDenies
    if status in (408, 425, 429) or 500 <= status <= MAX_WORTH_ANOTHER_TRY:
        raise ConnectionError(f"status {status}")
    if not 200 <= status < 300:
        raise StoreRefused(f"it answers with status {status}")


async def _public_address(host: str) -> str:
    """Return an address of `host` if all its addresses are public.

    Raises `StoreRefused` if one is not, `OSError` if the look-up fails.
    """
    if (address := await public_address(host)) is None:
        raise StoreRefused("it redirects to an address that is not public")
    return address


def _origin(url: "httpx2.URL") -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@cache
def _trusted() -> "ssl.SSLContext":
    """Return the system's certificates. They are read once a process, which takes tens of milliseconds."""
    import httpx2

    return httpx2.create_ssl_context()


def _conditions(file: RemoteFile) -> dict[str, str]:
    if file.etag is not None and not file.etag.startswith("W/"):
        return {"if-match": file.etag}
    if file.etag is None and file.modified is not None:
        return {"if-unmodified-since": format_datetime(datetime.fromisoformat(file.modified), usegmt=True)}
    return {}


def _check_version(answer: "httpx2.Response", file: RemoteFile, *, is_part: bool) -> None:
    """Raise as `FileStore` unless a reply has the file's version: servers may ignore conditions and ranges."""
    if is_part and answer.status_code != 206:
        raise StoreRefused("it does not send parts of files")
    given = (
        answer.headers.get("content-range", "").rpartition("/")[2] if is_part else answer.headers.get("content-length")
    )
    if given is not None and given != str(file.num_bytes):
        raise FileReplaced
    etag = answer.headers.get("etag")
    if file.etag is not None and etag is not None and etag != file.etag:
        raise FileReplaced
    version = _version(answer)
    if not is_part and file.version is not None and version is not None and version != file.version:
        raise FileReplaced  # some servers send a part's own checksum with the part


def _version(answer: "httpx2.Response") -> str | None:
    """Return the first of `VERSION_HEADERS` that an answer has, with its name."""
    found = ((name, answer.headers.get(name)) for name in VERSION_HEADERS)
    return next((f"{name}={value[:MAX_VERSION_CHARACTERS]}" for name, value in found if value), None)


def _as_iso(date: str | None) -> str | None:
    try:
        return None if date is None else parsedate_to_datetime(date).astimezone(UTC).isoformat()
    except ValueError:
        return None


@contextmanager
def _translated() -> Iterator[None]:
    import httpx2

    try:
        yield
    except (httpx2.TransportError, httpx2.StreamError) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
