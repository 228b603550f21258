"""The lock of the page: turns are granted in the order of asking."""

import threading

from model.turns import Turns
from tests.server import wait_until


def start(turns: Turns, name: str, order: list) -> threading.Thread:
    """Start a thread that asks for one turn; returns once the thread waits."""

    def take():
        with turns:
            order.append(name)

    before = len(turns._waiting)
    thread = threading.Thread(target=take)
    thread.start()
    wait_until(lambda: len(turns._waiting) > before, 10, "the thread waits")
    return thread


def test_turns_come_in_the_order_of_asking():
    turns, order = Turns(), []
    with turns:
        threads = [start(turns, name, order) for name in "abc"]
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c"]


def test_a_long_drawing_gives_way_after_each_step():
    turns, order = Turns(), []
    for step in range(3):
        with turns:
            order.append(f"step {step}")
            waiting = start(turns, f"digit {step}", order)
    waiting.join(10)
    assert order == ["step 0", "digit 0", "step 1", "digit 1", "step 2", "digit 2"]


def test_an_error_inside_a_turn_ends_it():
    turns = Turns()
    for _ in range(2):
        try:
            with turns:
                raise ValueError
        except ValueError:
            pass
    assert not turns._taken
