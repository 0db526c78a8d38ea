"""The picture of a training of two networks names what it shows, and nothing else."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nnunet_synthtumour.trainers.deepatlas_progress import RegistrationLogger, mean_of_measured, said_of

PAIRS = {"dice_before", "dice_after", "folds_percent"}
NAMES = {"pairs before registration", "pairs after registration", "folded voxels, %"}


@pytest.mark.parametrize("pairs", [True, False])
def test_a_curve_without_points_is_not_in_the_legend(
    pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = RegistrationLogger()
    for key, values in logger.my_fantastic_logging.items():
        values.extend([np.nan, np.nan] if key in PAIRS and not pairs else [0.25, 0.5])
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    logger.plot_progress_png(str(tmp_path))
    monkeypatch.undo()
    legends = [axis.get_legend() for axis in drawn[0].axes]
    named = {text.get_text() for legend in legends if legend for text in legend.get_texts()}
    plt.close(drawn[0])
    assert NAMES & named == (NAMES if pairs else set())
    assert {"segmentation", "similarity loss", "train losses", "seconds per epoch"} <= named
    assert (tmp_path / "progress.png").stat().st_size > 10_000


def test_the_mean_is_of_what_was_measured() -> None:
    assert mean_of_measured([np.nan, 1.0, 3.0]) == 2.0
    assert np.isnan(mean_of_measured([np.nan]))


def test_the_log_names_the_losses_that_there_were() -> None:
    means = {"loss": 0.5, "similarity": -0.25, "regularity": 0.125, "anatomy": np.nan, "carried": np.nan}
    assert said_of(means) == "Losses: similarity -0.2500, regularity 0.1250"
    assert said_of(dict.fromkeys(means, np.nan)) == ""
