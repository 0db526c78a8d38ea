"""Box sums against a convolution, Gaussian smoothing against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from nnunet_synthtumour.registration.windows import box_count, box_sum, gaussian_smooth


@given(st.integers(0, 8).map(lambda half: 2 * half + 1), st.sampled_from([(7, 12), (5, 6, 9), (3, 20, 4)]))
def test_box_sum_is_the_convolution_with_a_box(window: int, shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape, dtype=torch.float64)
    convolve = F.conv2d if len(shape) == 2 else F.conv3d
    expected = convolve(image, torch.ones(1, 1, *[window] * len(shape), dtype=torch.float64), padding=window // 2)
    torch.testing.assert_close(box_sum(image, window), expected)
    torch.testing.assert_close(box_count(shape, window, image), box_sum(torch.ones_like(image[:1]), window))


def test_box_sum_gradient() -> None:
    image = torch.rand(1, 2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: box_sum(x, 3), (image,))
    assert torch.autograd.gradgradcheck(lambda x: box_sum(x, 3), (image,))


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="odd number of voxels, not 4"):
        box_sum(torch.zeros(1, 1, 5, 5), 4)


@pytest.mark.parametrize("shape", [(14, 11), (9, 8, 12)])
def test_gaussian_smoothing_is_scipys(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, 2, *shape)
    expected = np.stack([gaussian_filter(c.numpy(), 1.5, mode="nearest", truncate=3.0) for c in image[0]])
    torch.testing.assert_close(gaussian_smooth(image, 1.5)[0], torch.from_numpy(expected), rtol=0, atol=2e-3)
    assert gaussian_smooth(image, 0.0) is image
