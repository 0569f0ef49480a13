"""The upgrade request: with a real client's, and with heads that no client should send."""

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol as Client
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.protocol import State
from websockets.uri import parse_uri
from wire_support import TEXT, UPGRADE, client_frame, deflated, head, make_handshake
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from trioswitch.wire import frames
from trioswitch.wire.handshake import DEFLATE_BITS, Handshake, Rejected, is_upgrade, response
from trioswitch.wire.protocols import JSON, JSON_BATCH, MSGPACK
from trioswitch.wire.protocols.port import ClientProtocol

OfferResult = ClientPerMessageDeflateFactory


def received(request: bytes, **options: bool) -> Handshake:
    handshake = make_handshake(**options)
    handshake.receive(request)
    return handshake


def answered(request: bytes, **options: bool) -> tuple[h11.Response | h11.InformationalResponse, dict[str, str]]:
    """Our answer to a request that is accepted, as another library reads it."""
    answer, _ = received(request, **options).accept(8)
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=list(UPGRADE.items())))
    reader.receive_data(answer)
    event = reader.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert reader.trailing_data == (b"", False)
    return event, {name.decode(): value.decode() for name, value in event.headers}


def refusal(request: bytes) -> Rejected:
    with pytest.raises(Rejected) as caught:
        received(request)
    return caught.value


class TestRealClients:
    @pytest.mark.parametrize("subprotocol", [None, "trioswitch.v1", "trioswitch.v1.batch", "trioswitch.v1.msgpack"])
    @pytest.mark.parametrize("compression", [True, False])
    def test_websockets(self, subprotocol: str | None, compression: bool) -> None:
        client = Client(
            parse_uri("ws://switch.example:8080/ws?token=a%20b&x="),
            subprotocols=[subprotocol] if subprotocol else None,  # type: ignore[list-item]
            extensions=[OfferResult()],
        )
        client.send_request(client.connect())
        [request] = client.data_to_send()
        assert is_upgrade(request)
        handshake = received(request, compression=compression)
        assert handshake.path == "/ws"
        assert handshake.query == {"token": "a b"}
        assert handshake.headers["host"] == "switch.example:8080"
        assert handshake.protocol.subprotocol == (subprotocol or "trioswitch.v1")

        answer, codec = handshake.accept(8)
        client.receive_data(answer)
        assert client.handshake_exc is None
        assert client.state is State.OPEN
        assert client.subprotocol == subprotocol
        assert bool(client.extensions) == compression

        client.send_text("é€😀".encode() * 100)
        client.send_ping(b"p")
        assert codec.feed(b"".join(client.data_to_send())) == ["é€😀".encode() * 100]
        client.receive_data(codec.replies)
        client.events_received()
        assert client.state is State.OPEN
        client.send_close(4999, "bye")
        assert codec.feed(b"".join(client.data_to_send())) == []
        assert codec.ended is not None
        assert (codec.ended.code, codec.ended.reason) == (4999, "bye")
        client.receive_data(codec.close(1000, ""))
        client.receive_eof()
        assert client.state is State.CLOSED  # type: ignore[comparison-overlap]
        assert client.close_code == 4999

    def test_wsproto(self) -> None:
        client = WSConnection(ConnectionType.CLIENT)
        request = client.send(
            Request(
                host="switch.example", target="/ws", subprotocols=["trioswitch.v1.batch"], extensions=[WsprotoDeflate()]
            )
        )
        assert is_upgrade(request)
        handshake = received(request)
        assert handshake.protocol is JSON_BATCH
        answer, codec = handshake.accept(8)
        client.receive_data(answer)
        [event] = client.events()
        assert isinstance(event, AcceptConnection)
        assert event.subprotocol == "trioswitch.v1.batch"
        assert len(event.extensions) == 1
        assert codec.feed(client.send(TextMessage(data="x" * 1000))) == [b"x" * 1000]

    def test_frames_that_come_with_the_request_are_not_part_of_it(self) -> None:
        """The transport cuts the head off; what is behind it goes to the codec."""
        _, codec = received(head()).accept(8)
        assert codec.feed(client_frame(TEXT, b"early")) == [b"early"]


class TestAccepted:
    def test_the_answer_is_that_of_the_rfc(self) -> None:
        """RFC 6455, 1.3: the key and the answer of its example."""
        answer, fields = answered(head(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="))
        assert answer.status_code == 101
        assert fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert fields["upgrade"].lower() == "websocket"
        assert fields["connection"].lower() == "upgrade"
        assert "sec-websocket-protocol" not in fields
        assert "sec-websocket-extensions" not in fields

    @pytest.mark.parametrize(
        "changed",
        [
            {"Connection": "keep-alive, Upgrade"},
            {"Connection": "UPGRADE"},
            {"Upgrade": "WebSocket"},
            {"Content_Length": "0"},
            {"Origin": "https://anywhere.example"},
        ],
    )
    def test_what_browsers_vary(self, changed: dict[str, str]) -> None:
        request = head(**changed)
        assert is_upgrade(request)
        assert answered(request)[0].status_code == 101

    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            ("/", "/", {}),
            ("/ws", "/ws", {}),
            ("/ws?", "/ws", {}),
            ("/ws?a=1&a=2&b", "/ws", {"a": "2"}),
            ("/ws?token=%C3%A9%20+%ff", "/ws", {"token": "é  \ufffd"}),
            ("/ws?a=/ws?b", "/ws", {"a": "/ws?b"}),
            ("/w%73", "/w%73", {}),
            ("http://switch.example/ws?a=1", "/ws", {"a": "1"}),
        ],
    )
    def test_path_and_query(self, target: str, path: str, query: dict[str, str]) -> None:
        handshake = received(head(target=target))
        assert (handshake.path, handshake.query) == (path, query)

    def test_names_of_fields_are_lower_case(self) -> None:
        handshake = received(head(("X-Thing", "1"), ("AUTHORIZATION", "Bearer é")))
        assert handshake.headers["x-thing"] == "1"
        assert handshake.headers["authorization"] == "Bearer é"
        assert handshake.headers["host"] == "switch.example"

    @pytest.mark.parametrize(
        ("offered", "protocol", "named"),
        [
            ([], JSON, None),
            (["trioswitch.v1"], JSON, "trioswitch.v1"),
            (["soap, trioswitch.v1.msgpack , trioswitch.v1"], MSGPACK, "trioswitch.v1.msgpack"),
            (["soap", "trioswitch.v1.batch", "trioswitch.v1"], JSON_BATCH, "trioswitch.v1.batch"),
            (["soap"], JSON, None),
        ],
    )
    def test_the_first_subprotocol_that_is_known(
        self, offered: list[str], protocol: ClientProtocol, named: str | None
    ) -> None:
        """A client that offers only others gets JSON all the same, and is not told that it was its choice."""
        request = head(*(("Sec-WebSocket-Protocol", each) for each in offered))
        assert received(request).protocol is protocol
        assert answered(request)[1].get("sec-websocket-protocol") == named


class TestRejected:
    @pytest.mark.parametrize("version", ["12", "8", "0", "", "13, 8", "thirteen", None])
    def test_another_version_is_told_ours(self, version: str | None) -> None:
        """RFC 6455, 4.4."""
        refused = refusal(head(Sec_WebSocket_Version=version))
        assert refused.status == 426
        assert ("Sec-WebSocket-Version", "13") in refused.headers

    @pytest.mark.parametrize(
        "key", [None, "", "short", "no base64 at all", base64.b64encode(b"15 bytes of key").decode(), "é" * 24]
    )
    def test_a_key_has_16_bytes(self, key: str | None) -> None:
        assert refusal(head(Sec_WebSocket_Key=key)).status == 400

    @pytest.mark.parametrize("field", ["Sec-WebSocket-Key", "Origin"])
    def test_a_field_that_must_not_be_repeated(self, field: str) -> None:
        value = UPGRADE.get(field, "https://a.example")
        assert refusal(head((field, value), (field, value))).status == 400

    @pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "get"])
    def test_another_method(self, method: str) -> None:
        refused = refusal(head(method=method))
        assert refused.status == 405
        assert ("Allow", "GET") in refused.headers

    def test_an_older_http(self) -> None:
        assert refusal(head(version="HTTP/1.0")).status == 505

    @pytest.mark.parametrize("connection", [None, "close", "keep-alive", "", "Upgrades"])
    def test_a_connection_that_is_not_to_be_upgraded(self, connection: str | None) -> None:
        refused = refusal(head(Connection=connection))
        assert refused.status in (400, 426)
        if connection:
            assert refused.status == 426
            assert ("Upgrade", "websocket") in refused.headers

    @pytest.mark.parametrize(
        "request_",
        [
            b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /ws\r\n\r\n",
            b"GET /ws HTTP/1.1 more\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",  # TLS, to a port that speaks none
            head(version="HTTP/2.0"),
            head(target="/é"),
            head(("bad name", "1")),
            head((" folded", "1")),
            head(("Content-Length", "5")),
            head(("Transfer-Encoding", "chunked")),
            head(("X", "a\x00b")),
            head().replace(b"\r\n", b"\n") + b"\r\n\r\n",
            head(Sec_WebSocket_Extensions="permessage-deflate; ;"),
            head(Sec_WebSocket_Protocol=","),
        ],
    )
    def test_garbage(self, request_: bytes) -> None:
        assert refusal(request_).status == 400

    @pytest.mark.parametrize("target", ["//[", "//[::1", "http://[/ws", "http://]/"])
    def test_a_target_that_is_no_url(self, target: str) -> None:
        """`urlsplit` raises ValueError for these; one request must not end the server."""
        assert refusal(head(target=target)).status == 400

    def test_what_is_too_long(self) -> None:
        """The transport bounds the head. What websockets has to judge may have 128 fields."""
        assert refusal(head(*(("X", "1") for _ in range(200)))).status == 431

    @pytest.mark.parametrize("again", [(), (("X", "1"), ("X", "2"))], ids=["ordinary", "judged by websockets"])
    def test_long_fields_are_taken(self, again: tuple[tuple[str, str], ...]) -> None:
        cookie = "x" * 12_000
        handshake = received(head(("Cookie", cookie), *again))
        assert handshake.headers["cookie"] == cookie
        assert handshake.headers.get("x") == ("1, 2" if again else None)

    def test_repeated_fields_are_joined(self) -> None:
        """RFC 9110, section 5.3, and RFC 6265, section 5.4."""
        fields = [("Cookie", "a=1"), ("X-Forwarded-For", "1.2.3.4"), ("cookie", "b=2"), ("x-forwarded-for", "5.6.7.8")]
        headers = received(head(*fields)).headers
        assert (headers["cookie"], headers["x-forwarded-for"]) == ("a=1; b=2", "1.2.3.4, 5.6.7.8")

    def test_a_head_as_browsers_send_them_is_not(self) -> None:
        request = head(*((f"Cookie-{i}", "x" * 4000) for i in range(3)), target="/ws?token=" + "x" * 2000)
        assert len(request) < 16 * 1024
        assert received(request).path == "/ws"

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*UPGRADE, "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Origin", "X"]),
                st.sampled_from(["websocket", "Upgrade", "13", UPGRADE["Sec-WebSocket-Key"], "permessage-deflate; x"])
                | st.text(st.characters(max_codepoint=255), max_size=30),
            ),
            max_size=8,
        ),
        st.text(st.characters(max_codepoint=255), max_size=20) | st.sampled_from(["/", "/ws"]),
    )
    def test_any_head_is_accepted_or_rejected(self, fields: list[tuple[str, str]], target: str) -> None:
        self.check(head(*fields, target=target))

    @given(st.integers(0, 300), st.integers(0, 8), st.binary(max_size=8))
    def test_any_damaged_head_too(self, start: int, length: int, put: bytes) -> None:
        request = head(
            Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits", Sec_WebSocket_Protocol="a, b"
        )
        self.check(request[:start] + put + request[start + length :])

    @staticmethod
    def check(request: bytes) -> None:
        """What the transport hands over ends with the first empty line."""
        handshake, rejected = make_handshake(), None
        try:
            handshake.receive(request.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        except Rejected as caught:
            rejected = caught
        if rejected is not None:
            assert rejected.status in (400, 405, 426, 431, 505)
            assert response(rejected.status, rejected.message, rejected.headers)
            return
        assert isinstance(handshake.path, str)
        assert isinstance(handshake.query, dict)
        assert isinstance(handshake.headers, dict)
        assert handshake.protocol  # type: ignore[truthy-bool]
        answer, codec = handshake.accept(8)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert codec.feed(client_frame(TEXT, b"it works")) == [b"it works"]


class TestWhatIsAnUpgrade:
    @pytest.mark.parametrize("value", ["websocket", "WebSocket", "WEBSOCKET", "  websocket", "\twebsocket \t"])
    @pytest.mark.parametrize("name", ["Upgrade", "upgrade", "UPGRADE"])
    def test_by_its_field(self, name: str, value: str) -> None:
        assert is_upgrade(f"GET / HTTP/1.1\r\nHost: x\r\n{name}:{value}\r\n\r\n".encode())

    @pytest.mark.parametrize(
        "request_",
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            b"GET / HTTP/1.1\r\nX-Upgrade: websocket\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: upgrade: websocket\r\n\r\n",
            b"GET /?upgrade:websocket HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nUpgrade: websockets\r\n\r\n",
            b"",
        ],
    )
    def test_everything_else_is_http(self, request_: bytes) -> None:
        assert not is_upgrade(request_)


class TestDeflate:
    """Negotiation, as both sides understand it."""

    @staticmethod
    def agree(
        *offers: OfferResult, compression: bool = True, takeover: bool = False
    ) -> tuple[PerMessageDeflate | None, int]:
        client = Client(parse_uri("ws://switch.example/ws"), extensions=offers or None)
        client.send_request(client.connect())
        handshake = received(
            b"".join(client.data_to_send()), compression=compression, incoming_context_takeover=takeover
        )
        answer, codec = handshake.accept(8)
        client.receive_data(answer)
        assert client.handshake_exc is None, client.handshake_exc
        client.events_received()
        extension = next(iter(client.extensions), None)
        assert extension is None or isinstance(extension, PerMessageDeflate)
        for data in (b"a" * 3000, b"b", b"a" * 3000):  # it works in both directions
            client.send_text(data)
            assert codec.feed(b"".join(client.data_to_send())) == [data]
            compressed = frames.Compressor(1, 6).deflate(data, codec.deflate_bits) if codec.deflate_bits else None
            sent = frames.frame(TEXT, data) if compressed is None else frames.frame(TEXT, compressed, compressed=True)
            client.receive_data(sent)
            assert client.parser_exc is None
            assert [bytes(event.data) for event in client.events_received()] == [data]
        return extension, codec.deflate_bits

    @pytest.mark.parametrize(("asked", "got"), [(None, 12), (15, 12), (13, 12), (12, 12), (11, 11), (10, 10), (9, 9)])
    def test_our_window_is_the_smaller_one(self, asked: int | None, got: int) -> None:
        extension, bits = self.agree(OfferResult(server_max_window_bits=asked))
        assert extension is not None
        assert extension.remote_max_window_bits == bits == got

    def test_a_window_that_zlib_cannot_make_is_declined(self) -> None:
        extension, bits = self.agree(OfferResult(server_max_window_bits=8))
        assert (extension, bits) == (None, 0)

    @pytest.mark.parametrize(("offered", "got"), [(True, 12), (15, 12), (12, 12), (9, 9), (None, 15)])
    def test_their_window_is_what_they_can_limit_it_to(self, offered: int | bool | None, got: int) -> None:
        extension, _ = self.agree(OfferResult(client_max_window_bits=offered))
        assert extension is not None
        assert extension.local_max_window_bits == got

    @pytest.mark.parametrize("takeover", [True, False])
    def test_they_keep_their_context_only_where_that_is_allowed(self, takeover: bool) -> None:
        extension, _ = self.agree(OfferResult(), takeover=takeover)
        assert extension is not None
        assert extension.local_no_context_takeover == (not takeover)

    def test_we_never_keep_ours(self) -> None:
        """One compressed message serves all receivers, whatever each of them got before."""
        extension, _ = self.agree(OfferResult(), takeover=True)
        assert extension is not None
        assert extension.remote_no_context_takeover

    def test_without_an_offer_there_is_none(self) -> None:
        assert self.agree() == (None, 0)

    def test_without_our_leave_there_is_none(self) -> None:
        assert self.agree(OfferResult(), compression=False) == (None, 0)

    @pytest.mark.parametrize(
        "extensions",
        [
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits=99",
            "permessage-deflate; unknown",
            "permessage-deflate; client_max_window_bits=x",
        ],
    )
    def test_offers_that_make_no_sense_are_declined(self, extensions: str) -> None:
        request = head(Sec_WebSocket_Extensions=extensions)
        assert "sec-websocket-extensions" not in answered(request)[1]
        _, codec = received(request).accept(8)
        assert codec.deflate_bits == 0

    def test_the_first_offer_that_does_is_taken(self) -> None:
        offers = "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=10, permessage-deflate"
        request = head(Sec_WebSocket_Extensions=offers)
        assert "server_max_window_bits=10" in answered(request)[1]["sec-websocket-extensions"]
        assert answered(request)[1]["sec-websocket-extensions"].count("permessage-deflate") == 1
        assert received(request).accept(8)[1].deflate_bits == 10

    def test_offers_may_be_spread_over_fields(self) -> None:
        offers = [("Sec-WebSocket-Extensions", "permessage-bzip2"), ("Sec-WebSocket-Extensions", "permessage-deflate")]
        _, codec = received(head(*offers)).accept(8)
        assert codec.deflate_bits == DEFLATE_BITS
        assert codec.feed(client_frame(TEXT, deflated(b"x" * 99), rsv=4)) == [b"x" * 99]


class TestResponse:
    @pytest.mark.parametrize("status", [400, 404, 408, 426, 431, 503])
    def test_any_http_client_reads_it(self, status: int) -> None:
        data = response(status, "sorry: é\n", [("Retry-After", "5"), ("X-Odd", "é€")])
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x"), ("Connection", "close")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        answer, body, end = reader.next_event(), reader.next_event(), reader.next_event()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == status
        fields = dict(answer.headers)
        assert fields[b"retry-after"] == b"5"
        assert fields[b"x-odd"] == "é?".encode("latin-1")
        assert fields[b"connection"] == b"close"
        assert isinstance(body, h11.Data)
        assert body.data.decode() == "sorry: é\n"
        assert int(fields[b"content-length"]) == len(body.data)
        assert isinstance(end, h11.EndOfMessage)
        assert reader.trailing_data == (b"", False)


class TestOrdinary:
    """Ordinary requests are read by ourselves, all others by websockets: nobody may tell which it was."""

    @staticmethod
    def seen(handshake: Handshake) -> tuple[object, ...]:
        answer, codec = handshake.accept(8)
        return handshake.path, handshake.query, handshake.headers, handshake.protocol, answer, codec.deflate

    def check(self, request: bytes, **options: bool) -> bool:
        """Returns whether it was ordinary."""
        ours, theirs = make_handshake(**options), make_handshake(**options)
        if ours.read_ordinary(request):
            theirs.read_any(request)
            assert self.seen(ours) == self.seen(theirs)
            return True
        return False

    fields = st.tuples(
        st.sampled_from(["Sec-WebSocket-Protocol", "sec-websocket-extensions", "Origin", "Cookie", "x!-", "X-Y"])
        | st.sampled_from([*UPGRADE, "Content-Length"]),
        st.sampled_from(
            [
                "websocket",
                "keep-alive, Upgrade",
                "13",
                "0",
                "soap",
                "trioswitch.v1",
                "x,, trioswitch.v1.batch",
                "\t\x85a",
            ]
        )
        | st.sampled_from(["permessage-deflate", "permessage-deflate; server_max_window_bits=10, x", 'a; b="c"', "x,"])
        | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
        | st.text(st.characters(max_codepoint=255), max_size=30),
    )
    targets = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map("/".__add__)

    @given(
        st.lists(fields, max_size=4, unique_by=lambda field: field[0]),
        targets | st.sampled_from(["/", "//a/b", "/ws?a=1#b", "/a b", "http://a/b?c"]),
        st.fixed_dictionaries({"compression": st.booleans(), "takeover": st.booleans()}),
    )
    def test_read_as_websockets_reads_it(
        self, fields: list[tuple[str, str]], target: str, options: dict[str, bool]
    ) -> None:
        takeover = options.pop("takeover")
        changed = dict(fields)
        kept = {name: value for name, value in UPGRADE.items() if name not in changed}
        request = head(*fields, target=target, **{name.replace("-", "_"): kept.get(name) for name in UPGRADE})  # type: ignore[arg-type]
        self.check(request, incoming_context_takeover=takeover, **options)

    @given(
        st.integers(0, 300), st.integers(0, 8), st.binary(max_size=8) | st.sampled_from([b" ", b"\t", b"?", b"\r\n"])
    )
    def test_a_damaged_one_too(self, start: int, length: int, put: bytes) -> None:
        request = head(
            Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits", Sec_WebSocket_Protocol="a, b"
        )
        self.check((request[:start] + put + request[start + length :]).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")

    @given(st.text("ABgwQ+/=a \t-", min_size=1, max_size=4), st.integers(0, 24), st.integers(0, 4))
    def test_any_key(self, put: str, start: int, length: int) -> None:
        key = UPGRADE["Sec-WebSocket-Key"]
        self.check(head(Sec_WebSocket_Key=key[:start] + put + key[start + length :]))

    @pytest.mark.parametrize(
        "changed",
        [
            {},
            {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"},
            {"Sec_WebSocket_Protocol": "trioswitch.v1.batch"},
            {"Sec_WebSocket_Protocol": "soap, trioswitch.v1.msgpack"},
            {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"},
            {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=8"},
            {"Origin": "https://switch.example", "Cookie": "a=b", "User_Agent": "Mozilla/5.0 (X11; Linux) é"},
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"compression": False}, {"incoming_context_takeover": True}])
    def test_what_browsers_send_is(self, changed: dict[str, str], options: dict[str, bool]) -> None:
        assert self.check(head(target="/ws?token=a%20b", **changed), **options)

    @pytest.mark.parametrize(
        "request_",
        [
            head(("X", "1"), ("x", "2")),
            head(("Content-Length", "0")),
            head(target="//ws"),
            head(target="/ws#a"),
            head(target="http://switch.example/ws"),
            head(*((f"X{i}", "1") for i in range(124))),
            head(method="POST"),
            head(version="HTTP/1.0"),
            head(Host=None),
            head(Sec_WebSocket_Version="8"),
            head(Sec_WebSocket_Protocol=","),
            head(Sec_WebSocket_Extensions="permessage-deflate; ;"),
            head((" folded", "1")),
        ],
    )
    def test_what_is_not(self, request_: bytes) -> None:
        assert not self.check(request_)

    def test_what_one_request_offered_is_not_agreed_on_with_the_next(self) -> None:
        """What is negotiated is remembered by what was offered, and by us."""
        offered = head(Sec_WebSocket_Extensions="permessage-deflate; server_max_window_bits=10")
        assert [received(offered).accept(8)[1].deflate_bits for _ in range(2)] == [10, 10]
        assert received(offered, compression=False).accept(8)[1].deflate_bits == 0
        for takeover in (False, True):
            agreed = answered(offered, incoming_context_takeover=takeover)[1]["sec-websocket-extensions"]
            assert ("client_no_context_takeover" in agreed) == (not takeover)
        assert received(head()).accept(8)[1].deflate_bits == 0
