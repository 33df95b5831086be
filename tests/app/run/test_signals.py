"""What stops a run: a signal, a closed terminal, or a launcher that is gone."""

import os
import signal
import threading

import pytest

from lr_lightning.app.run import signals
from tests.app.test_world import SLURM, TORCHRUN, use


def test_a_closed_terminal_is_one_stop_and_nohup_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with signals.Signals() as noted:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # the system and the shell each send one
            assert noted.signum == signal.SIGHUP
            with pytest.raises(signals.Interrupted) as caught:
                signal.raise_signal(signal.SIGTERM)
            assert caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with signals.Signals() as noted:
            signal.raise_signal(signal.SIGHUP)
            assert noted.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", signals.WARNINGS)
def test_the_warning_of_a_batch_system_is_a_stop_unless_it_is_handled(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with signals.Signals() as noted:
            signal.raise_signal(number)  # its default action would kill
            assert noted.signum == number
        assert signal.getsignal(number) == signal.SIG_DFL
        handled: list[int] = []
        signal.signal(number, lambda signum, _: handled.append(signum))
        with signals.Signals() as noted:
            signal.raise_signal(number)
        assert (noted.signum, handled) == (None, [number])
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("stops", [True, False])
def test_a_rank_whose_launcher_is_gone_stops_or_is_ended(monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    told, ended = threading.Event(), threading.Event()
    parents = iter([7, 7, 7, 1, 1, 1])
    monkeypatch.setattr(signals.os, "getppid", lambda: next(parents))
    watch = signals.ParentWatch(period=0.001, grace=10 if stops else 0.001)

    def kill(pid: int, signum: int) -> None:
        assert (pid, signum) == (os.getpid(), signal.SIGTERM)
        told.set()
        if stops:
            watch.stop()

    monkeypatch.setattr(signals.os, "kill", kill)
    monkeypatch.setattr(signals.os, "_exit", lambda code: ended.set())
    watch.start()
    watch.join(30)
    assert not watch.is_alive()
    assert told.is_set()
    assert ended.is_set() == (not stops)


def test_a_process_whose_parent_was_gone_before_it_looked_is_told_and_left_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = threading.Event()
    monkeypatch.setattr(signals.os, "kill", lambda pid, signum: told.set())
    monkeypatch.setattr(signals.os, "_exit", lambda code: pytest.fail("it was ended"))
    watch = signals.ParentWatch(grace=None, parent=os.getppid() + 1)
    waits: list[float | None] = []
    until_stopped = watch._stopped.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return until_stopped(timeout)

    monkeypatch.setattr(watch._stopped, "wait", wait)
    watch.start()
    assert told.wait(30)
    while not waits or waits[-1] is not None:  # after it was told, it is waited for as long as it takes
        assert watch.is_alive()
    watch.stop()
    watch.join(30)
    assert not watch.is_alive()


@pytest.mark.parametrize(
    ("env", "child"),
    [({}, False), (TORCHRUN, True), (SLURM, False), ({"LOCAL_RANK": "1"}, True), ({"LOCAL_RANK": "0"}, False)],
)
def test_only_launchers_children_watch_their_parent(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], child: bool
) -> None:
    use(monkeypatch, env)
    assert signals.is_child() == child
