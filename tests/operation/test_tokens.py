"""Tokens: which are accepted, what they allow, and when they end. Keys are made here; nothing is signed by a server."""

import base64
import datetime
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cluster_support import closing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from trio.testing import MockClock

from trioswitch import Connection, Identity, Options, Refused, RoomPolicy
from trioswitch._util import clock
from trioswitch.auth.expiry import Expiries
from trioswitch.auth.key_ring import JwksUrl, KeyRing
from trioswitch.auth.keys import Key, jwks_keys, pem_keys, secret_key
from trioswitch.auth.tokens import RoomToken, TokenVerifier
from trioswitch.testing import deterministic, open_test_switch

SECRET = "a secret that has more than 64 bytes, and so is good for each hash"
OTHER = "another secret that has more than 64 bytes, and that replaces it"
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "PS512": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def ring(*secrets: str, keys: Sequence[Key] = ()) -> KeyRing:
    return KeyRing([*map(secret_key, secrets or [SECRET]), *keys])


def token(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


def pem(private: Any) -> bytes:
    found: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


async def refusal(verifier: TokenVerifier, text: str) -> str:
    with pytest.raises(Refused) as refused:
        await verifier(text)
    assert refused.value.code == "unauthorised"
    return refused.value.message


# --- signatures


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_secrets(algorithm: str) -> None:
    verifier = TokenVerifier(keys=ring(OTHER, SECRET))  # one replaces the other
    for secret in (SECRET, OTHER):
        assert (await verifier(token({"sub": "ada"}, secret, algorithm))).user == "ada"
    wrong = token({"sub": "ada"}, OTHER[::-1], algorithm)
    assert await refusal(verifier, wrong) == "the token's signature is wrong"


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_public_keys(algorithm: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_bytes(b"".join(map(pem, PRIVATE.values())))
    verifier = TokenVerifier(keys=KeyRing(files=[file]))
    assert (await verifier(token({"sub": "ada"}, PRIVATE[algorithm], algorithm))).user == "ada"


async def test_a_certificate_and_files_that_hold_no_key(tmp_path: Path) -> None:
    private, name = PRIVATE["ES256"], x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.datetime(2020, 1, 1))
    certificate = builder.not_valid_after(datetime.datetime(2040, 1, 1)).sign(private, hashes.SHA256())
    (key,) = pem_keys(certificate.public_bytes(serialization.Encoding.PEM))
    assert key.algorithms == {"ES256"}
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data, problem in (
        (secret, "it holds a private key"),
        (b"nothing", "there is no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "tokens are signed with RSA"),
    ):
        with pytest.raises(ValueError, match=problem):
            pem_keys(data)
    (tmp_path / "keys.json").write_text("{}")
    for path, problem in ((tmp_path / "none.pem", "cannot read"), (tmp_path / "keys.json", "not a JSON Web Key Set")):
        with pytest.raises(ValueError, match=problem):
            KeyRing(files=[path])


async def test_a_secret_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="32 bytes at least, not 5"):
        secret_key("short")
    assert secret_key("x" * 32).algorithms == {"HS256"}
    with pytest.raises(TypeError, match="must be a str or bytes"):
        secret_key(None)  # type: ignore[arg-type]


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, ""])


async def test_forged_tokens_get_nobody_in() -> None:
    public = pem(PRIVATE["RS256"])
    verifier = TokenVerifier(keys=ring(keys=pem_keys(public)))
    fits = "no key of this server fits the token's algorithm and key id"
    assert await refusal(verifier, unsigned({"alg": "none"}, {"sub": "ada"})) == fits
    assert await refusal(verifier, unsigned({"alg": "nOnE"}, {"sub": "ada"})) == fits
    assert await refusal(verifier, unsigned({"alg": ["HS256"]}, {"sub": "ada"})) in (
        fits,
        "this is not a JSON Web Token",
    )
    head = unsigned({"alg": "HS256"}, {"sub": "ada"}).rstrip(".")  # signed with the text of the public key, as a secret
    signature = base64.urlsafe_b64encode(hmac.new(public, head.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    assert await refusal(verifier, f"{head}.{signature}") == "the token's signature is wrong"
    good = token({"sub": "ada"})
    assert await refusal(verifier, good[:-4] + "AAAA") == "the token's signature is wrong"
    for text in ("", "x", "a.b.c", good + ".x", "\ud800", "é.é.é"):
        assert await refusal(verifier, text) in ("this is not a JSON Web Token", "the token is not valid")
    assert await refusal(verifier, good + "A" * 1_000_000) == "a token may have 16384 bytes"
    assert "cannot" not in await refusal(verifier, token({"sub": "ada"}, crit=["b64"], b64=False))


async def test_times_audience_and_issuer() -> None:
    now = time.time()
    verifier = TokenVerifier(keys=ring(), audience="chat", issuer="us")
    right: dict[str, Any] = {
        "sub": "ada",
        "aud": ["x", "chat"],
        "iss": "us",
        "exp": now + 60,
        "nbf": now - 1,
        "iat": now,
    }
    assert (await verifier(token(right))).expires_at == now + 60
    for change, sentence in (
        ({"exp": now - 1}, "the token has expired"),
        ({"exp": "soon"}, "the token is not valid"),
        ({"nbf": now + 60}, "the token is not valid yet"),
        ({"iat": now + 600}, "the token is not valid yet"),
        ({"aud": "other"}, "the token is for another audience"),
        ({"iss": "them"}, "the token is from another issuer"),
        ({"expire_at": now - 1}, "the token has expired"),
    ):
        assert await refusal(verifier, token(right | change)) == sentence
    for missing in ("aud", "iss"):
        claims = {name: value for name, value in right.items() if name != missing}
        assert await refusal(verifier, token(claims)) == f"the token lacks the claim `{missing}`"
    for_ever = await verifier(token(right | {"expire_at": 0}))
    assert for_ever.expires_at is None


# --- claims


async def test_what_claims_allow() -> None:
    verifier = TokenVerifier(keys=ring(), join=("lobby",), publish=())
    guest = await verifier(token({}))
    assert (guest.user, guest.join, guest.publish) == (None, ("lobby",), ())
    caps = [
        {"channels": ["news*"], "match": "wildcard", "allow": ["sub", "hst"]},
        {"channels": ["a[b]*", "chat"], "allow": ["sub", "pub", "prs", "later"]},
    ]
    claims = {
        "sub": "ada",
        "info": {"name": "Ada"},
        "channels": ["a"],
        "subs": {"b": {}},
        "caps": caps,
        "jti": "7",
        "iat": 5,
    }
    ada = await verifier(token(claims))
    assert (ada.info, ada.rooms, ada.token_id, ada.issued_at) == ({"name": "Ada"}, ("a", "b"), "7", 5.0)
    rights = [(ada.may_join, "j"), (ada.may_see_presence, "p"), (ada.may_read_history, "h")]
    shown = {
        room: "".join([name for may, name in rights if may(room)]) + "w" * ada.may_publish(room, as_member=True)
        for room in ("news.sport", "a[b]*", "ab", "chat", "chat2", "lobby")
    }
    assert shown == {"news.sport": "jh", "a[b]*": "jpw", "ab": "", "chat": "jpw", "chat2": "", "lobby": ""}


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": 5},
        {"sub": "x" * 256},
        {"channels": "a"},
        {"subs": ["a"]},
        {"caps": {}},
        {"caps": ["a"]},
        {"caps": [{"channels": "a"}]},
        {"caps": [{"channels": [1], "allow": ["sub"]}]},
        {"caps": [{"channels": ["a"], "allow": ["sub"], "match": "regex"}]},
        {"expire_at": "never"},
        {"channels": [""]},
    ],
)
async def test_claims_that_are_not_valid(claims: dict[str, Any]) -> None:
    assert (await refusal(TokenVerifier(keys=ring()), token(claims))).startswith(
        "the claims of the token are not valid: "
    )


async def test_a_token_for_a_room_is_none_for_a_connection() -> None:
    verifier = TokenVerifier(keys=ring())
    text = token({"sub": "ada", "channel": "r", "allow": ["pub"]})
    assert "needs one for a connection" in await refusal(verifier, text)
    allowed = await verifier.check_room_token(text, "r", "ada")
    assert (allowed.publish, allowed.presence, allowed.history) == (True, False, False)
    for room, user in (("q", "ada"), ("r", "bob")):
        with pytest.raises(Refused, match=r"not for this room|another user"):
            await verifier.check_room_token(text, room, user)
    with pytest.raises(Refused, match="must be a list"):
        await verifier.check_room_token(token({"sub": "ada", "channel": "r", "allow": "pub"}), "r", "ada")


# --- key sets


def jwk(algorithm: str, id: str, **more: Any) -> dict[str, Any]:
    kind: Any = {"E": jwt.algorithms.ECAlgorithm, "R": jwt.algorithms.RSAAlgorithm}[algorithm[0]]
    return {**json.loads(kind.to_jwk(PRIVATE[algorithm].public_key())), "kid": id, **more}


async def test_a_key_set() -> None:
    secret = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
    entries = [
        jwk("RS256", "r", alg="RS256"),
        jwk("ES256", "e", use="sig"),
        {"kty": "oct", "k": secret, "kid": "s"},
        jwk("ES384", "other use", use="enc"),
        {"kty": "oct", "k": "AAAA", "kid": "short"},
        {"kty": "strange"},
        {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"},
        "no object",
    ]
    keys = jwks_keys({"keys": entries})
    assert {key.id: key.algorithms for key in keys} == {
        "r": {"RS256"},
        "e": {"ES256"},
        "s": {"HS256", "HS384", "HS512"},
    }
    verifier = TokenVerifier(keys=KeyRing(keys))
    assert (await verifier(token({"sub": "a"}, PRIVATE["ES256"], "ES256", kid="e"))).user == "a"
    assert (await verifier(token({"sub": "a"}, PRIVATE["ES256"], "ES256"))).user == "a"
    assert "no key" in await refusal(verifier, token({"sub": "a"}, PRIVATE["ES256"], "ES256", kid="other"))
    assert "no key" in await refusal(verifier, token({"sub": "a"}, PRIVATE["RS256"], "RS512", kid="r"))
    documents: list[Any] = [[], {"keys": {}}, {"keys": "x"}, {"keys": [{"kty": "strange"}]}]
    for document in documents:
        with pytest.raises(ValueError, match=r"JSON Web Key Set|no key"):
            jwks_keys(document)


class Provider:
    """An identity provider that can hang and fail."""

    def __init__(self) -> None:
        self.keys = [jwk("ES256", "first")]
        self.fetches = 0
        self.fails = self.hangs = False

    async def fetch(self, _url: str) -> bytes:
        self.fetches += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.fails:
            raise OSError("it is away")
        return json.dumps({"keys": self.keys}).encode()


async def test_keys_at_a_url_are_fetched_when_they_change(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    provider = Provider()
    url = JwksUrl("https://id.example/jwks", provider.fetch)
    verifier = TokenVerifier(keys=KeyRing(url=url))
    nursery.start_soon(url.run)
    first = token({"sub": "a"}, PRIVATE["ES256"], "ES256", kid="first")
    assert (await verifier(first)).user == "a"
    assert (provider.fetches, url.error) == (1, None)
    provider.keys = [jwk("ES384", "second")]
    second = token({"sub": "b"}, PRIVATE["ES384"], "ES384", kid="second")
    for _ in range(100):  # anybody can invent key ids
        await refusal(verifier, token({"sub": "b"}, PRIVATE["ES384"], "ES384", kid="invented"))
    assert provider.fetches == 1
    await trio.sleep(11)
    assert (await verifier(second)).user == "b"
    assert provider.fetches == 2
    assert "no key" in await refusal(verifier, first)


async def test_a_provider_that_fails_or_hangs_locks_nobody_out(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    provider = Provider()
    url = JwksUrl("https://id.example/jwks", provider.fetch)
    verifier = TokenVerifier(keys=KeyRing(url=url))
    nursery.start_soon(url.run)
    known = token({"sub": "a"}, PRIVATE["ES256"], "ES256", kid="first")
    await verifier(known)
    provider.hangs = True
    await trio.sleep(400)
    assert url.error == "https://id.example/jwks does not answer within 5 s"
    with trio.fail_after(0.001):
        assert (await verifier(known)).user == "a"
    with trio.fail_after(6):
        await refusal(verifier, token({"sub": "a"}, PRIVATE["ES256"], "ES256", kid="unknown"))
    provider.hangs, provider.fails = False, True
    await trio.sleep(400)
    assert url.error == "the key set https://id.example/jwks cannot be used: it is away"
    assert (await verifier(known)).user == "a"
    provider.fails = False
    await trio.sleep(400)
    assert url.error is None


# --- on a connection


def verifier() -> TokenVerifier:
    return TokenVerifier(keys=ring(), join=("lobby",))


async def test_a_token_opens_rooms_and_runs_out(autojump_clock: MockClock) -> None:
    with deterministic(1):
        started = 1_800_000_000.0
        async with open_test_switch(authenticate=_at(started)) as app:
            client = await app.connect("/ws?token=60")
            welcome_user = app.switch.connection(client.connection_id).user
            assert (welcome_user, app.switch.users_in("office")) == ("ada", ["ada"])
            renewed = await client.ask("authenticate", token="300")
            assert renewed["expires"] == pytest.approx(300, abs=1)
            error = await client.ask("authenticate", token="bob")
            assert error["message"] == "the token is for another user"
            await trio.sleep(290)
            assert app.switch.connections("ada")
            assert await closing(client) == (4500, "the token has expired")
            assert trio.current_time() == pytest.approx(300, abs=1)


@pytest.mark.parametrize(("takes", "renews", "stays"), [(1.0, True, True), (1.0, False, False), (100.0, False, False)])
async def test_the_application_is_asked_when_an_identity_expires(
    takes: float, renews: bool, stays: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that comes while it thinks about it counts; and it has `hook_timeout` seconds."""

    async def on_expire(_connection: Connection) -> float | None:
        await trio.sleep(takes)
        raise Refused("not any more", code="unauthorised")

    with deterministic(1):
        authenticate = _at(clock.wall_time())
        async with open_test_switch(authenticate=authenticate, on_expire=on_expire) as app:
            client = await app.connect("/ws?token=60")
            await trio.sleep(60.5)
            if renews:
                await client.ask("authenticate", token="300")
                await trio.sleep(60)
                assert (await client.ask("heartbeat"))["type"] == "ack"
                assert stays
                return
            code, _reason = await closing(client)
            assert code == (4500 if takes < 5 else 4003)
            assert trio.current_time() == pytest.approx(60 + min(takes, 5), abs=0.5)
            assert ("took too long" in caplog.text) == (takes > 5)


def _at(started: float) -> Any:
    async def authenticate(text: str) -> Identity:
        if text == "bob":
            return Identity(user="bob")
        return Identity(user="ada", rooms=("office",), expires_at=started + float(text))

    return authenticate


async def test_a_token_for_one_room() -> None:
    check = verifier()
    options = Options(policies=(RoomPolicy(history="memory"),))
    async with open_test_switch(options, authenticate=check, check_room_token=check.check_room_token) as app:
        client = await app.connect(f"/ws?token={token({'sub': 'ada'})}")
        assert (await client.ask("join_room", room="secret"))["code"] == "forbidden"
        wrong = await client.ask("join_room", room="secret", token=token({"sub": "ada", "channel": "other"}))
        assert (wrong["code"], wrong["message"]) == ("forbidden", "the token is not for this room")
        room = token({"sub": "ada", "channel": "secret", "allow": ["hst"]})
        assert (await client.ask("join_room", room="secret", token=room))["type"] == "ack"
        assert (await client.ask("history", room="secret"))["type"] == "ack"
        assert (await client.ask("presence", room="secret"))["code"] == "forbidden"
        assert (await client.ask("join_room", room="other"))["code"] == "forbidden"
    async with open_test_switch() as app:
        client = await app.connect()
        assert (await client.ask("join_room", room="r", token="x"))["code"] == "not_available"


async def test_a_token_for_one_room_runs_out(autojump_clock: MockClock) -> None:
    async def authenticate(_token: str) -> Identity:
        return Identity(user="ada", join=())

    async def check_room_token(_token: str, room: str, user: str) -> RoomToken:
        return RoomToken(room, user, publish=False, presence=False, history=False, expires_at=clock.wall_time() + 100)

    with deterministic(1):
        async with open_test_switch(authenticate=authenticate, check_room_token=check_room_token) as app:
            client = await app.connect("/ws?token=ada")
            assert (await client.ask("join_room", room="secret", token="t"))["type"] == "ack"
            await trio.sleep(99)
            assert app.switch.users_in("secret") == ["ada"]
            await trio.sleep(2)
            assert app.switch.users_in("secret") == []
            error = await client.receive_until(type="error")
            assert (error["code"], error["message"]) == (
                "unauthorised",
                "the token for 'secret' has expired: you have left the room",
            )
            assert (await client.ask("join_room", room="secret"))["code"] == "forbidden", (
                "and what it allowed has ended"
            )
            assert (await client.ask("join_room", room="secret", token="t"))["type"] == "ack", "the connection goes on"


async def test_revoked_tokens(autojump_clock: MockClock) -> None:
    async with open_test_switch(authenticate=verifier()) as app:
        now = time.time()
        old = {"sub": "ada", "iat": now - 10, "jti": "one"}
        first = await app.connect(f"/ws?token={token(old)}")
        bob = await app.connect(f"/ws?token={token(old | {'sub': 'bob'})}")
        assert await app.switch.administration.revoke(user="ada") == 1
        assert await closing(first) == (4500, "the token was revoked")
        again = await app.connect()
        refused = await again.ask("authenticate", token=token(old))
        assert (refused["code"], refused["message"]) == ("unauthorised", "the token was revoked")
        newer = await app.connect()
        assert (await newer.ask("authenticate", token=token(old | {"iat": time.time()})))["user_id"] == "ada"
        assert await app.switch.administration.revoke(token_id="one") == 2  # bob's, and ada's new one
        del bob
        with pytest.raises(ValueError, match="say which tokens"):
            await app.switch.administration.revoke()


async def test_keys_that_expire_in_any_order(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    with deterministic(1):
        expired: list[str] = []
        expiries: Expiries[str] = Expiries(expired.append)
        nursery.start_soon(expiries.run)
        start = 1_800_000_000.0 + trio.current_time()
        expiries.set("late", start + 500)
        expiries.set("early", start + 5)
        expiries.set("moved", start + 1)
        expiries.set("moved", start + 700)
        expiries.set("gone", start + 2)
        expiries.set("gone", None)
        await trio.sleep(6)
        assert expired == ["early"]
        await trio.sleep(495)
        assert expired == ["early", "late"]
        for number in range(5000):
            expiries.set("many", start + 1000 + number)
        assert len(expiries) == 2
        await trio.sleep(10_000)
        assert expired == ["early", "late", "moved", "many"]
