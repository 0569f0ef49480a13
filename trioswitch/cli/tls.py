"""The certificate and the key of `serve`, and what is wrong with them."""

import ssl
from pathlib import Path

__all__ = ["load_certificate", "tls_context"]


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Raises ValueError."""
    if certificate is None:
        if key is not None:
            raise ValueError("argument --tls-key: needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Read the files, also again: new connections get the new certificate. Raises ValueError, and changes nothing then."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(_what_is_wrong(certificate, key, error)) from None


def _what_is_wrong(certificate: str, key: str | None, error: OSError) -> str:
    """Why a certificate and its key cannot be used, with the flag and the file that are to blame."""
    flag, path = "--tls-cert", certificate
    try:
        if b"CERTIFICATE-----" not in Path(path).read_bytes():
            return f"argument {flag}: there is no certificate (PEM) in {path!r}"
        if key is not None:
            flag, path = "--tls-key", key
        if b"PRIVATE KEY-----" not in Path(path).read_bytes():
            hint = ": name its file with --tls-key" if key is None else ""
            return f"argument {flag}: there is no private key (PEM) in {path!r}{hint}"
    except OSError as unreadable:
        return f"argument {flag}: cannot read {path!r}: {unreadable.strerror or unreadable}"
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return f"argument {flag}: the private key in {path!r} is that of another certificate"
    return f"argument --tls-cert: cannot use {certificate!r}: {reason or error.strerror or error}"


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and a server that is started by a machine would wait there forever."""
    raise ValueError("argument --tls-key: the private key is encrypted: give one without a password")
