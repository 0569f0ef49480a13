"""Keys with which tokens are signed: secrets, public keys in PEM, and JSON Web Key Sets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
import jwt
from jwt.exceptions import PyJWTError

__all__ = ["Key", "jwks_keys", "pem_keys", "secret_key"]

MIN_SECRET: Final = 32
"""Bytes of a secret for HS256; HS384 needs 48, and HS512 64 (RFC 7518, section 3.2)."""
HMAC: Final = frozenset({"HS256", "HS384", "HS512"})
RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {
    "secp256r1": "ES256", "P-256": "ES256", "secp384r1": "ES384", "P-384": "ES384", "secp521r1": "ES512", "P-521": "ES512",
}  # fmt: skip
_INSTALL: Final = "tokens with public keys need a package that is not installed: pip install 'trioswitch[jwt]'"


@attrs.frozen
class Key:
    """A key, and the algorithms that may be used with it: a token cannot choose another (RFC 8725, section 3.1)."""

    material: Any
    algorithms: frozenset[str]
    id: str | None = None
    """The `kid` of tokens that are signed with it; None: it may have signed any."""


def secret_key(secret: str | bytes, id: str | None = None) -> Key:
    """A secret that who signs tokens shares with this server. Raises TypeError, and ValueError for fewer than 32 bytes."""
    if not isinstance(secret, str | bytes):
        raise TypeError(f"a secret must be a str or bytes, not a {type(secret).__name__}")
    material = secret.encode() if isinstance(secret, str) else secret
    if len(material) < MIN_SECRET:
        raise ValueError(f"a secret must have {MIN_SECRET} bytes at least, not {len(material)}")
    return Key(material, _hmac(material), id)


def _hmac(secret: bytes) -> frozenset[str]:
    """What a secret is long enough for: it needs as many bytes as the hash has (RFC 7518, section 3.2)."""
    return frozenset({name for name in HMAC if len(secret) >= int(name[2:]) // 8})


def pem_keys(data: bytes | str) -> list[Key]:
    """The public keys, or certificates, in a PEM file: RSA, elliptic curves, Ed25519, Ed448. Raises ValueError."""
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from cryptography.x509 import load_pem_x509_certificate
    except ImportError:
        raise ValueError(_INSTALL) from None
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    if "PRIVATE KEY-----" in text:
        raise ValueError("it holds a private key: this server needs the public one, and should have no other")
    keys = []
    for block in _blocks(text):
        try:
            if "CERTIFICATE" in block.partition("\n")[0]:
                keys.append(_public_key(load_pem_x509_certificate(block.encode()).public_key()))
            else:
                keys.append(_public_key(load_pem_public_key(block.encode())))
        except ValueError as error:
            raise ValueError(f"it holds a public key that cannot be read: {error}") from None
    if not keys:
        raise ValueError("there is no public key (PEM) in it")
    return keys


def _blocks(text: str) -> Iterable[str]:
    """The parts of a PEM file."""
    for part in text.split("-----BEGIN ")[1:]:
        yield f"-----BEGIN {part.strip()}\n"


def _public_key(material: Any) -> Key:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(material, rsa.RSAPublicKey):
        return Key(material, RSA)
    if isinstance(material, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return Key(material, frozenset({"EdDSA"}))
    if isinstance(material, ec.EllipticCurvePublicKey) and material.curve.name in _CURVES:
        return Key(material, frozenset({_CURVES[material.curve.name]}))
    raise ValueError("tokens are signed with RSA, with P-256, P-384 and P-521, or with Ed25519 and Ed448")


def jwks_keys(document: object) -> list[Key]:
    """The keys of a JSON Web Key Set (RFC 7517) that can be used for signatures. Raises ValueError.

    Keys of other kinds, or for other uses, are left out, as the RFC asks (section 5).
    """
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError("it is not a JSON Web Key Set: an object with a list `keys`")
    keys = []
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("use", "sig") == "sig":
            algorithms = _algorithms(entry)
            try:
                material = jwt.PyJWK(dict(entry), min(algorithms)).key if algorithms else None
            except (PyJWTError, ValueError, TypeError) as error:
                if "cryptography" in str(error) and "required" in str(error):
                    raise ValueError(_INSTALL) from None
                continue
            if isinstance(material, bytes):
                algorithms &= _hmac(material)
            if algorithms:
                keys.append(Key(material, algorithms, _id(entry)))
    if not keys:
        raise ValueError("it has no key that can be used for signatures")
    return keys


def _id(entry: Mapping[str, Any]) -> str | None:
    id = entry.get("kid")
    return id if isinstance(id, str) else None


def _algorithms(entry: Mapping[str, Any]) -> frozenset[str]:
    """What a key may be used for: the algorithm that it names, or all that suit its type."""
    kind = entry.get("kty")
    suitable: frozenset[str] = {
        "oct": HMAC,
        "RSA": RSA,
        "EC": frozenset({_CURVES.get(str(entry.get("crv")), "")} - {""}),
        "OKP": frozenset({"EdDSA"}),
    }.get(str(kind), frozenset())
    named = entry.get("alg")
    return suitable if named is None else suitable & {str(named)}
