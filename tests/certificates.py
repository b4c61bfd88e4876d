"""Certificates of people whom nobody knows, for tests of signing with one's own."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sora_cli.media import provenance_keys


def pair(folder: Path, key: Any, *, days: float = 30, client: bool = False) -> tuple[Path, Path]:
    """A certificate and key of the user's own: no authority that anybody knows."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "someone")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=60)
    use = x509.ExtendedKeyUsageOID
    root = ec.generate_private_key(ec.SECP256R1())
    above = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "someone's authority")])
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    span, public = (start, end), key.public_key()
    made = provenance_keys._certificate(name, above, public, root.public_key(), span)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(provenance_keys._usage(digital_signature=True), critical=True)
    uses = [use.CLIENT_AUTH if client else use.EMAIL_PROTECTION]
    made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    folder.mkdir(exist_ok=True)
    certificate, private = folder / "chain.pem", folder / "private.pem"
    certificate.write_bytes(provenance_keys._pem(made.sign(root, hashes.SHA256())))
    form = serialization.PrivateFormat.TraditionalOpenSSL
    none = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
    return certificate, private
