"""Tasks in processes: their messages, the limit on their number, and that none survives."""

import os
import signal
import time
from collections import Counter
from contextlib import closing

import pytest

from gradwatch.examples.comparison.processes import Ended, Message, Processes, Send, Started


def count_to(number: int, send: Send) -> None:
    for i in range(number):
        send(i)


def die(signal_number: int, send: Send) -> None:
    send("last words")
    os.kill(os.getpid(), signal_number)


def sleep(seconds: float, send: Send) -> None:
    send(os.getpid())
    time.sleep(seconds)


def test_all_that_is_sent_is_heard_in_order_and_then_the_end() -> None:
    heard = list(Processes(count_to, jobs=1).events([2, 0, 1]))
    assert heard == [
        *[(2, Started()), (2, Message(0)), (2, Message(1)), (2, Ended(0))],
        *[(0, Started()), (0, Ended(0))],
        *[(1, Started()), (1, Message(0)), (1, Ended(0))],
    ]


def test_no_more_run_at_a_time_than_asked_for() -> None:
    running, most = 0, 0
    for _, event in Processes(sleep, jobs=2).events([0.05] * 5):
        running += isinstance(event, Started) - isinstance(event, Ended)
        most = max(most, running)
    assert (running, most) == (0, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_said_to_be_killed(number: int) -> None:
    *_, message, (task, end) = Processes(die, jobs=1).events([number])
    assert message == (number, Message("last words"))
    assert str(end) == f"killed by {signal.Signals(task).name}"


def test_one_that_dies_takes_no_other_with_it() -> None:
    ends = Counter(str(event) for _, event in Processes(die, jobs=3).events([9, 0, 9]) if isinstance(event, Ended))
    assert ends == {"killed by SIGKILL": 2, "exit code 0": 1}


def test_none_is_left_when_nobody_listens_any_more() -> None:
    with closing(Processes(sleep, jobs=2).events([600.0, 601.0])) as events:
        pids = [next_message(events), next_message(events)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def next_message(events: object) -> int:
    for _, event in events:
        if isinstance(event, Message):
            return event.content
    raise AssertionError("no message came")


def test_exceptions_end_a_process_with_an_exit_code() -> None:
    *_, (_, end) = Processes(count_to, jobs=1).events(["no number"])
    assert end == Ended(1)
