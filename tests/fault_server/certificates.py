"""Certificates, honest and other, and servers' sides of TLS that use them. Made anew for each run."""

from __future__ import annotations

import ipaddress
import ssl
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NOW: Final = datetime.now(UTC)
_DAY: Final = timedelta(days=1)
_VALID: Final = (_NOW - 2 * _DAY, _NOW + 2 * _DAY)
_EXPIRED: Final = (_NOW - 3 * _DAY, _NOW - _DAY)
_FOR_CLIENTS: Final = ExtendedKeyUsageOID.CLIENT_AUTH
_MANY_NAMES: Final = [x509.DNSName(f"kilroy-{number}.invalid") for number in range(15_000)]


@dataclass(frozen=True, kw_only=True)
class _Party:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _issue(
    name: str,
    issuer: _Party | None,
    *,
    names: Sequence[x509.GeneralName] = (),
    is_authority: bool = False,
    valid: tuple[datetime, datetime] = _VALID,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> _Party:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer or _Party(certificate=None, key=key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        # OpenSSL of Python 3.13's strict mode wants these two.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False
        )
    )
    if is_authority:
        flags = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "encipher_only", "decipher_only"),
            False,
        )  # fmt: skip
        builder = builder.add_extension(
            x509.KeyUsage(key_cert_sign=True, crl_sign=True, **flags), critical=True
        )
    else:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _Party(certificate=builder.sign(signer.key, hashes.SHA256()), key=key)


def _authority(name: str, issuer: _Party | None = None) -> _Party:
    return _issue(name, issuer, is_authority=True)


def _address(text: str) -> list[x509.GeneralName]:
    return [x509.IPAddress(ipaddress.ip_address(text))]


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """What hosts show, and the file of the authorities that whoever asks should trust.

    Args:
        folder: where files are kept, which OpenSSL insists on.
    """

    folder: Path
    _root: _Party = field(default_factory=lambda: _issue("kilroy's root", None, is_authority=True))

    @cached_property
    def trusted(self) -> Path:
        """PEM file of two authorities, one of which has expired."""
        path = self.folder / "trusted.pem"
        path.write_bytes(self._root.pem + self._expired_root.pem)
        return path

    @cached_property
    def _expired_root(self) -> _Party:
        return _issue("kilroy's old root", None, is_authority=True, valid=_EXPIRED)

    def server_side(self, kind: str, host: str) -> ssl.SSLContext:
        """How the host at an address speaks TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain = self._chain(kind, host)
        key = chain[0].key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.folder / f"{host}.pem"
        path.write_bytes(key + b"".join(party.pem for party in chain))
        context.load_cert_chain(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old versions of TLS are what this is about
            _weaken(context, kind)
        if kind in ("asks for the client's", "requires the client's"):
            context.load_verify_locations(self.trusted)
            context.verify_mode = ssl.CERT_OPTIONAL if kind.startswith("asks") else ssl.CERT_REQUIRED
        if kind == "knows h2 only":
            context.set_alpn_protocols(["h2"])
        return context

    def _chain(self, kind: str, host: str) -> list[_Party]:
        root, here = self._root, _address(host)
        later = (_NOW + _DAY, _NOW + 2 * _DAY)
        if kind == "by an authority that is none":
            leaf = _issue("kilroy", root, names=here)
            return [_issue(host, leaf, names=here), leaf]
        kinds: dict[str, Callable[[], _Party]] = {
            "self-signed": lambda: _issue(host, None, names=here),
            "of an authority nobody knows": lambda: _issue(host, _authority("nobody"), names=here),
            "of another host": lambda: _issue(host, root, names=[x509.DNSName("kilroy.invalid")]),
            "of another address": lambda: _issue(host, root, names=_address("127.0.0.1")),
            "with the address as its name only": lambda: _issue(host, root),
            "expired": lambda: _issue(host, root, names=here, valid=_EXPIRED),
            "not yet valid": lambda: _issue(host, root, names=here, valid=later),
            "by an expired authority": lambda: _issue(host, self._expired_root, names=here),
            "without its intermediate": lambda: _issue(host, _authority("between", root), names=here),
            "for clients only": lambda: _issue(host, root, names=here, usage=_FOR_CLIENTS),
            "of 300 kB": lambda: _issue(host, root, names=[*here, *_MANY_NAMES]),
        }
        return [kinds.get(kind, lambda: _issue(host, root, names=here))()]


def _weaken(context: ssl.SSLContext, kind: str) -> None:
    versions = {
        "TLS 1.0 only": ssl.TLSVersion.TLSv1,
        "TLS 1.1 only": ssl.TLSVersion.TLSv1_1,
        "TLS 1.2 only": ssl.TLSVersion.TLSv1_2,
        "anonymous ciphers only": ssl.TLSVersion.TLSv1_2,
        "unencrypted ciphers only": ssl.TLSVersion.TLSv1_2,
    }
    ciphers = {"anonymous ciphers only": "aNULL", "unencrypted ciphers only": "eNULL"}
    if kind in versions:
        context.set_ciphers(f"{ciphers.get(kind, 'ALL')}:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = versions[kind]
