from __future__ import annotations

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

from nnunet_synthtumour.pseudolabel_picture import _outline


@pytest.mark.parametrize("mask", [np.ones((3, 5), bool), np.ones((1, 4), bool), np.eye(4, dtype=bool)])
def test_outlines_are_closed_at_the_edge_and_leave_the_picture_its_size(mask: np.ndarray) -> None:
    figure, panel = plt.subplots()
    panel.imshow(mask)
    before = panel.get_xlim(), panel.get_ylim()
    _outline(panel, mask, "red")
    assert (panel.get_xlim(), panel.get_ylim()) == before
    lines = [line for path in panel.collections[0].get_paths() for line in path.to_polygons(closed_only=False)]
    assert lines and all(np.allclose(line[0], line[-1]) for line in lines)
    assert all(np.ptp(line[:, 0]) > 0.4 and np.ptp(line[:, 1]) > 0.4 for line in lines)
    plt.close(figure)
