from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_synthtumour.renormalising import Renormaliser


def head(seed: int, shape: tuple[int, ...] = (18, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A raw image, 0 outside of a ball, and the ball."""
    generator = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (at**2).sum(0) < 0.9
    return np.where(inside, generator.uniform(80, 160, shape), 0).astype(np.float32), inside


def z_scored(raw: np.ndarray, inside: np.ndarray, masked: bool) -> np.ndarray:
    values = raw[inside] if masked else raw
    z = (raw - values.mean()) / values.std()
    return np.where(inside, z, 0).astype(np.float32) if masked else z.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.2, 4.0), radius=st.integers(2, 6), masked=st.booleans())
def test_a_lesion_in_the_normalised_image_is_the_normalised_image_with_a_lesion(
    seed: int, factor: float, radius: int, masked: bool
) -> None:
    raw, inside = head(seed)
    values = raw[inside] if masked else raw
    lesion = np.zeros_like(inside)
    lesion[9 - radius : 9 + radius, 10 - radius : 10 + radius, 8 - radius : 8 + radius] = True
    lesion &= inside
    grown = np.where(lesion, raw * factor, raw)
    patch = torch.from_numpy(z_scored(raw, inside, masked))[None]
    renormaliser = Renormaliser([masked])
    before = renormaliser.sums(patch)
    zero = -float(values.mean() / values.std())
    patch[0][torch.from_numpy(lesion)] = (patch[0][torch.from_numpy(lesion)] - zero) * factor + zero
    renormaliser.apply(patch, before, (float(raw.size), float(inside.sum())))
    expected = z_scored(grown, inside, masked)
    assert np.abs(patch[0].numpy() - expected).max() < 0.02 * (1 + np.abs(expected).max())


def test_without_a_lesion_nothing_changes() -> None:
    patch = torch.randn(2, 8, 9, 10)
    kept = patch.clone()
    renormaliser = Renormaliser([False, True])
    renormaliser.apply(patch, renormaliser.sums(patch), (720.0, 300.0))
    assert torch.equal(patch, kept)


def test_padding_and_what_lies_outside_of_the_mask_stay_zero() -> None:
    patch = torch.randn(1, 10, 10, 10)
    patch[0, :3] = 0
    before = Renormaliser([True]).sums(patch)
    patch[0, 5:] += 3
    Renormaliser([True]).apply(patch, before, (1000.0, 700.0))
    assert (patch[0, :3] == 0).all()
    assert abs(float(patch[0, 3:].mean())) < 0.3


def test_large_patches_are_looked_at_here_and_there() -> None:
    patch = torch.ones(1, 160, 160, 160)
    assert Renormaliser([False]).sums(patch).flatten().tolist() == pytest.approx([160**3, 160**3])


def test_other_normalisations_and_slices_are_left_alone() -> None:
    configuration = {
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
    }
    assert Renormaliser.of(SimpleNamespace(patch_size=(8, 8, 8), **configuration)).masked == (None, True)
    assert Renormaliser.of(SimpleNamespace(patch_size=(8, 8), **configuration)).masked == (None, None)
    patch = torch.randn(1, 4, 4, 4)
    kept = patch + 5
    Renormaliser([None]).apply(kept, Renormaliser([None]).sums(patch), (64.0, 64.0))
    assert torch.equal(kept, patch + 5)
