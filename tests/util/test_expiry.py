"""Queues of what is due at some time, against a list."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from trioswitch._util.expiry import DueQueue

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5)),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("pass"), st.integers(0, 4)),
    )
)


@given(STEPS)
def test_as_a_list_would_do_it(steps: list[tuple[str, int]]) -> None:
    """Each value is due 5 seconds after it was added; a key that is added again waits anew."""
    queue: DueQueue[int, str] = DueQueue()
    model: list[tuple[float, int, str]] = []
    now = 0.0
    for number, (step, argument) in enumerate(steps):
        known = {key: value for _due, key, value in model}
        assert queue.get(argument) == known.get(argument)
        assert (argument in queue) == (argument in known)
        if step == "add":
            queue.add(argument, f"value {number}", now + 5)
            model = [item for item in model if item[1] != argument] + [(now + 5, argument, f"value {number}")]
        elif step == "remove":
            assert queue.remove(argument) == known.get(argument)
            model = [item for item in model if item[1] != argument]
        else:
            now += argument
            assert list(queue.pop_due(now)) == [(key, value) for due, key, value in model if due <= now]
            model = [item for item in model if item[0] > now]
        assert len(queue) == len(model)
        assert queue.next_due() == (model[0][0] if model else inf)
        assert queue.oldest() == (model[0][1] if model else None)
