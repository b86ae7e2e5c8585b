"""The runner's parts that need no process: the board, the link, seats, the watchdog."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import termios

import pytest

from zart.cli.command import parse_size
from zart.config import WorkerConfig
from zart.errors import InvalidArgument
from zart.meters import EXECUTIONS_COMPLETED, TICKS
from zart.metrics import MOST_THREADS, Place
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.health import Watchdog, loop_beats
from zart.runner.link import MESSAGE_BYTES, STOP, Death, DeathLink
from zart.runner.options import RunnerOptions
from zart.runner.process import blamed, describe_status
from zart.runner.recycling import begin_life
from zart.runner.seat import Seat, restart_delay
from zart.runner.signals import Signals


def test_a_board_is_shared_with_forked_processes() -> None:
    board = Board(3)
    child = os.fork()
    if child == 0:
        board.places[2].add(TICKS, 4)
        board.header[header.TAKEN_OVER] = 9
        board.say("three  words\nhere", 1)
        os._exit(0)
    os.waitpid(child, 0)
    assert board.places[2].words[TICKS] == 4
    assert board.header[header.TAKEN_OVER] == 9
    assert board.said(1) == "three words here"


def test_places_of_a_board_do_not_overlap() -> None:
    board = Board(3)
    for index, place in enumerate(board.places):
        for offset in range(Place.size() // 8):
            place.words[offset] = index + 1
        board.say("x" * 5000, index)
    board.say("the runner's")
    for index, place in enumerate(board.places):
        assert set(place.words) == {index + 1}
        assert set(board.said(index)) == {"x"}
    assert board.said() == "the runner's"
    assert not any(board.header)


@pytest.mark.parametrize("procs", [0, -1, 513])
def test_procs_out_of_bounds_are_refused(procs: int) -> None:
    with pytest.raises(InvalidArgument, match="procs must be from 1 to 512"):
        Board(procs)
    with pytest.raises(InvalidArgument, match="procs must be from 1 to 512"):
        RunnerOptions(dsn="postgresql://", app="app", procs=procs)


def test_a_board_that_is_too_small_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 places"):
        RunnerOptions(dsn="postgresql://", app="app", procs=2, board=Board(1))


def test_restarts_come_at_once_first_and_then_ever_later() -> None:
    assert [restart_delay(deaths) for deaths in range(1, 6)] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert restart_delay(50) == 10.0


def test_a_long_life_makes_the_next_death_count_as_the_first() -> None:
    seat = Seat()
    for _ in range(5):
        seat.put_off(0.0)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    seat.begin(pid, -1e9)
    while seat.reap() is None:
        pass
    seat.put_off(0.0)
    assert seat.due == 0.1


def test_only_failed_starts_in_a_row_are_too_many() -> None:
    seat = Seat()
    assert [seat.note_start(worked=number == 4) for number in range(10)] == [False] * 9 + [True]


def test_chance_takes_up_to_a_tenth_off_the_limits_of_a_life() -> None:
    options = RunnerOptions(dsn="postgresql://", app="app", max_age=100, max_executions=1000)
    place = Place.private()
    place.add(EXECUTIONS_COMPLETED, 7)
    lives = [begin_life(options, place, 50.0) for _ in range(200)]
    assert all(140.0 <= (life.until or 0) <= 150.0 and 907 <= (life.most_served or 0) <= 1007 for life in lives)
    assert len({life.until for life in lives}) > 100


def test_a_life_without_limits_never_ends() -> None:
    place = Place.private()
    life = begin_life(RunnerOptions(dsn="postgresql://", app="app"), place, 0.0)
    place.add(EXECUTIONS_COMPLETED, 10**9)
    place.pid = os.getpid()
    assert life.is_over(place, 1e9) == ""


@pytest.mark.parametrize(("procs", "most"), [(1, 17), (16, 32), (100, 200), (512, 512)])
def test_a_fleet_may_grow_to_twice_its_size_and_by_16(procs: int, most: int) -> None:
    assert RunnerOptions(dsn="postgresql://", app="app", procs=procs).most_procs == most


@pytest.mark.parametrize(("lease", "stall"), [(15, 10), (60, 40), (2, 5)])
def test_a_stall_is_reported_before_the_lease_ends(lease: float, stall: float) -> None:
    config = WorkerConfig(lease_timeout=lease)
    assert RunnerOptions(dsn="postgresql://", app="app", config=config).stall_seconds == stall


@pytest.mark.parametrize(("text", "size"), [("1048576", 2**20), ("512K", 2**19), ("1.5M", 3 * 2**19), (" 2G ", 2**31)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, "--max-rss") == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1T", "1 M", "1e3", "nan", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--max-rss must be a size"):
        parse_size(text, "--max-rss")


def test_a_stalled_worker_is_told_after_the_limit() -> None:
    place, watchdog = Place.private(), Watchdog[int](3.0)
    place.ready = place.pid = 1
    assert [watchdog.stalled(loop_beats([place]), float(now)) for now in range(5)] == [{}, {}, {}, {}, {0: 4.0}]


def test_a_worker_whose_loop_turns_is_not_stalled() -> None:
    place, watchdog = Place.private(), Watchdog[int](3.0)
    place.ready = place.pid = 1
    for now in range(10):
        place.loop_count += now % 2
        assert watchdog.stalled(loop_beats([place]), float(now)) == {}


def test_a_successor_is_not_stalled_for_its_predecessor() -> None:
    place, watchdog = Place.private(), Watchdog[int](3.0)
    place.ready = place.pid = 1
    for now in range(4):
        watchdog.stalled(loop_beats([place]), float(now))
    place.pid = 2
    assert watchdog.stalled(loop_beats([place]), 4.0) == {}


def test_a_pause_of_the_arbiter_makes_nobody_stalled() -> None:
    place, watchdog = Place.private(), Watchdog[int](3.0)
    place.ready = place.pid = 1
    watchdog.stalled(loop_beats([place]), 0.0)
    assert watchdog.stalled(loop_beats([place]), 60.0) == {}


def _received(end: socket.socket) -> list[bytes]:
    end.setblocking(False)
    messages: list[bytes] = []
    while True:
        try:
            messages.append(end.recv(8192))
        except BlockingIOError:
            return messages


def _live_through_a_hang_up(master: int, slave: int) -> None:
    """On a terminal of its own: end once that has gone, and its end is told from a SIGHUP that comes long after."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    with Signals() as signals:
        signals.taken()
        os.close(master)
        while not signals.terminal_is_gone():
            signals.taken()
        while signals.terminal_is_gone():
            signals.taken()


def test_only_just_after_its_end_is_a_terminal_gone() -> None:
    master, slave = os.openpty()
    child = os.fork()
    if child == 0:
        try:
            _live_through_a_hang_up(master, slave)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(slave)
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_death_comes_back_as_it_was_sent() -> None:
    most = tuple(range(2**63 - MOST_THREADS - 1, 2**63))
    for death in (Death(1, (5,), most, "signal SIGSEGV", "ß" * 256), Death(2, (), None), Death(3, (1,), ())):
        assert len(death.encode()) <= MESSAGE_BYTES
        assert Death.decode(death.encode()) == death


def test_deaths_are_kept_until_they_are_acknowledged() -> None:
    link = DeathLink()
    with link.open() as control:
        link.report([1], [])
        link.report([2], None)
        link.exchange()
        assert [json.loads(message)[0] for message in _received(control)] == [1, 2]
        control.send(b"1")
        link.exchange()
        assert link.waiting == 1
    link.close()


def test_the_next_control_hears_what_none_acknowledged() -> None:
    link = DeathLink()
    with link.open() as first:
        link.report([1], [])
        link.report([2], [])
        link.exchange()
        first.send(b"1")
        link.exchange()
    link.exchange()
    assert link.fileno() == -1
    link.report([3], [])
    link.stop()
    with link.open() as second:
        link.exchange()
        messages = _received(second)
    assert [json.loads(message)[1] for message in messages[:-1]] == [[2], [3]]
    assert messages[-1] == STOP
    link.close()


def test_what_control_acknowledged_just_before_its_end_counts() -> None:
    link = DeathLink()
    with link.open() as control:
        link.report([1], [])
        link.exchange()
        control.send(b"1")
    link.close()
    assert link.waiting == 0


def test_more_deaths_than_the_socket_holds_wait_without_blocking() -> None:
    link = DeathLink()
    with link.open() as control:
        for number in range(5000):
            link.report([number], [])
        link.exchange()
        assert link.has_unsent
        heard = 0
        while heard < 5000:
            heard += len(_received(control))
            link.exchange()
    link.close()


@pytest.mark.parametrize("status", [0, 7 << 8, signal.SIGSEGV, signal.SIGKILL])
def test_those_whose_code_ran_are_blamed_however_the_process_ended(status: int) -> None:
    place = Place.private()
    place.ready, place.executing = 1, 5
    place.note_thread(0, 11)
    assert blamed(place, status, stalled=False) == [5, 11]


def test_a_loop_that_stood_still_is_the_doing_of_what_it_ran() -> None:
    place = Place.private()
    place.ready, place.executing = 1, 5
    place.note_thread(0, 11)
    assert blamed(place, signal.SIGKILL, stalled=True) == [5]


@pytest.mark.parametrize("status", [0, 7 << 8, signal.SIGSEGV, signal.SIGABRT])
def test_what_a_process_did_itself_may_be_the_doing_of_any_when_no_code_was_seen_to_run(status: int) -> None:
    place = Place.private()
    place.ready = 1
    assert blamed(place, status, stalled=False) is None
    place.leave()
    assert blamed(place, status, stalled=False) == []


@pytest.mark.parametrize("status", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_from_outside_blames_nobody_who_only_waits(status: int) -> None:
    place = Place.private()
    place.ready = 1
    assert blamed(place, status, stalled=False) == []


def test_statuses_are_named() -> None:
    assert describe_status(9) == "signal SIGKILL"
    assert describe_status(3 << 8) == "exit code 3"
