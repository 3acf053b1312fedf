"""Which rows are decoded together: pure decisions, without a model."""

from __future__ import annotations

from dataclasses import replace

import torch

from worker.inference.generation.admission import admission_order, next_to_join, prefill_groups
from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.images.prompt_images import PromptImages
from worker.inference.generation.sampling import Sampling


def request(prompt: tuple[int, ...], max_new_tokens: int = 4) -> Request:
    """A greedy one."""
    return Request(0, prompt, max_new_tokens, Sampling())


def rows(*lengths: int, max_new_tokens: int = 0) -> list[Continuation]:
    """Continuations of prompts of these lengths, all different."""
    return [
        Continuation(request((number,) * length, max_new_tokens), key=0) for number, length in enumerate(lengths, 1)
    ]


def test_long_rows_come_first_and_shared_prefixes_stand_together() -> None:
    prompts = [(1, 2), (5,) * 27, (9, 1), (1, 2), (9, 2), (4,) * 20, (5,) * 26]
    order = admission_order([request(prompt) for prompt in prompts])
    assert [prompts[position] for position in order[:3]] == [(4,) * 20, (5,) * 26, (5,) * 27]
    assert order[3:] == [0, 3, 2, 4]


def test_as_many_join_as_fit() -> None:
    waiting = rows(10, 10, 10, 10, 10)
    assert len(next_to_join(waiting, [], max_tokens=30, max_rows=9)) == 3
    assert len(next_to_join(waiting, [], max_tokens=300, max_rows=2)) == 2
    assert len(next_to_join(waiting, rows(20), max_tokens=60, max_rows=9)) == 2
    assert next_to_join(waiting, rows(20), max_tokens=39, max_rows=9) == []
    assert next_to_join([], rows(20), max_tokens=100, max_rows=9) == []


def test_a_row_that_is_too_large_is_computed_alone() -> None:
    waiting = rows(50, 10)
    assert next_to_join(waiting, [], max_tokens=30, max_rows=9) == waiting[:1]
    assert next_to_join(waiting, rows(10), max_tokens=30, max_rows=9) == []


def test_what_a_row_may_come_to_counts_and_not_only_its_prompt() -> None:
    assert len(next_to_join(rows(10, 10, 10, max_new_tokens=20), [], max_tokens=60, max_rows=9)) == 2


def test_few_rows_wait_until_it_is_worth_it_unless_they_are_the_last() -> None:
    live = rows(*[10] * 16)
    assert next_to_join(rows(10, 10, 10), live, max_tokens=170, max_rows=99) == []
    assert len(next_to_join(rows(10, 10, 10), live, max_tokens=180, max_rows=99)) == 2
    assert len(next_to_join(rows(10), live, max_tokens=180, max_rows=99)) == 1


def test_prompts_are_computed_in_groups_that_count_equal_ones_once() -> None:
    groups = prefill_groups(rows(10, 10, 10, 3), {}, max_tokens=20)
    assert [len(group) for group in groups] == [2, 2]
    same = [Continuation(request((7,) * 10), key=number) for number in range(50)]
    assert [len(group) for group in prefill_groups(same, {}, max_tokens=20)] == [50]
    assert [len(group) for group in prefill_groups(rows(50, 50), {}, max_tokens=20)] == [1, 1]


def test_prompts_with_one_beginning_are_computed_together() -> None:
    prompts = [(beginning,) * 40 + (end,) for end in range(4) for beginning in (1, 2)]
    joining = [Continuation(request(prompt), key=0) for prompt in [(9,) * 8, *prompts]]
    shared = dict.fromkeys(prompts, 40)
    groups = prefill_groups(joining, shared, max_tokens=41)
    assert [[one.request.prompt[0] for one in group] for group in groups] == [[9], [1] * 4, [2] * 4]
    groups = prefill_groups(joining, shared, max_tokens=20)
    assert [len(group) for group in groups] == [1, 2, 2, 2, 2]


def pictured(prompt: tuple[int, ...], *, width: int = 4, num_bytes: int = 16) -> Continuation:
    """A continuation of a prompt with images."""
    inputs = {"pixel_values": torch.zeros(num_bytes // width, width, dtype=torch.uint8)}
    images = PromptImages(placeholder=9, inputs=inputs, per_token={})
    return Continuation(replace(request(prompt), images=images), key=0)


def test_images_of_equal_shapes_are_computed_together_if_they_fit() -> None:
    joining = [pictured((1, -7 - number, 2)) for number in range(5)]
    groups = prefill_groups([*joining, *rows(3)], {}, max_tokens=99, max_image_bytes=40)
    assert [len(group) for group in groups] == [2, 2, 2]
    other = [joining[0], pictured((1, -20, 2), width=8), pictured((1, -21, 2), width=8)]
    assert [len(group) for group in prefill_groups(other, {}, max_tokens=99, max_image_bytes=99)] == [1, 2]
    assert len(prefill_groups([joining[0], joining[0]], {}, max_tokens=99, max_image_bytes=1)) == 1


def test_no_prompt_computes_a_part_of_an_image_of_its_shared_prefix_again() -> None:
    """Padding moves a shared prefix to the right, and its last tokens are computed again."""
    prefix = (1, *(-7,) * 20, 2, 3)
    prompts = [(*prefix, *(5,) * length) for length in (1, 9, 2, 3, 4, 11)]
    groups = prefill_groups([pictured(prompt) for prompt in prompts], dict.fromkeys(prompts, 23), max_tokens=999)
    lengths = [[len(one.request.prompt) - 23 for one in group] for group in groups]
    assert lengths == [[1, 2, 3], [4], [9, 11]]
