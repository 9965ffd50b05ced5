"""How signals stop a run."""

import os
import signal
import threading

import pytest

from dr2pipe.core.processes import ignore_stop_signals, stop_signals_caught

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_afterwards():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_a_second_one_would_end_the_process(number):
    before = signal.getsignal(number)
    asked = []
    with stop_signals_caught(lambda: asked.append(True)):
        os.kill(os.getpid(), number)
        assert asked == [True]
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


def test_outside_the_main_thread_nothing_changes():
    found = []

    def work():
        with stop_signals_caught(lambda: None):
            found.extend(signal.getsignal(number) for number in NUMBERS)

    before = [signal.getsignal(number) for number in NUMBERS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before


def test_workers_of_a_loader_ignore_what_stops_the_trainer():
    ignore_stop_signals(0)
    for number in NUMBERS:
        os.kill(os.getpid(), number)
