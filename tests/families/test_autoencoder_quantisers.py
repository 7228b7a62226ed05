"""Laws of discrete latents: averages without bias, codes that do not stay dead, workers that agree, exact grids."""

import copy
import threading

import pytest
import torch

from kinfolk.contract import Progress
from kinfolk_families.autoencoder.config import FiniteScalarConfig, VectorQuantisedConfig
from kinfolk_families.autoencoder.quantisers import Codebook, FiniteScalar, Quantised, code_use

CENTRES = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def progress(seed=0, step=0, all_reduce=lambda value: value, rank=0, workers=1):
    return Progress(0, step, generator(seed), all_reduce, rank, workers)


def outputs_around(centres, each, seed=0):
    """Encoder outputs in a row of places, ``each`` around every centre, and which centre. (B, 2, K, 1), (B, K, 1)"""
    noise = 0.1 * torch.randn(each, len(centres), 2, generator=generator(seed))
    tokens = torch.arange(len(centres)).expand(each, -1)
    return (centres + noise).transpose(1, 2)[..., None], tokens[..., None]


def empty_codebook(codes=3, **config):
    """A codebook whose averages have seen nothing."""
    torch.manual_seed(0)
    codebook = Codebook(VectorQuantisedConfig(**{"codes": codes, "halflife_samples": 4, **config}), channels=2)
    for average in (codebook.counts, codebook.sums, codebook.weight):
        average.zero_()
    return codebook


def step(codebook, z, tokens, where=None):
    codebook.record(Quantised(z, torch.zeros_like(z), tokens), generator(1))
    codebook.after(where or progress())


def rows(z):
    return z.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_codes_are_the_plain_average_of_constant_assignments_after_any_number_of_steps(steps):
    codebook = empty_codebook()
    z, tokens = outputs_around(CENTRES, each=8)
    for _ in range(steps):
        step(codebook, z, tokens)
    torch.testing.assert_close(codebook.vectors, z[..., 0].mean(0).T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codebook.counts / codebook.weight, torch.full((3,), 8.0))


def test_the_moving_average_keeps_a_quarter_over_two_half_lives():
    codebook = empty_codebook()
    (first, tokens), (second, _) = outputs_around(CENTRES, 8), outputs_around(2 * CENTRES, 8)
    step(codebook, first, tokens)
    step(codebook, second, tokens)
    means = [z[..., 0].mean(0).T for z in (first, second)]
    torch.testing.assert_close(codebook.vectors, (0.25 * means[0] + means[1]) / 1.25, rtol=1e-4, atol=1e-4)


def test_smoothing_enters_the_division_and_is_never_stored():
    codebook = empty_codebook(restart_below=0)
    z, tokens = outputs_around(CENTRES, each=8)
    for _ in range(3):
        step(codebook, z, torch.where(tokens == 2, 1, tokens))
    assert codebook.counts[2] == 0
    assert codebook.vectors.isfinite().all()
    assert codebook.vectors[2].abs().max() == 0


def test_a_dead_code_starts_again_at_an_encoder_output():
    codebook = empty_codebook(codes=4)
    z, tokens = outputs_around(CENTRES, each=8)
    step(codebook, z, tokens)
    distance = (rows(z) - codebook.vectors[3]).norm(dim=1)
    assert distance.min() < 1e-4
    torch.testing.assert_close(codebook.counts[3] / codebook.weight, torch.tensor(6.0))  # a fair share of 24
    torch.testing.assert_close(codebook.vectors[:3], z[..., 0].mean(0).T, rtol=1e-4, atol=1e-4)


def test_a_code_lives_at_the_threshold_and_dies_below_it():
    z, tokens = outputs_around(CENTRES, each=8)
    tokens = torch.where((tokens == 2) & (torch.arange(8)[:, None, None] > 1), 1, tokens)  # 2 of 24 outputs are left
    for restart_below, lives in [(2.0, True), (2.1, False)]:
        codebook = empty_codebook(restart_below=restart_below)
        step(codebook, z, tokens)
        assert bool(codebook.counts[2] / codebook.weight == 2) == lives


def test_half_of_a_fair_share_is_enough_where_tokens_are_few():
    codebook = empty_codebook(restart_below=50.0)
    z, tokens = outputs_around(CENTRES, each=8)
    step(codebook, z, torch.where((tokens == 2) & (torch.arange(8)[:, None, None] > 4), 1, tokens))
    torch.testing.assert_close(codebook.counts / codebook.weight, torch.tensor([8.0, 11.0, 5.0]))


def test_a_code_that_is_never_used_stays_among_the_outputs():
    """Averages without debiasing and smoothed counts that are stored would throw it a hundred times as far."""
    codebook = empty_codebook(codes=8, halflife_samples=500)
    for seed in range(200):
        z, _ = outputs_around(CENTRES, each=8, seed=seed)
        step(codebook, z, codebook(z).tokens if seed else torch.zeros(8, 3, 1, dtype=torch.int64))
        assert codebook.vectors.norm(dim=1).max() < 7


def test_codes_start_again_where_outputs_are_far_from_theirs():
    """Of equal outputs that are their own code, such as blank patches, none is taken."""
    codebook = empty_codebook(codes=4)
    z = torch.zeros(50, 2, 1, 1)
    z[7] = 3.0
    step(codebook, z, torch.zeros(50, 1, 1, dtype=torch.int64))
    torch.testing.assert_close(codebook.vectors[1:], torch.full((3, 2), 3.0), rtol=1e-4, atol=0)


def test_restarts_are_a_function_of_the_generator_of_the_step():
    z, tokens = outputs_around(CENTRES, each=8)
    books = [empty_codebook(codes=6) for _ in range(3)]
    for codebook, seed in zip(books, (0, 0, 1), strict=True):
        codebook.record(Quantised(z, torch.zeros_like(z), tokens), generator(seed))
        codebook.after(progress())
    assert torch.equal(books[0].vectors, books[1].vectors)
    assert not torch.equal(books[0].vectors[3:], books[2].vectors[3:])


class Workers:
    """Workers in threads of one process, and the sum over them."""

    def __init__(self, size):
        self.size, self.meeting = size, threading.Barrier(size, timeout=20)
        self.parts, self.errors = [None] * size, []

    def all_reduce(self, rank):
        def reduce(value):
            self.parts[rank] = value
            self.meeting.wait()
            total = torch.stack(self.parts).sum(0)
            self.meeting.wait()
            return total

        return reduce

    def run(self, work):
        """``work(progress, rank)`` in each worker."""

        def guarded(rank):
            try:
                work(progress(rank, 0, self.all_reduce(rank), rank, self.size), rank)
            except Exception as error:
                self.errors.append(error)
                self.meeting.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors


def state(codebook):
    return torch.cat([value.flatten() for value in codebook.buffers()])


def test_two_workers_with_half_a_batch_each_have_the_codebook_of_one_with_the_whole():
    z, tokens = outputs_around(CENTRES, each=8)
    whole = empty_codebook()
    pair = [copy.deepcopy(whole), copy.deepcopy(whole)]
    step(whole, z, tokens)
    Workers(2).run(lambda where, r: step(pair[r], z[4 * r : 4 * r + 4], tokens[4 * r : 4 * r + 4], where))
    torch.testing.assert_close(state(pair[0]), state(whole))
    assert torch.equal(state(pair[0]), state(pair[1]))


def test_workers_agree_on_where_dead_codes_start_again_and_take_turns_to_say_it():
    z = torch.stack([torch.full((4, 2, 3, 1), 1.0), torch.full((4, 2, 3, 1), 2.0)])
    pair = [empty_codebook(codes=6), empty_codebook(codes=6)]
    nothing = torch.zeros(4, 3, 1, dtype=torch.int64)
    Workers(2).run(lambda where, r: step(pair[r], z[r], nothing, where))
    assert torch.equal(state(pair[0]), state(pair[1]))
    torch.testing.assert_close(pair[0].vectors[1:, 0], torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0]), rtol=1e-4, atol=0)


def test_microbatches_add_up():
    z, tokens = outputs_around(CENTRES, each=8)
    whole, parts = empty_codebook(), empty_codebook()
    step(whole, z, tokens)
    parts.record(Quantised(z[:4], torch.zeros_like(z[:4]), tokens[:4]), generator())
    step(parts, z[4:], tokens[4:])
    torch.testing.assert_close(state(parts), state(whole))


@pytest.mark.parametrize("workers", [1, 2])
def test_k_means_finds_clusters_and_weighs_as_much_as_one_step(workers):
    z, _ = outputs_around(CENTRES, each=8)
    z = z[torch.randperm(8, generator=generator())]
    books = [empty_codebook() for _ in range(workers)]
    shares = z.chunk(workers)
    for codebook in books:
        codebook.sums.copy_(torch.eye(3, 2))
        codebook.counts.fill_(1)
        codebook.weight.fill_(1)

    def work(where, rank):
        books[rank].initialise(books[rank](shares[rank]), where)

    Workers(workers).run(work)
    found = books[0].vectors[books[0].vectors[:, 0].argsort(descending=True)]
    torch.testing.assert_close(found, z[..., 0].mean(0).T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(books[0].weight, torch.tensor(0.75))  # the batch is two half-lives long
    assert all(torch.equal(state(books[0]), state(codebook)) for codebook in books)


def test_the_nearest_code_is_assigned():
    torch.manual_seed(0)
    codebook = Codebook(VectorQuantisedConfig(codes=11), channels=5)
    z = torch.randn(3, 5, 2, 4)
    found = codebook(z)
    nearest = torch.cdist(z.movedim(1, -1).flatten(0, 2), codebook.vectors).argmin(1)
    assert torch.equal(found.tokens.flatten(), nearest)
    torch.testing.assert_close(found.codes.movedim(1, -1).flatten(0, 2), codebook.vectors[nearest])


@pytest.mark.parametrize("kind", ["codebook", "finite_scalar"])
def test_the_gradient_of_the_codes_is_handed_straight_to_the_encoder_s_output(kind):
    torch.manual_seed(0)
    quantiser = (
        Codebook(VectorQuantisedConfig(codes=5), 3) if kind == "codebook" else FiniteScalar(FiniteScalarConfig())
    )
    quantised = quantiser(torch.randn(2, 3, 2, 2, requires_grad=True))
    decoded = quantised.codes.clone().requires_grad_()
    (at_decoder,) = torch.autograd.grad(decoded.pow(3).sum(), decoded)
    (at_encoder,) = torch.autograd.grad(quantised.straight_through().pow(3).sum(), quantised.z)
    torch.testing.assert_close(quantised.straight_through(), quantised.codes)
    torch.testing.assert_close(at_encoder, at_decoder)


def test_use_counts_codes_and_perplexity_those_that_even_use_would_have():
    even = code_use(torch.arange(8).repeat(3), codes=8)
    one = code_use(torch.full((5, 4), 3), codes=8)
    assert (float(even["usage"]), float(one["usage"])) == (1, 1 / 8)
    assert float(even["perplexity"]) == pytest.approx(8)
    assert float(one["perplexity"]) == pytest.approx(1)
