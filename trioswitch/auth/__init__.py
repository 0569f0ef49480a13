"""Who a client is, and what it may do: identities, tokens, and the keys that sign them."""

from .key_ring import JwksUrl, KeyRing
from .keys import Key, jwks_keys, pem_keys, secret_key
from .tokens import RoomToken, TokenVerifier

__all__ = ["JwksUrl", "Key", "KeyRing", "RoomToken", "TokenVerifier", "jwks_keys", "pem_keys", "secret_key"]
