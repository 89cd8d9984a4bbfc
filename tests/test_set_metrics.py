"""Fréchet distance and MMD: by hand, against SciPy, scikit-learn and torchmetrics, and against what they estimate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import DataError
from reelign.metrics import mmd
from reelign.metrics.frechet import frechet_distance
from reelign.metrics.mmd import CUBIC, QUADRATIC, WIDE_GAUSSIAN, Kernel, clip_gram, mmd2, subset_mmd2


def normal(rows: int, length: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (rows, length))


class TestFrechet:
    @pytest.mark.parametrize(
        ("a", "b", "expected"),
        [
            ([[0], [2]], [[3], [5]], 9.0),  # means 1 and 4, variances 2 and 2
            ([[0], [2]], [[1], [7]], 9 + 2 + 18 - 2 * 6),  # variances 2 and 18: (√2 − √18)² = 8
            ([[0], [2], [4]], [[2], [2], [2]], 4.0),  # one side without spread: its whole variance 4
            ([[1, 0], [-1, 0]], [[0, 1], [0, -1]], 4.0),  # orthogonal: Tr 2 + Tr 2, no overlap
        ],
    )
    def test_by_hand(self, a: list[list[float]], b: list[list[float]], expected: float) -> None:
        assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(("rows", "others"), [(60, 90), (9, 40), (40, 9), (6, 7), (12, 12)])
    def test_is_scipys(self, rows: int, others: int) -> None:
        """d = 12, below and above both numbers of rows, which take different branches."""
        linalg = pytest.importorskip("scipy.linalg", reason="SciPy is the reference here")
        mix = normal(12, 12, 5)
        a, b = normal(rows, 12, 1), normal(others, 12, 2, 0.3) @ mix
        covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = linalg.sqrtm(covariances[0] @ covariances[1])
        shift = a.mean(0) - b.mean(0)
        theirs = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root.real)
        assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)

    @pytest.mark.parametrize("rows", [20, 80])
    def test_is_the_eigenvalue_route(self, rows: int) -> None:
        a, b = normal(rows, 30, 3), normal(rows, 30, 4, 0.2, 1.7)
        covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
        shift = a.mean(0) - b.mean(0)
        theirs = shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
        assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-7)

    def test_is_torchmetrics(self) -> None:
        fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is the reference here")
        import torch

        a, b = normal(200, 16, 6), normal(150, 16, 7, 0.4)
        moments = [torch.from_numpy(m) for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
        assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-9)

    def test_published_bias(self) -> None:
        """Two samples of one distribution, d = 400: 297 at N = 256 was measured elsewhere (specification 2.2)."""
        assert frechet_distance(normal(256, 400, 8), normal(256, 400, 9)) == pytest.approx(297, rel=0.03)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(0, 10_000))
    def test_is_a_distance(self, rows: int, others: int, length: int, seed: int) -> None:
        """0 from itself, symmetric, unmoved by a common turn and shift, quadratic in a common scale."""
        a, b = normal(rows, length, seed), normal(others, length, seed + 1, 0.5)
        turn = np.linalg.qr(normal(length, length, seed + 2))[0]
        distance = frechet_distance(a, b)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-8)
        assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(distance, abs=1e-8)
        assert frechet_distance(10 * a, 10 * b) == pytest.approx(100 * distance, abs=1e-6)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (np.zeros((2, 3)), np.zeros((2, 4)), "one length; got 3 and 4"),
            (np.zeros((1, 3)), np.zeros((2, 3)), r"N ≥ 2 rows; got shape \(1, 3\)"),
            (np.zeros(3), np.zeros(3), "table"),
            (np.zeros((2, 0)), np.zeros((2, 0)), "table"),
            (np.full((2, 3), np.nan), np.zeros((2, 3)), "finite"),
        ],
    )
    def test_refuses(self, a: np.ndarray, b: np.ndarray, message: str) -> None:
        with pytest.raises(DataError, match=message):
            frechet_distance(a, b)


class TestDiscrepancy:
    A, B = [[0.0], [1.0]], [[1.0], [2.0]]

    def test_cubic_by_hand(self) -> None:
        """k = (xy + 1)³: within A k(0,1) = 1, within B k(1,2) = 27, across (1 + 1 + 8 + 27)/4 = 9.25."""
        assert mmd2(self.A, self.B, CUBIC) == pytest.approx(1 + 27 - 2 * 9.25)

    def test_quadratic_by_hand(self) -> None:
        """k = (xy)², each with itself too: A 1/4, B (1 + 4 + 4 + 16)/4, across (0 + 0 + 1 + 4)/4; times 100."""
        assert mmd2(self.A, self.B, QUADRATIC) == pytest.approx(100 * (0.25 + 6.25 - 2.5))

    def test_gaussian_by_hand(self) -> None:
        """σ = 10: k(0,0) = 1, k(0,1) = e^(−1/200), k(0,2) = e^(−4/200); times 1000."""
        near, far = np.exp(-1 / 200), np.exp(-4 / 200)
        within, across = (1 + near) / 2, (2 * near + 1 + far) / 4
        assert mmd2(self.A, self.B, WIDE_GAUSSIAN) == pytest.approx(1000 * (2 * within - 2 * across))

    def test_jedis_own_example(self) -> None:
        """JEDi's program prints 270.7 for these two sets, without the factor of 100."""
        a, b = np.arange(1, 10).reshape(3, 3), [[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]]
        assert mmd2(a, b, QUADRATIC) / 100 == pytest.approx(270.7, abs=0.05)

    def test_kid_is_torchmetrics(self) -> None:
        kid = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is the reference here")
        import torch

        a, b = normal(50, 32, 1), normal(50, 32, 2, 0.2)
        theirs = float(kid.poly_mmd(torch.from_numpy(a), torch.from_numpy(b)))
        assert mmd2(a, b, CUBIC) == pytest.approx(theirs, rel=1e-9)

    @pytest.mark.parametrize(
        ("kernel", "theirs", "options"),
        [
            (QUADRATIC, "polynomial_kernel", {"degree": 2, "coef0": 0}),
            (WIDE_GAUSSIAN, "rbf_kernel", {"gamma": 1 / 200}),
        ],
        ids=["jedi", "cmmd"],
    )
    def test_biased_is_scikit_learns(self, kernel: Kernel, theirs: str, options: dict[str, float]) -> None:
        pairwise = pytest.importorskip("sklearn.metrics.pairwise", reason="scikit-learn is the reference here")
        k = getattr(pairwise, theirs)
        a, b = normal(30, 9, 3), normal(41, 9, 4, 0.5)
        expected = k(a, a, **options).mean() + k(b, b, **options).mean() - 2 * k(a, b, **options).mean()
        assert mmd2(a, b, kernel) == pytest.approx(kernel.scale * expected, rel=1e-9)

    def test_cmmd_is_ten_times_the_squared_shift_of_means(self) -> None:
        """To first order, since unit features are at most 2 apart and σ is 10."""
        a, b = normal(300, 64, 5), normal(300, 64, 6, 0.15)
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
        assert mmd2(a, b, WIDE_GAUSSIAN) == pytest.approx(10 * shift, rel=0.02)

    @pytest.mark.parametrize("kernel", [CUBIC, QUADRATIC, WIDE_GAUSSIAN], ids=lambda k: k.name)
    def test_unbiased_is_around_zero_and_biased_is_not(self, kernel: Kernel) -> None:
        fair, biased = (
            [mmd2(normal(20, 6, 2 * s), normal(20, 6, 2 * s + 1), kernel, unbiased=u) for s in range(200)]
            for u in (True, False)
        )
        assert abs(np.mean(fair)) < 3.5 * np.std(fair) / np.sqrt(200)
        assert np.mean(biased) > 20 * np.std(biased) / np.sqrt(200)

    def test_frames_by_brute_force(self) -> None:
        """Every pair of frames of different clips, one at a time."""
        a, b = normal(24, 5, 7).reshape(4, 6, 5), normal(18, 5, 8, 0.5).reshape(3, 6, 5)

        def k(x: np.ndarray, y: np.ndarray) -> float:
            return float((x @ y / 5 + 1) ** 3)

        def mean(first: np.ndarray, second: np.ndarray, same: bool) -> float:
            pairs = [(c, d) for c in range(len(first)) for d in range(len(second)) if not (same and c == d)]
            return float(np.mean([k(x, y) for c, d in pairs for x in first[c] for y in second[d]]))

        assert mmd2(a, b, CUBIC) == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False))

    def test_frames_of_a_clip_do_not_bring_the_bias_back(self) -> None:
        """Eight near copies a clip: as rows of their own they look close to their own set, as one clip they do not."""

        def draw(seed: int) -> np.ndarray:
            noise = normal(15 * 8, 4, seed + 999).reshape(15, 8, 4)
            return np.repeat(normal(15, 4, seed)[:, None], 8, 1) + 0.01 * noise

        sets = [(draw(2 * seed), draw(2 * seed + 1)) for seed in range(120)]
        clips = [mmd2(a, b, CUBIC) for a, b in sets]
        rows = [mmd2(a.reshape(-1, 4), b.reshape(-1, 4), CUBIC) for a, b in sets]
        assert abs(np.mean(clips)) < 3.5 * np.std(clips) / np.sqrt(120)
        assert np.mean(rows) > 5 * np.std(rows) / np.sqrt(120)

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = normal(14, 3, 1).reshape(7, 2, 3), normal(10, 3, 2).reshape(5, 2, 3)
        whole = clip_gram(a, b, CUBIC)
        monkeypatch.setattr(mmd, "BLOCK", 1)
        assert clip_gram(a, b, CUBIC) == pytest.approx(whole)

    def test_subsets_of_everything_are_everything(self) -> None:
        a, b = normal(40, 8, 3), normal(40, 8, 4, 0.3)
        assert subset_mmd2(a, b, CUBIC, subsets=3) == pytest.approx([mmd2(a, b, CUBIC)] * 3)

    def test_subsets_have_the_same_mean(self) -> None:
        a, b = normal(120, 8, 5), normal(120, 8, 6, 0.3)
        values = subset_mmd2(a, b, CUBIC, subsets=300, size=30, seed=1)
        assert abs(values.mean() - mmd2(a, b, CUBIC)) < 3.5 * values.std() / np.sqrt(300)
        assert (subset_mmd2(a, b, CUBIC, 2, 30, seed=1) == values[:2]).all()

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (np.zeros((2, 3)), np.zeros((2, 4)), "one shape"),
            (np.zeros((2, 2, 3)), np.zeros((2, 5, 3)), "one shape"),
            (np.zeros((1, 3)), np.zeros((2, 3)), "at least 2 clips"),
            (np.zeros((2, 1, 1, 3)), np.zeros((2, 3)), "clips,frames,d"),
            (np.full((2, 3), np.inf), np.zeros((2, 3)), "finite"),
        ],
    )
    def test_refuses(self, a: np.ndarray, b: np.ndarray, message: str) -> None:
        with pytest.raises(DataError, match=message):
            mmd2(a, b, CUBIC)

    def test_refuses_subsets_of_one(self) -> None:
        with pytest.raises(DataError, match="at least 1 subset of at least 2 clips is needed; got 5 of 1"):
            subset_mmd2(np.zeros((3, 2)), np.zeros((3, 2)), CUBIC, subsets=5, size=1)
