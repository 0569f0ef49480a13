"""The inbox of a client, without a server: at least once for the server's sake, and once for the application's."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trioswitch.client import Message
from trioswitch.client.inbox import Inbox
from trioswitch.client.room_sync import Buffer


class InboxMessages(RuleBasedStateMachine):
    """A server that keeps messages until they are acknowledged, and an application that takes its time.

    The server may start again, with its messages and numbers or without them. Acknowledgements and messages may be lost with the
    connection. The application sees every message once, in order, but for those that a server forgot before it gave them.
    """

    LIMIT = 4

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox(Buffer(self.LIMIT, 1000))
        self.inbox.used = True
        self.last = 0
        self.sent = 0
        self.kept: dict[int, int] = {}  # seq -> which message it is
        self.forgotten: set[int] = set()
        self.wire: deque[int] = deque()
        self.acks: deque[int] = deque()
        self.got: list[int] = []
        self.finished: set[int] = set()
        self.inbox.begin(resumed=False)

    # --- the server

    @rule()
    def post(self) -> None:
        self.last += 1
        self.kept[self.last] = self.sent
        self.sent += 1
        self.wire.append(self.last)

    @precondition(lambda self: self.acks)
    @rule(works=st.booleans())
    def carry_out(self, works: bool) -> None:
        upto = self.acks.popleft()
        if not works:
            self.inbox.ack_failed()
            return
        for seq in [seq for seq in self.kept if seq <= upto]:
            message = self.kept.pop(seq)
            assert message in self.finished, "acknowledged, and the application was not done with it"
        self.inbox.confirmed(upto)

    @rule(resumed=st.booleans(), durable=st.booleans(), heard=st.booleans())
    def reconnect(self, resumed: bool, durable: bool, heard: bool) -> None:
        if heard:  # the answers are lost, but the server has carried it out
            for upto in self.acks:
                self.kept = {seq: message for seq, message in self.kept.items() if seq > upto}
        self.acks.clear()
        self.wire.clear()
        if not resumed and not durable:
            self.forgotten |= set(self.kept.values())
            self.last, self.kept = 0, {}
        self.acks.append(self.inbox.begin(resumed=resumed))
        self.wire.extend(self.kept)

    # --- the client

    @precondition(lambda self: self.wire)
    @rule()
    def hear(self) -> None:
        seq = self.wire.popleft()
        if seq in self.kept:
            number = self.kept[seq]
            message = Message(type="direct_message", to="me", data=number, seq=seq, timestamp=str(number))
            self.inbox.message(message, 1)

    @rule()
    def take(self) -> None:
        if self.got:
            self.finished.add(self.got[-1])
        item = self.inbox.take()
        if item is not None:
            assert isinstance(item, Message)
            self.got.append(item.data)
        if (upto := self.inbox.acknowledge(idle=item is None)) is not None:
            self.acks.append(upto)
        if self.inbox.stuck:
            self.reconnect(resumed=True, durable=True, heard=False)

    @invariant()
    def the_application_sees_each_message_once_in_order(self) -> None:
        assert self.got == sorted(set(self.got))

    @invariant()
    def the_buffer_is_bounded(self) -> None:
        assert self.inbox.buffered <= self.LIMIT

    def teardown(self) -> None:
        for _ in range(1000):
            if self.wire:
                self.hear()
            if self.acks:
                self.carry_out(works=True)
            before = len(self.got)
            self.take()
            if len(self.got) == before and not self.wire and not self.acks and not self.kept:
                break
        else:
            raise AssertionError("it never comes to rest")
        assert set(range(self.sent)) - set(self.got) <= self.forgotten


TestInboxes = InboxMessages.TestCase
TestInboxes.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
