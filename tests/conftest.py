import pytest
from trio.testing import MockClock

pytest.register_assert_rewrite("store_contract", "broker_contract")


@pytest.fixture(params=["native", "trio-websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports: what a test says of one holds for the other."""
    return request.param


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """A clock that jumps ahead whenever every task waits: a test that takes it waits for nothing."""
    return autojump_clock
