"""A log is what a value and a bag for each name would be, however it is cut into bundles."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from meterline.transforms import logs
from meterline.transforms.logs import Bag, Log, Value
from tests.transforms import batches

NAMES = st.sampled_from([b"a", b"b", b"c"])
PARTS = st.binary(max_size=40)
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, PARTS),
    st.tuples(st.just("add"), NAMES, PARTS),
    st.tuples(st.just("clear"), NAMES, st.none()),
)


@given(st.lists(st.lists(STEPS, max_size=6), max_size=30), st.integers(0, 200), st.randoms(use_true_random=False))
def test_a_log_is_a_state_for_each_name(
    bundles: list[list[tuple[str, bytes, bytes]]], slack: int, chance: random.Random
) -> None:
    hot, cold = batches.Bag(), batches.Bag()
    values: dict[bytes, bytes] = {}
    bags: dict[bytes, list[bytes]] = {}
    before, logs._SLACK_BYTES = logs._SLACK_BYTES, slack
    try:
        for steps in bundles:
            hots, colds = Log(hot), Log(cold)
            for step, name, part in steps:
                if step == "write":
                    Value(hots, name).write(part)
                    values[name] = part
                elif step == "add":
                    Bag(colds, name).add(part)
                    bags.setdefault(name, []).append(part)
                else:
                    Bag(colds, name).clear()
                    bags.pop(name, None)
                Value(hots, b"count").write(b"%d" % len(steps))  # As of each rating key: what is at hand changes too.
                values[b"count"] = b"%d" % len(steps)
                if chance.random() < 0.3:
                    assert Value(hots, name).read() == values.get(name)
                    assert sorted(Bag(colds, name).read()) == sorted(bags.get(name, []))
            number = hots.next_number
            hots.write(number)
            colds.write(number)
            chance.shuffle(hot.values)
            chance.shuffle(cold.values)
        for name in (b"a", b"b", b"c", b"count"):
            assert Value(Log(hot), name).read() == values.get(name)
            assert list(Bag(Log(cold), name).read()) == bags.get(name, [])
    finally:
        logs._SLACK_BYTES = before


def test_a_log_is_not_much_longer_than_what_it_says() -> None:
    bag, written = batches.Bag(), 0
    for number in range(5_000):
        log = Log(bag)
        Value(log, b"%d" % (number % 7)).write(bytes(1_000))
        before = len(bag.values)
        log.write(log.next_number)
        written += sum(map(len, bag.values if len(bag.values) <= before else bag.values[before:]))
        assert sum(map(len, bag.values)) < 2 * 7_000 + logs._SLACK_BYTES + 1_000
    assert written < 2 * 5_000 * 1_000


def test_a_log_of_many_names_with_little_to_say_is_not_written_anew_each_time() -> None:
    bag, names, anew = batches.Bag(), [b"%0100d" % number for number in range(1_000)], 0
    for number in range(300):
        log, before = Log(bag), len(bag.values)
        for name in names[number % 100 :: 100] if number else names:
            Value(log, name).write(bytes(40))
        log.write(log.next_number)
        anew += len(bag.values) <= before
    assert anew <= 3


def test_a_log_that_nobody_read_is_only_added_to() -> None:
    bag = batches.Bag()
    bag.read = None  # type: ignore[method-assign, assignment]
    for number in range(3):
        log = Log(bag)
        Bag(log, b"a").add(b"x")
        log.write(number)
    assert len(bag.values) == 3
    log = Log(bag)
    log.write(4)
    assert len(bag.values) == 3
