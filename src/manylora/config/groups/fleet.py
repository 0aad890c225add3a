"""Settings of engines on several machines behind several edges."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """Engines on other machines: their addresses at an edge, and the address on which an engine listens."""

    engines: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.host_and_port,
        text="""
        Addresses of the engines of the base, as `host:port`. A server with any of them starts no engine of its own: it
        sends each request to the engine that can begin it first. All of them serve the same base.
        """,
    )
    listen: str = setting(
        "127.0.0.1:7070",
        check=checks.host_and_port,
        text="""
        Address on which `manylora engine` listens for edges; port 0 takes a free one.
        """,
    )
    allow_public: bool = setting(
        False,
        text="""
        Whether `fleet.listen` may be an address that is neither loopback nor private. Prompts and replies are encrypted
        with `fleet.tls_certificate` alone.
        """,
    )
    secret_file: str = setting(
        "",
        text="""
        File with the secret of the fleet, 16 bytes at least, the same at every edge and every engine; only its owner
        may read it. Edge and engine show each other that they know it, and never send it. It may be empty where every
        edge and engine has `fleet.tls_certificate` and `fleet.tls_authority`: the certificates then are the proof.
        """,
    )
    tls_certificate: str = setting(
        "",
        text="""
        File with the certificate of an engine, in PEM; empty: its connections are not encrypted. At an edge: the
        certificate that it shows to engines.
        """,
    )
    tls_key: str = setting(
        "",
        text="""
        File with the private key of that certificate, in PEM.
        """,
    )
    tls_authority: str = setting(
        "",
        text="""
        File with the certificates, in PEM, of the authority that signs those of this fleet and no others. An edge with
        it encrypts its connections, and accepts no engine without such a certificate for its address. An engine with it
        accepts no edge without such a certificate.
        """,
    )
    peer_timeout_s: float = setting(
        10.0,
        low=1.0,
        text="""
        Seconds after which an edge or an engine that sends nothing counts as gone. Each sends a sign of life twice a
        second.
        """,
    )
    edge_gone_s: float = setting(
        60.0,
        low=0.1,
        text="""
        Seconds after the end of an edge's connection from which an engine hands the counts that this edge has not
        recorded to another edge. They are recorded and not charged.
        """,
    )
    counts_dir: str = setting(
        "",
        text="""
        Folder in which `manylora engine` keeps the counts of tokens until an edge has recorded them. Empty: `fleet` in
        the cache folder. The engines of one machine may share it.
        """,
    )
