"""Drawing tokens: the noise that belongs to a row, and the filters before it, against transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from jobs.specs.parameters.generation import TextGenerationParameters
from worker.inference.generation.sampling import Sampling, choose, gumbel, penalize, resolve_sampling, splitmix

KNOWN = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
"""The first outputs of SplitMix64 from state 0, as its authors' code gives them."""
GAMMA = 0x9E3779B97F4A7C15


def logits(num_rows: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Scores as a model gives them."""
    return torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * 3


def draws(logits_V: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    """How often each token is drawn in `num_rows` rows of the same logits."""
    keys = [sampling.key(row, 0) for row in range(count)]
    tokens = choose(logits_V.expand(count, -1), [sampling] * count, keys, [0] * count)
    return torch.bincount(tokens, minlength=logits_V.shape[-1])


def test_the_noise_is_splitmix64() -> None:
    assert [splitmix(number * GAMMA) for number in range(3)] == KNOWN
    uniform = [((word >> 11) + 0.5) / 2**53 for word in KNOWN]
    expected = [-math.log(-math.log(u)) for u in uniform]
    assert gumbel([0], torch.zeros(1, 3))[0].tolist() == pytest.approx(expected, rel=1e-12)
    high = 2**64 - 3
    expected = [-math.log(-math.log(((splitmix(high + number * GAMMA) >> 11) + 0.5) / 2**53)) for number in range(4)]
    assert gumbel([high], torch.zeros(1, 4))[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_tokens_come_as_often_as_the_model_says() -> None:
    logits_V = logits(1, 6)[0]
    count = 20_000
    for temperature in (1.0, 0.5, 2.0):
        found = draws(logits_V, Sampling(temperature=temperature), count) / count
        assert torch.allclose(found, (logits_V / temperature).softmax(-1), atol=0.015)


def test_a_row_draws_the_same_wherever_it_stands() -> None:
    logits_BV = logits(5, 50)
    samplings = [Sampling(temperature=1.0), Sampling(), Sampling(temperature=0.8, top_k=5)]
    samplings += [Sampling(temperature=2.0, top_p=0.5), Sampling(temperature=1.5, seed=3)]
    keys = [one.key(row, 0) for row, one in enumerate(samplings)]
    steps = [4, 0, 1, 7, 2]
    together = choose(logits_BV, samplings, keys, steps).tolist()
    for row in range(5):
        alone = choose(logits_BV[row : row + 1], [samplings[row]], [keys[row]], [steps[row]])
        assert alone.tolist() == [together[row]]
    assert together[1] == int(logits_BV[1].argmax())


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_the_smallest_temperature_is_nearly_greedy(temperature: float) -> None:
    logits_BV = logits(4, 50)
    for sampling in (Sampling(temperature=temperature), Sampling(temperature=temperature, top_p=0.5, top_k=7)):
        found = choose(logits_BV, [sampling] * 4, [sampling.key(row, 0) for row in range(4)], [0] * 4)
        assert found.tolist() == logits_BV.argmax(-1).tolist()


def test_each_row_choice_step_and_seed_draws_anew() -> None:
    plain, other, own = Sampling(seed=0), Sampling(seed=1), Sampling(seed=0, own_seed=True)
    keys = {plain.key(0, 0), plain.key(1, 0), plain.key(0, 1), plain.key(10, 0), other.key(0, 0), own.key(0, 0)}
    assert len(keys) == 6
    assert own.key(0, 0) == own.key(99, 0) != own.key(0, 1)
    # Equal logits: which token comes is the noise alone.
    flat = torch.zeros(8, 1000)
    tokens = choose(flat, [Sampling(temperature=1.0)] * 8, [plain.key(0, 0)] * 8, list(range(8))).tolist()
    assert len(set(tokens)) == 8


@pytest.mark.parametrize("top_k", [1, 3, 1000])
def test_top_k_keeps_the_same_tokens_as_transformers(top_k: int) -> None:
    logits_V = logits(1, 12, seed=1)[0]
    kept = TopKLogitsWarper(top_k)(None, logits_V[None].clone())[0].isfinite()
    found = draws(logits_V, Sampling(temperature=5.0, top_k=top_k), 3000) > 0
    reference = TopKLogitsWarper(top_k)(None, logits_V[None] / 5.0)[0].isfinite()
    assert torch.equal(kept, reference)
    assert torch.equal(found, reference)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_same_tokens_as_transformers(top_p: float) -> None:
    logits_V = logits(1, 12, seed=2)[0]
    reference = TopPLogitsWarper(top_p)(None, logits_V[None] / 5.0)[0].isfinite()
    found = draws(logits_V, Sampling(temperature=5.0, top_p=top_p), 5000) > 0
    assert torch.equal(found, reference)


def test_the_repetition_penalty_is_transformers_own() -> None:
    logits_BV = logits(2, 10)
    seen = [[1, 2, 2, 9], [3]]
    found = penalize(logits_BV, [Sampling(repetition_penalty=1.3), Sampling()], seen)
    reference = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen[0]]), logits_BV[:1].clone())
    assert torch.equal(found[:1], reference)
    assert torch.equal(found[1], logits_BV[1])


@pytest.mark.parametrize(
    ("parameters", "defaults", "expected"),
    [
        ({}, {"temperature": 0.6, "top_k": 20}, Sampling(top_k=20)),
        ({"do_sample": True}, {"temperature": 0.6, "top_p": 0.9}, Sampling(temperature=0.6, top_p=0.9)),
        ({"do_sample": True}, {}, Sampling(temperature=1.0)),
        ({"temperature": 0.0}, {"temperature": 0.6}, Sampling()),
        ({"temperature": 0.3, "top_k": None}, {"top_k": 7}, Sampling(temperature=0.3, top_k=7)),
        ({"temperature": 0.3, "do_sample": False}, {}, Sampling()),
        ({"seed": 4, "repetition_penalty": 2}, {"repetition_penalty": 1.1}, Sampling(repetition_penalty=2.0, seed=4)),
    ],
)
def test_what_parameters_mean(parameters: dict[str, object], defaults: dict[str, object], expected: Sampling) -> None:
    assert resolve_sampling(TextGenerationParameters.read(parameters), defaults, own_seed=False) == expected
