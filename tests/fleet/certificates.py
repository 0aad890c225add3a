"""Certificates for tests: an authority, and a key with its certificate for 127.0.0.1, as files in PEM."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

YEAR = datetime.timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Paths of files. authority: the certificate of the one that has signed `certificate`."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, address: str = "127.0.0.1") -> Certificates:
    """Write an authority of its own, and a certificate for an address."""
    folder.mkdir(parents=True, exist_ok=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _named("authority", "authority", authority_key.public_key())
    signed_authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        authority_key, hashes.SHA256()
    )
    own = _named("engine", "authority", key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
    )
    paths = Certificates(
        authority=folder / "authority.pem", certificate=folder / "certificate.pem", key=folder / "key.pem"
    )
    paths.authority.write_bytes(signed_authority.public_bytes(serialization.Encoding.PEM))
    signed = own.sign(authority_key, hashes.SHA256())
    paths.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _named(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - YEAR,
        not_valid_after=now + YEAR,
    )
