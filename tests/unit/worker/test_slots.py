from __future__ import annotations

import threading
import time

from worker.slots import Slot, Slots


def test_slot_that_was_taken_is_free_again_after_it_was_given() -> None:
    slots = Slots.on_host(cpu=1, gpus=[])
    with slots.asking("cpu") as take:
        assert take is not None
        slot = take("cpu")
    assert slots.free("cpu") == 0
    slots.give(slot)
    assert slots.free("cpu") == 1


def test_nobody_is_asked_while_nothing_is_free() -> None:
    slots = Slots([Slot("cpu")])
    with slots.asking("cpu") as take:
        assert take is not None
        take("cpu")
    with slots.asking("cpu", "cuda") as take:
        assert take is None


def test_imports_have_a_lane_of_their_own() -> None:
    slots = Slots.on_host(cpu=1, gpus=[])
    with slots.asking("cpu", "import") as take:
        assert take is not None
        take("cpu")
    with slots.asking("cpu", "import") as take:
        assert take is not None
        assert take("import").kind == "import"


def test_an_import_that_takes_long_holds_up_neither_the_next_nor_a_plan() -> None:
    slots = Slots.on_host(cpu=1, gpus=[])
    with slots.asking("import") as take:
        assert take is not None
        take("import")
    assert (slots.free("import"), slots.free("plan"), slots.free("cpu")) == (1, 1, 1)


def test_every_gpu_is_given_out_once() -> None:
    slots = Slots.on_host(cpu=1, gpus=["GPU-a", "GPU-b"])
    with slots.asking("cuda") as take:
        assert take is not None
        assert {take("cuda").gpu, take("cuda").gpu} == {"GPU-a", "GPU-b"}
    assert slots.free("cuda") == 0


def test_second_who_asks_waits_for_the_answer_of_the_first() -> None:
    slots = Slots([Slot("cpu")])
    seen: list[bool] = []

    def ask() -> None:
        with slots.asking("cpu") as take:
            seen.append(take is not None)

    with slots.asking("cpu"):
        other = threading.Thread(target=ask)
        other.start()
        time.sleep(0.05)
        assert seen == []  # the first has not taken it yet
    other.join()
    assert seen == [True]


def test_hundred_threads_never_hold_more_than_there_is() -> None:
    slots = Slots.on_host(cpu=3, gpus=[])
    held, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal held, most
        with slots.asking("cpu") as take:
            slot = take("cpu") if take else None
        if slot is None:
            return
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.001)
        with lock:
            held -= 1
        slots.give(slot)

    threads = [threading.Thread(target=work) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 3
    assert slots.free("cpu") == 3


def test_several_slots_are_taken_as_one_and_given_back_one_by_one() -> None:
    slots = Slots.on_host(cpu=0, gpus=["GPU-a", "GPU-b", "GPU-c"])
    with slots.asking("cuda") as take:
        assert take is not None
        pair = take("cuda", 2)
    assert pair.gpu == "GPU-a,GPU-b"
    assert slots.free("cuda") == 1
    slots.give(pair)
    assert {slot.gpu for slot in slots.slots if slot.kind == "cuda"} == {"GPU-a", "GPU-b", "GPU-c"}
