from collections.abc import AsyncIterator

import pytest
from chromium import Browser, open_chromium


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A fresh browser. At the end no page may have had an exception or a console error.

    But that it could not connect is no problem: servers end, in tests and with them.
    """
    async with open_chromium() as browser:
        yield browser
        assert [problem for problem in browser.problems if not problem.startswith("WebSocket connection to")] == []
