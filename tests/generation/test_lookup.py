"""What a text foresees, and when trying it pays."""

from __future__ import annotations

import random

import pytest

from interlace.generation import lookup
from interlace.generation.lookup import MOST, PATIENCE, RIGHT, Lookup, Pace


def test_it_foresees_what_followed_the_same_tokens():
    draw = random.Random(0)
    for _ in range(200):
        prompt = [draw.randrange(3) for _ in range(draw.randint(0, 12))]
        one, ids = Lookup(prompt), list(prompt)
        for _ in range(30):
            token = draw.randrange(3)
            one.push(token)
            ids.append(token)
        if draft := one.draft(5):
            assert one.right >= RIGHT
            assert len(draft) <= 5
            place = ids[-3:]
            assert any(ids[i - 3 : i] == place and ids[i] == draft[0] for i in range(3, len(ids)))


def test_a_copy_is_foreseen_to_its_end_and_a_loop_beyond():
    text = list(range(100, 140))
    one = Lookup([*text, 1, 2, 3])
    for token in text[: 3 + RIGHT]:
        assert one.draft(9) == []
        one.push(token)
    assert one.draft(50) == text[3 + RIGHT : 3 + 3 * RIGHT]
    loop = Lookup([7, 8, 9, 7, 8, 9, 7, 8])
    for token in (9, 7, 8, 9):
        loop.push(token)
    assert loop.draft(4) == [7, 8, 9, 7]
    for _ in range(40):
        loop.push(loop.draft(1)[0])
    assert len(loop.draft(1000)) == MOST
    assert loop.draft(0) == []


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3]])
def test_short_texts_foresee_nothing(ids):
    one = Lookup(ids)
    for token in (1, 2):
        one.push(token)
        assert one.draft(5) == []


def test_tries_that_do_not_pay_end_and_come_back_ever_later():
    pace = Pace()
    for _ in range(3):
        pace.stepped(1, 0.001)
    waited = []
    for _ in range(4):
        steps = 0
        while not pace.worth(1000):
            pace.stepped(1, 0.001)
            steps += 1
        waited.append(steps)
        pace.tried(2, 0.01)  # as many tokens would have taken 2 ms
    assert waited == [PATIENCE - 3, PATIENCE, 2 * PATIENCE, 4 * PATIENCE]
    assert not pace.worth(8)  # a try takes the time of ten steps


def test_tries_that_pay_go_on():
    pace = Pace()
    for _ in range(PATIENCE):
        pace.stepped(1, 0.1)
    for _ in range(10):
        assert pace.worth(4)
        pace.tried(5, 0.15)
    assert not pace.worth(1)
    assert lookup.LONGEST > PATIENCE
