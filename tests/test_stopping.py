"""What SIGINT does in a run of several processes; tests/test_train.py has those of one."""

import signal

import jax
import pytest

from mcn_jax.stopping import StopRequests


@pytest.fixture
def several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)


@pytest.mark.usefixtures("several_processes")
def test_an_interrupt_that_was_lost_comes_again_before_the_next_dispatch():
    with StopRequests() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.pending()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("several_processes")
def test_what_ignores_interrupts_goes_on_ignoring_them():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequests():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
