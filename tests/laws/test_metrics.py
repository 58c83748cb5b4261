"""Metrics against what is known: distances between Gaussians, closed forms, independent writings, and what no metric may depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.estimate import scattered, wilson
from ddpm.metrics.fields import channel_distances, spectrum, spectrum_distance
from ddpm.metrics.frechet import Frechet, _jackknife, frechet
from ddpm.metrics.inception import inception_score
from ddpm.metrics.kernel import kernel, kernel_distance
from ddpm.metrics.memorisation import memorisation
from ddpm.metrics.moments import Moments
from ddpm.metrics.neighbours import manifold, nearest
from ddpm.metrics.sliced import energy_distance, sliced_wasserstein

D = 16


def drawn(n: int, seed: int, dim: int = D) -> Tensor:
    """Standard normal vectors."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int, dim: int = D) -> Tensor:
    """Some covariance."""
    made = drawn(dim, seed, dim) / 4
    return made @ made.T + 0.5 * torch.eye(dim, dtype=torch.float64)


def with_law(mean: Tensor, cov: Tensor, n: int = 400) -> Tensor:
    """Vectors whose sample mean and unbiased covariance are exactly these."""
    x = drawn(n, 5, len(mean))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ torch.linalg.cholesky(cov).T + mean


# --- Frechet -----------------------------------------------------------------------------------------------------------------------------


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2 = drawn(1, 1)[0].abs() + 0.1, drawn(1, 2)[0].abs() + 0.1
    m1, m2 = drawn(1, 3)[0], drawn(1, 4)[0]
    samples = Moments.of(with_law(m1, torch.diag(s1**2)))
    truth = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet(samples, Moments.given(m2, torch.diag(s2**2))) == pytest.approx(truth, rel=1e-9)


def test_frechet_of_any_gaussians_is_scipys_and_symmetric() -> None:
    """An independent matrix root; also where a covariance has no full rank."""
    thin = with_law(torch.zeros(D, dtype=torch.float64), covariance(8))[:, :5] @ drawn(5, 9)
    for a, b in ((covariance(6), covariance(7)), (Moments.of(thin).cov, covariance(7))):
        m1, m2 = drawn(1, 3)[0], drawn(1, 4)[0]
        first, second = Moments.given(m1, a), Moments.given(m2, b)
        crossed = np.trace(np.asarray(sqrtm(a.numpy() @ b.numpy()))).real
        truth = float((m1 - m2).square().sum() + a.trace() + b.trace()) - 2 * crossed
        assert frechet(first, second) == pytest.approx(truth, rel=1e-6)
        assert frechet(second, first) == pytest.approx(frechet(first, second), rel=1e-6)


def test_frechet_of_a_law_to_itself_is_nothing() -> None:
    """Up to rounding of the root."""
    same = Moments.of(with_law(drawn(1, 3)[0], covariance(6)))
    assert abs(frechet(same, same)) < 1e-6


def test_moments_of_pieces_are_those_of_the_whole_in_any_order() -> None:
    """Four shards, uneven, far from zero; and numpy's covariance."""
    x = drawn(1000, 11) + 1e4
    pieces = [Moments.of(part) for part in x.split([1, 499, 300, 200])]
    whole = Moments.of(x)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        got = Moments.none(D)
        for index in order:
            got = got + pieces[index]
        torch.testing.assert_close(got.mean, whole.mean, rtol=1e-10, atol=0)
        torch.testing.assert_close(got.cov, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-8, atol=1e-10)


def test_four_shards_merged_are_one_pass() -> None:
    """Value, interval and all: which group a sample belongs to does not depend on the shard that saw it."""
    x, reference = drawn(803, 12) * 1.3, Moments.given(torch.zeros(D), torch.eye(D))
    whole = Frechet(D)
    whole.update(x)
    merged = Frechet(D)
    for first, end in ((0, 7), (7, 300), (300, 500), (500, 803)):
        shard = Frechet(D)
        shard.update(x[first:end], first)
        merged.merge(shard)
    for one, two in zip(whole.result(reference), merged.result(reference), strict=True):
        assert one == pytest.approx(two, rel=1e-10)


CASES = {
    "far": (torch.full((D,), 0.3, dtype=torch.float64), covariance(7)),
    "near": (torch.full((D,), 0.02, dtype=torch.float64), 1.1 * covariance(6)),
}


def coverage(name: str, trials: int, *, sampled: bool = False) -> tuple[float, float, float]:
    """Share of 95 % intervals that hold the truth, mean error of the value and of the raw figure in standard errors of one trial."""
    mean, cov = CASES[name]
    own, truth_of = covariance(6), Moments.given(mean, cov)
    truth = frechet(Moments.given(torch.zeros(D), own), truth_of)
    roots = torch.linalg.cholesky(own), torch.linalg.cholesky(cov)
    hits, values, raws = 0, [], []
    for trial in range(trials):
        metric, reference = Frechet(D), Frechet(D)
        metric.update(drawn(2000, 2 * trial) @ roots[0].T)
        if sampled:
            reference.update(mean + drawn(2000, 2 * trial + 1) @ roots[1].T)
        found = metric.result(reference if sampled else truth_of)
        hits += found.low <= truth <= found.high
        values.append(found.value - truth)
        raws.append(found.raw - truth)
    spread = float(np.std(values))
    return hits / trials, float(np.mean(values)) / spread, float(np.mean(raws)) / spread


@pytest.mark.parametrize("groups", [2, 10, 20])
def test_a_bias_of_two_terms_is_removed_whole(groups: int) -> None:
    """Of an estimate that is exactly D + a/N + b/N^2; of two groups, whose halves say nothing new, the first term alone."""
    a, b, each = 7.0, 900.0, 60
    parts = [Moments.of(drawn(each, k, 2)) for k in range(groups)]
    count = groups * each
    bias, _, bent = _jackknife(a / count + b / count**2, parts, lambda moments: a / moments.count + b / moments.count**2)
    if groups > 2:
        assert bias == pytest.approx(a / count + b / count**2, rel=1e-10) and bent == pytest.approx(b / count**2, rel=1e-8)
    else:
        assert bias == pytest.approx(a / count + 3 * b / count**2, rel=1e-10) and bent == 0.0


@pytest.mark.parametrize("name", list(CASES))
def test_the_interval_holds_the_truth(name: str) -> None:
    """150 trials of 2,000 samples; 1,000 of them, and sampled references, in the slow run. The raw figure is biased by standard errors."""
    share, bias, raw = coverage(name, 150)
    assert 0.89 <= share <= 0.995
    assert abs(bias) < 0.4 and raw > (0.3 if name == "far" else 2.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_the_interval_holds_the_truth_in_95_of_100(name: str, sampled: bool) -> None:
    """1,000 trials, D = 16, 2,000 samples: 95 +- 3 %."""
    assert coverage(name, 1000, sampled=sampled)[0] == pytest.approx(0.95, abs=0.03)


# --- kernel distance ---------------------------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_its_sum_over_pairs() -> None:
    """Written out with loops, and its jackknife by leaving each sample out indeed."""
    x, y = drawn(7, 1, 3), drawn(6, 2, 3) + 0.3

    def by_pairs(a: Tensor, b: Tensor) -> float:
        def k(u: Tensor, v: Tensor) -> float:
            return (float(u @ v) / 3 + 1) ** 3

        own = [sum(k(u, v) for i, u in enumerate(one) for j, v in enumerate(one) if i != j) / (len(one) * (len(one) - 1)) for one in (a, b)]
        return sum(own) - 2 * sum(k(u, v) for u in a for v in b) / (len(a) * len(b))

    found = kernel_distance(x, y)
    assert found.value == pytest.approx(by_pairs(x, y), rel=1e-12)
    variance = 0.0
    for side, other in ((x, y), (y, x)):
        left = np.array([by_pairs(torch.cat([side[:i], side[i + 1 :]]), other) for i in range(len(side))])
        variance += (len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum()
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert kernel(x, y).shape == (7, 6)


def test_the_kernel_distance_has_no_bias() -> None:
    """Its mean over many small draws of one law is zero; that of two laws is what many samples give."""
    zero = [kernel_distance(drawn(20, 2 * t, 4), drawn(25, 2 * t + 1, 4)).value for t in range(300)]
    assert abs(np.mean(zero)) < 4 * np.std(zero) / math.sqrt(300)
    apart = [kernel_distance(drawn(20, 2 * t, 4), drawn(25, 2 * t + 1, 4) + 0.5).value for t in range(300)]
    large = kernel_distance(drawn(4000, 1, 4), drawn(4000, 2, 4) + 0.5)
    assert np.mean(apart) == pytest.approx(large.value, abs=4 * float(np.std(apart)) / math.sqrt(300) + large.high - large.low)


# --- the rest ----------------------------------------------------------------------------------------------------------------------------


def test_the_inception_score_of_sure_and_of_clueless_classifiers() -> None:
    """C for sure ones over all classes, 1 for clueless ones, and exp of the mutual information between."""
    sure = torch.eye(10, dtype=torch.float64).repeat(20, 1) * 60
    assert inception_score(sure).raw == pytest.approx(10.0, rel=1e-9)
    sorted_ = inception_score(torch.eye(10, dtype=torch.float64).repeat_interleave(20, 0) * 60)  # each part of one class
    assert sorted_.value == sorted_.high == 10.0 and sorted_.raw == pytest.approx(1.0)
    assert inception_score(torch.zeros(200, 10)).value == pytest.approx(1.0)
    logits = drawn(4000, 3, 10) * 2
    p = torch.softmax(logits, 1)
    entropy = float(-(p.mean(0) * p.mean(0).log()).sum() + (p * p.log()).sum(1).mean())
    found = inception_score(logits)
    assert found.value == pytest.approx(math.exp(entropy), rel=2e-3) and found.low < math.exp(entropy) < found.high


def test_precision_and_recall_see_what_is_missing() -> None:
    """Half of the data covered: precise, half recalled. Too wide: recalled, not precise. The same law: all near their values for it."""
    left, right = drawn(300, 1, 4) - 6, drawn(300, 2, 4) + 6
    data = torch.cat([left, right])
    half = manifold(drawn(600, 3, 4) - 6, data)
    assert half.precision > 0.9 and half.recall == pytest.approx(0.5, abs=0.06) and half.coverage < 0.55
    wide = manifold(torch.cat([left, right, 40 + drawn(600, 4, 4)]), data)
    assert wide.precision == pytest.approx(0.5, abs=0.05) and wide.recall == 1.0
    same = manifold(drawn(600, 5, 4), drawn(600, 6, 4))
    assert same.density == pytest.approx(1.0, abs=0.1) and same.coverage == pytest.approx(1 - 0.5**5, abs=0.05)  # 1 - 2^-k: Naeem et al.
    assert manifold(data, data).precision == manifold(data, data).recall == 1.0


def test_neighbours_do_not_depend_on_the_size_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do density, coverage and nearest distances."""
    x, y = drawn(50, 1, 4), drawn(60, 2, 4)
    before, near = manifold(x, y), nearest(x, y)
    monkeypatch.setattr("ddpm.metrics.neighbours.ROWS", 7)
    assert manifold(x, y) == before
    torch.testing.assert_close(nearest(x, y)[0], near[0])
    assert torch.equal(nearest(x, y)[1], near[1])


@pytest.mark.parametrize(("count", "trials", "widest"), [(600, 200, 4.0), (120, 200, 6.0)])
def test_intervals_hold_what_samples_give_on_average(count: int, trials: int, widest: float) -> None:
    """In about 95 % of trials, of a share whose law is known and of neighbours, whose mean is that of the trials; and not by width."""
    shares = ("above", "precision")
    found = [
        scattered(
            lambda x, y: {**manifold(x, y)._asdict(), "above": float((x > 1).double().mean())},
            drawn(count, 2 * t, 3), drawn(count, 2 * t + 1, 3) * 1.2, shares,
        )
        for t in range(trials)
    ]  # fmt: skip
    for name in ("above", "precision", "recall", "density", "coverage"):
        mean = 0.5 * math.erfc(0.5**0.5) if name == "above" else float(np.mean([one[name].value for one in found]))
        covered = np.mean([one[name].low <= mean <= one[name].high for one in found])
        width = np.mean([one[name].value - one[name].low for one in found]) / np.std([one[name].value for one in found])
        assert covered > 0.87 and 1.8 < width < widest, (name, covered, width)
    assert max(one["precision"].high for one in found) == 1.0 and all(0 <= one["above"].low < one["above"].value for one in found)


def test_intervals_at_the_edges() -> None:
    """A share of 1 is not known exactly; sorted samples scatter no more than mixed ones; figures are not below 0; of few there is none."""
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    low, high = scattered(lambda x, y: {"all": 1.0}, drawn(500, 1, 2), drawn(500, 2, 2), ("all",))["all"][1:3]
    assert low == pytest.approx(wilson(1.0, 500)[0]) and high == 1.0 and 0.99 < low < 0.995
    rising = torch.linspace(0.0, 1.0, 1000, dtype=torch.float64)[:, None]
    for count in (1000, 200):
        mean = scattered(lambda x, y: {"mean": float(x.mean()), "gap": float((x.mean() - y.mean()).abs())}, rising[:count], rising[:count])
        assert mean["mean"].high - mean["mean"].low < 0.02 and mean["gap"].low == 0.0
    few = scattered(lambda x, y: {"gap": float((x.mean() - y.mean()).abs())}, drawn(39, 1, 2), drawn(500, 2, 2))["gap"]
    assert math.isnan(few.low) and few.value == few.raw > 0


def test_sliced_wasserstein_of_a_shift_and_of_a_scale() -> None:
    """A shift m: |m| / sqrt(D) on average over directions; s x against x: |s - 1| times the root mean square."""
    x = with_law(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64), 1000)
    shift = torch.full((D,), 0.5, dtype=torch.float64)
    assert sliced_wasserstein(x, x + shift, directions=4096) == pytest.approx(0.5, rel=0.03)
    assert sliced_wasserstein(x, 1.5 * x) == pytest.approx(0.5, rel=0.01)
    assert sliced_wasserstein(x, x) == 0.0


def test_sliced_wasserstein_of_unequal_numbers_repeats_samples() -> None:
    """Every sample three times is the same law; 2 against 3 values by hand: the quantile functions differ on known intervals."""
    x, y = drawn(40, 1, 3), drawn(40, 2, 3)
    assert sliced_wasserstein(x.repeat(3, 1), y) == pytest.approx(sliced_wasserstein(x, y), rel=1e-9)
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0], [6.0]])
    by_hand = (0 / 3 + (0 - 3) ** 2 / 6 + (1 - 3) ** 2 / 6 + (1 - 6) ** 2 / 3) ** 0.5
    assert sliced_wasserstein(a, b, directions=1) == pytest.approx(by_hand)


def test_energy_distance_is_its_sum_over_pairs() -> None:
    """And zero on average for one law."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0], [6.0]])
    assert energy_distance(a, b).value == pytest.approx(2 * (0 + 3 + 6 + 1 + 2 + 5) / 6 - 1 - (3 + 6 + 3) / 3)
    zero = [energy_distance(drawn(20, 2 * t, 3), drawn(20, 2 * t + 1, 3)).value for t in range(200)]
    assert abs(np.mean(zero)) < 4 * np.std(zero) / math.sqrt(200)


def test_channel_distances_are_in_standard_deviations() -> None:
    """A shift of one channel by half its spread, the other untouched."""
    data = torch.randn(200, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 20.0]).view(1, 2, 1, 1)
    moved = data + torch.tensor([0.0, 10.0]).view(1, 2, 1, 1)
    assert channel_distances(moved, data).tolist() == pytest.approx([0.0, 0.5], abs=0.01)
    data[:, 0] = 3.0  # constant: in standard deviations of all channels
    moved = data + torch.tensor([float(data.std()), 0.0]).view(1, 2, 1, 1)
    assert channel_distances(moved, data).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("shape", [(12,), (8, 12), (4, 6, 8)])
def test_the_spectrum_keeps_the_power(shape: tuple[int, ...]) -> None:
    """Parseval: rings times their sizes sum to the mean square; white noise is flat; a wave is one ring."""
    x = torch.randn(500, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = spectrum(x)[0]
    ring = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n).double() * min(shape) for n in shape], indexing="ij")).square().sum(0).sqrt()
    sizes = torch.bincount(ring.round().long().flatten())
    assert float((found * sizes).sum()) == pytest.approx(float(x.square().sum() / 500), rel=1e-9)
    assert (found - 1).abs().max() < 0.2
    wave = torch.cos(2 * math.pi * 2 * torch.arange(shape[-1]) / shape[-1]).expand(1, 1, *shape)
    peak = round(2 * min(shape) / shape[-1])
    assert int(spectrum(wave)[0].argmax()) == peak
    assert spectrum_distance(2 * x, x).tolist() == pytest.approx([math.log(4.0)])


def test_copies_are_found_and_new_samples_are_not() -> None:
    """Samples of the law itself, copies with little noise, and half of each."""
    train, held, new = drawn(500, 1), drawn(400, 2), drawn(400, 3)
    copied = train[:400] + 0.05 * drawn(400, 4)
    fresh, all_copies, half = (memorisation(one, train, held) for one in (new, copied, torch.cat([new[:200], copied[:200]])))
    assert not fresh.found and fresh.copies < 0.04 and fresh.ratio == pytest.approx(1.0, abs=0.1) and abs(fresh.z) < 4
    assert all_copies.found and all_copies.copies == 1.0 and all_copies.ratio < 0.2 and all_copies.z < -20
    assert half.found and half.copies == pytest.approx(0.5, abs=0.03)
    assert all(sample == index for sample, index in all_copies.pairs)


def test_too_little_variety_is_no_memory() -> None:
    """Samples shrunk towards the mean are nearer to training data, and to unseen data alike."""
    train, held = drawn(1200, 1, 64), drawn(200, 2, 64)
    for scale in (0.5, 0.8, 0.9):
        assert not memorisation(scale * drawn(500, 3, 64), train, held).found


@pytest.mark.parametrize(("dim", "inner"), [(16, 1), (24, 3)])
def test_more_simple_samples_than_the_data_hold_are_no_memory(dim: int, inner: int) -> None:
    """5 % of the data lie in a part of few dimensions, where distances scatter more; fresh samples of that part alone. And what of these
    is copied is found.
    """

    def law(count: int, seed: int, share: float) -> torch.Tensor:
        x = drawn(count, seed, dim)
        flat = torch.cat([x[:, :inner], torch.full((count, dim - inner), 5.0, dtype=x.dtype)], 1)
        return torch.where((torch.arange(count) < share * count)[:, None], flat, x)

    train, held, simple = law(3000, 1, 0.05), law(500, 2, 0.05), law(800, 3, 1.0)
    found = memorisation(simple, train, held)
    assert not found.found and found.copies < 0.03 and abs(found.z) < 5
    copied = memorisation(torch.cat([simple[:700], train[:100]]), train, held)
    assert copied.found and copied.copies > 0.12


def test_training_data_among_the_held_out_do_not_hide_copies() -> None:
    """Of 400 held out 20 are training data: without them a ratio of nearly nothing is usual."""
    train, held = drawn(2000, 1), drawn(400, 2)
    held[:20] = train[:20]
    found = memorisation(torch.cat([drawn(300, 3), train[500:700]]), train, held)
    assert found.leaks == 20 and found.found and found.copies == pytest.approx(0.4, abs=0.04)
    with pytest.raises(DataError, match=r"got 40 samples that are not among the training samples \(20 are\)"):
        memorisation(train, train, held[:60])


def test_recall_is_not_coverage() -> None:
    """Few samples, far apart, about the data: every datum lies within their balls, and hardly any has one of them in its own."""
    data = 0.1 * drawn(200, 1, 2)
    around = torch.tensor([[math.cos(k), math.sin(k)] for k in range(12)], dtype=torch.float64) * 3.0
    found = manifold(around, data, 5)
    assert found.recall == 1.0 and found.coverage == 0.0 and found.precision == 0.0


def test_as_many_are_called_copies_as_chance_says() -> None:
    """With few held-out vectors too: none of 150 models that copy nothing is accused."""
    found = [memorisation(drawn(400, 3 * k, 3), drawn(300, 3 * k + 1, 3), drawn(60, 3 * k + 2, 3)) for k in range(150)]
    shares = torch.tensor([one.copies for one in found])
    assert found[0].chance == pytest.approx(1 / 61) and not any(one.found for one in found)
    assert abs(float(shares.mean()) - found[0].chance) < 5 * float(shares.std()) / 150**0.5


def test_with_too_few_samples_nothing_is_corrected() -> None:
    """Below three a dimension, of the samples or of a sampled reference: the plain distance, and no interval."""
    truth = Moments.of(drawn(4000, 9))
    for count, enough in ((3 * D - 1, False), (3 * D, True)):
        metric, x = Frechet(D), drawn(count, 1)
        metric.update(x)
        found = metric.result(truth)
        assert found.raw == pytest.approx(frechet(Moments.of(x), truth)) and (found.low < found.value < found.high) is enough
        assert (found.value == found.raw) is not enough and math.isnan(found.low) is not enough
        many = Frechet(D)
        many.update(drawn(1000, 2))
        other = many.result(metric)
        assert math.isnan(other.low) is not enough
        plain = metric.uncorrected(truth)
        assert plain.value == pytest.approx(found.raw) and 0 <= plain.low < plain.value < plain.high
    sampled = Frechet(D)
    sampled.update(drawn(1000, 3))
    of_samples, exact = many.result(sampled), many.result(sampled.moments)
    assert of_samples.value < exact.value and of_samples.high - of_samples.low > exact.high - exact.low  # the reference scatters too


@pytest.mark.parametrize(("dim", "times"), [(128, 3), (64, 5)])
def test_many_features_of_like_variance_and_few_samples(dim: int, times: int) -> None:
    """Where the bias is not linear in 1/N: the interval holds the truth, 0, in 18 of 20 trials at least."""
    held, values = 0, []
    for trial in range(20):
        metric = Frechet(dim)
        metric.update(drawn(times * dim, trial, dim))
        found = metric.result(Moments.given(torch.zeros(dim), torch.eye(dim)))
        held += found.low <= 0.0 <= found.high
        values.append(found.value)
    assert held >= 18
    truth, x = Moments.given(torch.zeros(dim), torch.eye(dim)), drawn(times * dim, 19, dim)
    halves = (frechet(Moments.of(x[::2]), truth) + frechet(Moments.of(x[1::2]), truth)) / 2
    bent = (halves - 2 * found.raw + found.value) / 2  # the term in 1/N^2 that was removed
    assert bent > 0.05 and found.high - found.value >= 0.999 * bent and abs(np.mean(values)) < 0.5 * bent


def atoms(count: int, seed: int, share: float) -> torch.Tensor:
    """Data of which a share is one and the same vector."""
    x = drawn(count, seed, 8)
    x[torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share] = 0.0
    return x


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_samples_that_data_hold_often_are_no_copies(share: float) -> None:
    """A blank page, that is; as many copies of different training samples are."""
    for k in range(5):
        train, held = atoms(1000, 3 * k + 1, share), atoms(400, 3 * k + 2, share)
        found = memorisation(atoms(500, 3 * k, share), train, held)
        assert not found.found and found.copies < 0.04 and found.same == pytest.approx(share, abs=0.08)
        copied = memorisation(torch.cat([atoms(450, 3 * k, share), train[train.abs().sum(1) > 0][:50]]), train, held)
        assert copied.same > found.same and (copied.found or share > 0.5)
    few = memorisation(torch.cat([drawn(760, 7, 16), drawn(1437, 8, 16)[:40]]), drawn(1437, 8, 16), drawn(180, 9, 16))
    assert few.found and few.same == 0.05


def test_the_inception_score_is_the_published_one_and_its_jackknife() -> None:
    """raw: the mean over ten parts of N // 10; value and interval from the parts left out, by hand."""
    logits = 2.0 * drawn(47, 1, 6)

    def score(part: torch.Tensor) -> float:
        p = part.softmax(1)
        return float((p * (p / p.mean(0)).log()).sum(1).mean().exp())

    parts = [logits[4 * k : 4 * k + 4] for k in range(10)]
    left = [score(torch.cat([*parts[:k], *parts[k + 1 :]])) for k in range(10)]
    value, mean = 10 * score(logits[:40]) - 9 * sum(left) / 10, sum(left) / 10
    error = (0.9 * sum((one - mean) ** 2 for one in left)) ** 0.5
    found = inception_score(logits)
    assert found.raw == pytest.approx(sum(map(score, parts)) / 10) and found.value == pytest.approx(value)
    assert found.high - found.value == pytest.approx(2.262157 * error, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    """With the first sample that holds one."""
    x = drawn(40, 1)
    x[3, 2] = bad
    for call in (Moments.of, lambda v: kernel_distance(v, drawn(9, 2)), lambda v: manifold(v, drawn(9, 2)), inception_score):
        with pytest.raises(DataError, match="1 of 40 samples are not finite, first number 3"):
            call(x)
    with pytest.raises(DataError, match="not all finite"):
        channel_distances(x.view(40, 1, 4, 4), x.view(40, 1, 4, 4))


def test_what_cannot_be_compared_is_refused() -> None:
    """Other extractors, too few samples, samples that were not flattened."""
    few, metric = drawn(30, 1), Frechet(D)
    metric.update(few)
    refusals = {
        "got 30; a Frechet distance with an interval needs at least 40": lambda: metric.result(Moments.of(few)),
        "at least 51|at least 50": lambda: memorisation(few, few, few),
        "takes vectors .N, D.": lambda: Moments.of(few.view(30, 4, 4)),
        "neighbours need at least 6": lambda: manifold(few[:5], few),
        "needs at least 20": lambda: inception_score(few[:19]),
        "at least 2 of each": lambda: kernel_distance(few[:1], few),
        "compare like with like": lambda: spectrum_distance(few.view(30, 1, 4, 4), few.view(30, 1, 2, 8)),
    }
    for words, call in refusals.items():
        with pytest.raises(DataError, match=words):
            call()
    other = drawn(60, 2, 4)
    for call in (sliced_wasserstein, energy_distance, kernel_distance, manifold, lambda x, y: frechet(Moments.of(x), Moments.of(y))):
        with pytest.raises(DataError, match="vectors of 16 and of 4 numbers"):
            call(few, other)
    with pytest.raises(DataError, match="vectors of 16 and of 4 numbers"):
        memorisation(few, other, other)
