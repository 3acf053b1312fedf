"""Beginnings that prompts share: which are worth it, and where their keys and values come to lie."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from worker.inference.generation.prefixes import Beginnings, Prompt, shared_beginnings, under_rows

SYSTEM = tuple(range(100, 140))
OTHER = (*SYSTEM[:5], *range(200, 235))


def test_a_beginning_is_shared_where_it_pays() -> None:
    prompts = [(*SYSTEM, end) for end in range(3)]
    assert shared_beginnings(prompts, least_saved=80) == dict.fromkeys(prompts, 40)
    assert shared_beginnings(prompts, least_saved=81) == {}
    assert shared_beginnings([*prompts[:1] * 9], least_saved=1) == {}, "equal prompts are one prompt"
    short = [(*SYSTEM[:15], end) for end in range(9)]
    assert shared_beginnings(short, least_saved=1) == {}, "a few words that all chats of a template begin with"


def test_a_prompt_with_little_in_common_spoils_no_group() -> None:
    prompts = [(*SYSTEM, 1), (*SYSTEM, 2), (*OTHER, 1), (*OTHER, 2)]
    shared = shared_beginnings(prompts, least_saved=1)
    assert shared == dict.fromkeys(prompts, 40)
    assert {prompt[:40] for prompt in shared} == {SYSTEM, OTHER}


def test_of_each_prompt_something_is_left_to_compute() -> None:
    """The last token of a prompt gives the first new one."""
    prompts = [SYSTEM, (*SYSTEM, 1), (*SYSTEM, 1, 2)]
    assert shared_beginnings(prompts, least_saved=1) == dict.fromkeys(prompts, 39)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40).map(tuple), max_size=12))
def test_whatever_is_shared_is_the_same(prompts: list[Prompt]) -> None:
    shared = shared_beginnings(prompts, least_saved=1)
    groups: dict[Prompt, set[Prompt]] = {}
    for prompt, length in shared.items():
        assert 16 <= length < len(prompt)
        groups.setdefault(prompt[:length], set()).add(prompt)
    assert all(len(group) > 1 for group in groups.values())
    assert shared == shared_beginnings(prompts[::-1], least_saved=1)


def test_a_common_prefix_is_aligned_so_that_all_rows_end_together() -> None:
    beginning = DynamicCache()
    columns_P = torch.arange(1.0, 5.0)
    beginning.update(columns_P.expand(1, 2, 4)[..., None], -columns_P.expand(1, 2, 4)[..., None], 0)
    (layer,) = under_rows(beginning, [0, 1, 3, 9]).layers
    assert layer.keys.shape == layer.values.shape == (4, 2, 4, 1)
    assert layer.keys[0, 1, :, 0].tolist() == [1, 2, 3, 4]
    assert layer.keys[1, 0, 1:, 0].tolist() == [1, 2, 3]
    assert layer.values[2, 1, 3:, 0].tolist() == [-1]
    assert layer.keys.isfinite().all()


def test_a_beginning_is_kept_until_its_last_row_has_begun() -> None:
    prompts = [(*SYSTEM, 1), (*SYSTEM, 2), (*SYSTEM, 2), (7, 8)]
    beginnings = Beginnings(dict.fromkeys(prompts[:3], 40), prompts, most_tokens=1)
    assert beginnings.of((7, 8)) == ()
    first = beginnings.kept(SYSTEM, lambda _: DynamicCache())
    beginnings.begun(SYSTEM, 2)
    assert beginnings.kept(SYSTEM, lambda _: DynamicCache()) is first
    beginnings.begun(SYSTEM, 1)
    assert beginnings.kept(SYSTEM, lambda _: DynamicCache()) is not first


def test_beginnings_are_kept_as_far_as_there_is_room() -> None:
    each = [(number,) * 40 for number in range(3)]
    beginnings = Beginnings({}, [], most_tokens=80)
    computed: list[Prompt] = []

    def compute(beginning: Prompt) -> DynamicCache:
        computed.append(beginning)
        return DynamicCache()

    for place in (0, 1, 0, 2, 0, 1):
        beginnings.kept(each[place], compute)
    assert computed == [each[0], each[1], each[2], each[1]]


def test_a_shared_prefix_has_all_images_of_its_prompts_or_none() -> None:
    image, other = (-7,) * 30, (-8,) * 30
    same = [(*SYSTEM, *image, *SYSTEM, end) for end in range(3)]
    assert shared_beginnings(same, least_saved=1) == dict.fromkeys(same, 110)
    different = [(*SYSTEM, *image, 1, 2), (*SYSTEM, *other, 1, 2)]
    assert shared_beginnings(different, least_saved=1) == dict.fromkeys(different, 40)
    cut = [(*SYSTEM, *image), (*SYSTEM, *image[:20], 1)]
    assert shared_beginnings(cut, least_saved=1) == dict.fromkeys(cut, 40), "it would end inside the image"
    more = [(*SYSTEM, *image, 1, *image, 2), (*SYSTEM, *image, 1, 3, *image)]
    assert shared_beginnings(more, least_saved=1) == dict.fromkeys(more, 40)
