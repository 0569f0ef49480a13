"""Worker processes: bounds, backpressure, and what a job that fails, hangs or kills its process leaves behind."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
import trio
from support import settled

from trioswitch.workers import MissingExtra, WorkerDied, Workers, open_workers

pytestmark = pytest.mark.slow

PATIENCE = 20.0


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file: `jobs.wait_for` works until the test touches it."""
    return tmp_path / "gate"


def release(gate: Path) -> None:
    gate.touch()


def kill(worker: int) -> None:
    """Kill a process, and wait until it is dead."""
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)


async def until(condition: Callable[[], bool]) -> None:
    """What another process does has no event here."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.001)


async def began(gate: Path) -> None:
    await until(gate.with_suffix(".started").exists)


async def test_a_job_runs_in_another_process_that_is_used_again() -> None:
    async with open_workers(1) as workers:
        first = await workers.run(jobs.pid)
        assert first != os.getpid()
        assert await workers.run(jobs.pid) == first
        assert await workers.run(jobs.echo, b"x" * 1_000_000) == b"x" * 1_000_000
        statistics = workers.statistics()
        assert (statistics.processes, statistics.running, statistics.waiting, statistics.done) == (1, 0, 0, 3)
        assert statistics.busy > 0


async def test_as_many_run_at_a_time_as_there_are_processes(tmp_path: Path) -> None:
    gates = [tmp_path / name for name in ("a", "b")]
    async with open_workers(2) as workers:
        for gate in gates:
            await workers.submit(jobs.wait_for, gate)
        for gate in gates:
            await began(gate)
        assert workers.statistics().running == 2
        for gate in gates:
            release(gate)
        await workers.wait_idle()


async def test_the_event_loop_goes_on_while_a_job_runs(gate: Path) -> None:
    """The job ends when the loop has turned often enough: if it were held up, neither would come to an end."""
    async with open_workers(1) as workers, trio.open_nursery() as nursery:

        async def turn() -> None:
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
            release(gate)

        nursery.start_soon(turn)
        with trio.fail_after(PATIENCE):
            assert await workers.run(jobs.wait_for, gate, "done") == "done"


async def test_bounds_backpressure_and_order(gate: Path) -> None:
    answers: list[object] = []
    async with open_workers(1, waiting=2) as workers, trio.open_nursery() as nursery:
        await workers.submit(jobs.wait_for, gate, "first", then=answers.append)
        assert not workers.full
        workers.submit_nowait(jobs.echo, "second", then=answers.append)
        await workers.submit(jobs.echo, "third", then=answers.append)
        assert workers.full
        with pytest.raises(trio.WouldBlock):
            workers.submit_nowait(jobs.echo, "refused", then=answers.append)

        async def submit(answer: str) -> None:
            await workers.submit(jobs.echo, answer, then=answers.append)
            accepted.append(answer)

        async def run(answer: str) -> None:
            answers.append(await workers.run(jobs.echo, answer))

        accepted: list[str] = []
        for call, answer in ((submit, "fourth"), (submit, "fifth"), (run, "sixth")):
            nursery.start_soon(call, answer)
            await settled()
        assert accepted == []
        statistics = workers.statistics()
        assert (statistics.running, statistics.waiting, statistics.callers) == (1, 2, 3)

        release(gate)
        await until(lambda: len(answers) == 6)
        assert answers == ["first", "second", "third", "fourth", "fifth", "sixth"]
        assert accepted == ["fourth", "fifth"]
        await workers.wait_idle()
        statistics = workers.statistics()
        assert (statistics.done, statistics.running, statistics.waiting, statistics.callers) == (6, 0, 0, 0)


async def test_without_a_queue_a_job_is_taken_or_waits_outside(gate: Path) -> None:
    async with open_workers(1, waiting=0) as workers, trio.open_nursery() as nursery:
        workers.submit_nowait(jobs.wait_for, gate)
        with pytest.raises(trio.WouldBlock):
            workers.submit_nowait(jobs.pid)
        nursery.start_soon(workers.submit, jobs.pid)
        await settled()
        assert workers.statistics().callers == 1
        release(gate)


async def test_cancelling_a_job_that_waits_frees_its_place(gate: Path) -> None:
    answers: list[object] = []
    async with open_workers(1, waiting=1) as workers, trio.open_nursery() as nursery:
        await workers.submit(jobs.wait_for, gate)
        with trio.CancelScope() as waits:
            async with trio.open_nursery() as others:
                others.start_soon(workers.run, jobs.fail, "never called")
                await settled()
                with trio.CancelScope() as outside:
                    nursery.start_soon(lambda: workers.submit(jobs.echo, "next", then=answers.append))
                    await settled()
                    others.start_soon(lambda: workers.submit(jobs.fail, "never called either"))
                    await settled()
                    outside.cancel()
                assert workers.statistics().callers == 2
                waits.cancel()
        statistics = workers.statistics()
        assert (statistics.withdrawn, statistics.waiting, statistics.callers) == (2, 1, 0)
        release(gate)
        await workers.wait_idle()
        assert answers == ["next"]
        assert workers.statistics().failed == 0


async def test_cancelling_a_job_that_runs_leaves_it_to_its_end(gate: Path) -> None:
    async with open_workers(1, waiting=0) as workers:
        worker = await workers.run(jobs.pid)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.run, jobs.wait_for, gate)  # type: ignore[arg-type]
                await began(gate)
                scope.cancel()
        statistics = workers.statistics()
        assert (statistics.running, statistics.abandoned, statistics.done) == (1, 1, 1)
        assert workers.full  # it still has its process
        release(gate)
        assert await workers.run(jobs.pid) == worker
        assert workers.statistics().done == 3


async def test_what_a_function_raises_is_raised_in_its_caller_only(caplog: pytest.LogCaptureFixture) -> None:
    async with open_workers(1) as workers:
        worker = await workers.run(jobs.pid)
        with pytest.raises(ValueError, match="too red"):
            await workers.run(jobs.fail, "too red")
        with pytest.raises(RuntimeError, match=r"leave raised SystemExit\(3\)"):
            await workers.run(jobs.leave, 3)
        with pytest.raises(Exception, match=r"(?i)pickle|local object"):
            await workers.run(lambda: None)
        assert await workers.run(jobs.pid) == worker
        assert workers.statistics().failed == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_job_that_nobody_waits_for_fails_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(answer: object) -> None:
        raise LookupError(f"nobody wants {answer}")

    async with open_workers(1) as workers:
        await workers.submit(jobs.fail, "too red")
        await workers.submit(jobs.echo, 7, then=refuse)
        await workers.submit(jobs.die, 4)
        await workers.wait_idle()
        statistics = workers.statistics()
        assert (statistics.done, statistics.failed, statistics.died) == (0, 2, 1)
    logged = [record for record in caplog.records if record.name == "trioswitch.workers"]
    assert [record.getMessage() for record in logged] == ["job fail failed", "job echo failed", "job die failed"]
    assert "too red" in caplog.text
    assert "nobody wants 7" in caplog.text
    assert "exit status 4" in caplog.text


async def test_a_process_that_dies_is_an_error_for_its_job_only() -> None:
    async with open_workers(1) as workers:
        first = await workers.run(jobs.pid)
        with pytest.raises(WorkerDied, match="kill_itself died: killed by signal 9"):
            await workers.run(jobs.kill_itself)
        second = await workers.run(jobs.pid)
        assert second != first
        kill(second)  # while it is idle: nobody's job is lost
        assert await workers.run(jobs.pid) not in (first, second)
        assert workers.statistics().died == 1


async def test_a_job_that_takes_too_long_is_killed(gate: Path) -> None:
    async with open_workers(1, time_limit=1.5) as workers:
        worker = await workers.run(jobs.pid)
        with pytest.raises(trio.TooSlowError, match=r"wait_for took longer than 1\.5 seconds"):
            await workers.run(jobs.wait_for, gate)
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        assert workers.statistics().late == 1


async def test_leaving_the_block_waits_for_what_was_accepted(gate: Path) -> None:
    answers: list[object] = []
    async with open_workers(1) as workers:
        await workers.submit(jobs.wait_for, gate, 1, then=answers.append)  # type: ignore[arg-type]
        await workers.submit(jobs.echo, 2, then=answers.append)
        release(gate)
    assert answers == [1, 2]
    for refused in (workers.run, workers.submit):
        with pytest.raises(trio.ClosedResourceError):
            await refused(jobs.pid)
    with pytest.raises(trio.ClosedResourceError):
        workers.submit_nowait(jobs.pid)


async def test_cancelling_the_block_kills_what_runs(gate: Path) -> None:
    outcomes: list[str] = []
    opened: list[Workers] = []

    async def call(workers: Workers, name: str) -> None:
        try:
            await workers.run(jobs.wait_for, gate)
        except trio.ClosedResourceError:
            outcomes.append(name)

    async with trio.open_nursery() as outside:
        with trio.move_on_after(PATIENCE) as scope:
            async with open_workers(1) as workers:
                opened.append(workers)
                worker = await workers.run(jobs.pid)
                for name in ("runs", "waits"):
                    outside.start_soon(call, workers, name)
                    await settled()
                await began(gate)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert sorted(outcomes) == ["runs", "waits"]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


async def test_processes_that_cannot_start_are_told_when_the_pool_is_opened() -> None:
    with pytest.raises(WorkerDied, match="could not start"):
        async with open_workers(1, init=jobs.kill_itself):
            pytest.fail("it was opened")


async def test_init_runs_in_each_process_before_any_job() -> None:
    async with open_workers(1, init=os.setpgrp) as workers:
        assert os.getpgid(await workers.run(jobs.pid)) != os.getpgid(0)


async def test_without_trio_parallel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_parallel", None)
    with pytest.raises(MissingExtra, match=r"pip install trioswitch\[workers\]"):
        async with open_workers():
            pytest.fail("it was opened")


@pytest.mark.parametrize(
    "numbers", [{"processes": 0}, {"waiting": -1}, {"time_limit": 0}, {"time_limit": float("nan")}]
)
async def test_numbers_that_make_no_sense(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no pool of"):
        async with open_workers(**numbers):  # type: ignore[arg-type]
            pytest.fail("it was opened")
