"""Certificates and keys to sign with: made here, or the user's own.

A certificate made here comes from an authority made here, of which nobody else knows: readers
elsewhere show it as untrusted. The authority's key is thrown away once it has signed, so the one
secret to guard is the key that signs files; nothing of it goes into errors, logs or recipes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import UsageError
from sora_cli.runtime.disk import write_whole
from sora_cli.runtime.paths import config_dir

if TYPE_CHECKING:
    from cryptography import x509

CERTIFICATE, KEY, AUTHORITIES = "certificate.pem", "key.pem", "authorities.pem"
NAME = "self-made certificate of a sora user"
DAYS = 3650  # without a time stamp (that is: a network) a signature lasts as its certificate does
MAX_BYTES = 1 << 20  # of a PEM file
_MAKE = "sora provenance init"
_OWN = f"make one here: {_MAKE}; or name your own: --sign-certificate PATH --sign-key PATH"
# RFC 5280, 4.2.1.12, and the C2PA's own (Technical Specification 2.1, 14.5.1): what readers ask of
# a certificate that signs claims.
_EMAIL, _CLAIMS = "1.3.6.1.5.5.7.3.4", "1.3.6.1.4.1.62558.2.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Who signs: the chain (PEM, the signing certificate first), its key, and what they are.

    key: PKCS #8 in PEM. algorithm: of COSE, as C2PA names it (es256 …). name: the certificate's.
    until: the end of its validity.
    """

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    name: str
    until: datetime


def need() -> None:
    """Raises UsageError, with the way to install it, where the extra is missing."""
    try:
        import c2pa
        import cryptography

        assert c2pa and cryptography
    except (ImportError, OSError, RuntimeError) as error:  # or its native library does not load
        raise UsageError(
            "signatures need c2pa-python, which is not installed or does not load here",
            hint="pip install 'sora-cli[provenance]'",
        ) from error


def folder() -> Path:
    """Where `init` keeps certificates and the key."""
    return config_dir() / "provenance"


def init(*, name: str = NAME, days: int = DAYS, force: bool = False) -> Signer:
    """Make an authority, a certificate of it and its key, in `folder()`.

    Certificates of earlier authorities stay known (`authorities`), so that what they signed is
    still recognised.

    Raises:
        UsageError: there is a key already and no `force`; no name, a number of days that is none;
            the folder cannot be written.
    """
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UsageError("--name must have 1 to 64 printable characters", hint='--name "Ada"')
    if not 1 <= days <= 36500:
        raise UsageError(f"--days must be from 1 to 36500, not {days}", hint=f"--days {DAYS}")
    place = folder()
    if not force and (place / KEY).exists():
        raise UsageError(
            f"there is a key already in {place}",
            hint=f"it stays in use; to replace it with a new one: {_MAKE} --force",
        )
    need()
    authority, certificate, key = _make(name.strip(), days)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = authorities() or b""
        write_whole(place / AUTHORITIES, authority + known, lasting=True)
        _write_secret(place / KEY, key)
        write_whole(place / CERTIFICATE, certificate + authority, lasting=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or place}: {error.strerror}", hint="sora doctor"
        ) from error
    return load()


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _make(name: str, days: int) -> tuple[bytes, bytes, bytes]:
    """A new authority's certificate, a certificate that it signed, and that one's key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    above = _subject(f"authority of: {name}"[:64])
    start = datetime.now(UTC) - timedelta(hours=1)  # clocks differ a little
    span = (start, start + timedelta(days=days, hours=1))
    authority = (
        _certificate(above, above, root.public_key(), root.public_key(), span)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(root, hashes.SHA256())
    )
    uses = [x509.ObjectIdentifier(number) for number in (_EMAIL, _CLAIMS)]
    certificate = (
        _certificate(_subject(name), above, key.public_key(), root.public_key(), span)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(root, hashes.SHA256())
    )
    pem = Encoding.PEM
    return authority.public_bytes(pem), certificate.public_bytes(pem), _pkcs8(key)


def _subject(name: str) -> x509.Name:
    from cryptography.x509 import Name, NameAttribute
    from cryptography.x509.oid import NameOID

    # Readers show the organisation; some show the common name.
    parts = (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
    return Name([NameAttribute(part, name) for part in parts])


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: Any, authority: Any,
    span: tuple[datetime, datetime],
) -> x509.CertificateBuilder:  # fmt: skip
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
        )
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    from cryptography.x509 import KeyUsage

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return KeyUsage(**{name: allowed.get(name, False) for name in names})


def _pkcs8(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as forms

    none = forms.NoEncryption()
    return key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, none)


# ---------------------------------------------------------------- reading


def authorities() -> bytes | None:
    """Certificates (PEM) of every authority made here, the newest first; None without any."""
    try:
        return b"".join(_pem(one) for one in _chain(folder() / AUTHORITIES))
    except UsageError:
        return None


def load(certificate: Path | None = None, key: Path | None = None) -> Signer:
    """Who signs: the certificate and key given, else those that `init` made.

    Raises:
        UsageError: one is missing, unreadable, encrypted, past its time, or not of the other.
    """
    if (certificate is None) != (key is None):
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        said = f"a {given} to sign with needs its {missing}"
        raise UsageError(said, hint=f"--sign-{missing} PATH")
    if certificate is None or key is None:
        certificate, key = folder() / CERTIFICATE, folder() / KEY
        if not (certificate.is_file() and key.is_file()):
            raise UsageError("there is no certificate to sign with", hint=_OWN)
    need()
    chain, private = _chain(certificate), _private(key)
    _check_pair(certificate, chain[0], key, private)
    return Signer(
        chain=b"".join(_pem(one) for one in chain),
        key=_pkcs8(private),
        algorithm=_algorithm(key, private),
        name=name_of(chain[0]),
        until=chain[0].not_valid_after_utc,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def name_of(certificate: x509.Certificate) -> str:
    """What a certificate calls its holder."""
    from cryptography.x509.oid import NameOID

    for part in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        for attribute in certificate.subject.get_attributes_for_oid(part):
            return str(attribute.value)
    return certificate.subject.rfc4514_string() or "no name"


def trust_list(path: Path) -> bytes:
    """Certificates (PEM) in a file of the user's. Raises UsageError where it holds none."""
    try:
        return b"".join(_pem(one) for one in _chain(path))
    except UsageError as error:
        raise UsageError(error.message, hint="give certificates in PEM: --trust PATH") from None


def _read_pem(path: Path, what: str) -> bytes:
    """A small file with PEM blocks. Raises UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        said = f"cannot read the {what} {path}: {error.strerror or error}"
        raise UsageError(said, hint=_OWN) from error


def _chain(path: Path) -> list[x509.Certificate]:
    from cryptography import x509

    content = _read_pem(path, "certificate")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        # Not `from`: an error that quotes what it read may quote a key in the wrong file.
        raise UsageError(f"{path} holds no certificate in PEM", hint=_OWN) from None


def _private(path: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_pem(path, "key")
    try:
        return load_pem_private_key(content, None)
    except TypeError:
        raise UsageError(
            f"the key {path} is encrypted with a passphrase",
            hint=f"give one without: openssl pkey -in {path} -out key.pem",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        said = f"{path} holds no private key in PEM that can be used"
        raise UsageError(said, hint=_OWN) from None


def _check_pair(path: Path, certificate: x509.Certificate, key: Path, private: Any) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise UsageError(f"the key {key} is not that of the certificate {path}", hint=_OWN)
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        raise UsageError(f"the certificate {path} is not valid before {first:%Y-%m-%d}", hint=_OWN)
    if now > last:
        raise UsageError(
            f"the certificate {path} expired on {last:%Y-%m-%d}",
            hint=f"a new one: {_MAKE} --force; or --sign-certificate PATH --sign-key PATH",
        )


def _algorithm(path: Path, private: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(private, ec.EllipticCurvePrivateKey):
        curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if private.curve.name in curves:
            return curves[private.curve.name]
    raise UsageError(
        f"the key {path} is of a kind that C2PA does not sign with",
        hint="it takes EC P-256, P-384, P-521, Ed25519 and RSA",
    )
