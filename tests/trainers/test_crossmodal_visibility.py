from __future__ import annotations

import numpy as np
import torch

from nnunet_synthtumour.registration.metrics import dice
from nnunet_synthtumour.trainers.crossmodal_visibility import frame_of, seen_in
from nnunet_synthtumour.trainers.whole_grids import Whole


def _ball(shift: float, contrast: float) -> Whole:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (24, 26, 28)], indexing="ij"))
    distance = ((grid - shift) ** 2).sum(0, keepdim=True).sqrt()
    return Whole(1.0 * (grid.norm(dim=0, keepdim=True) < 0.9) + contrast * (distance < 0.5), (distance < 0.5).short())


def test_a_target_is_seen_with_its_own_labels_or_those_that_a_quick_field_brings() -> None:
    target, source = _ball(0.1, 1.0), _ball(-0.1, -0.5)
    truth = target.seg[0].numpy() == 1
    own, carried = (
        seen_in("t", target, source, own_labels, (3, 3, 3), torch.device("cpu")) for own_labels in (True, False)
    )
    assert not own.carried and np.array_equal(own.labels == 1, truth)
    assert carried.carried and dice(carried.labels == 1, truth) > dice(source.seg[0].numpy() == 1, truth) + 0.1
    assert carried.target.shape == carried.source.shape == (1, 24, 26, 28)


def test_where_an_image_lies_is_known_as_far_as_its_reader_tells() -> None:
    axes = (1.0, 0.0, 0.0, 1.0)
    assert frame_of({"sitk_stuff": {"origin": (3.0, 4.0), "direction": axes}}) == (3.0, 4.0, *axes)
    assert frame_of({"nibabel_stuff": {}}) == ()
