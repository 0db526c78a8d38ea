from __future__ import annotations

from nnunet_synthtumour.trainers.more_curves import MoreCurves


def test_a_checkpoint_without_our_curves_gets_them() -> None:
    logger = MoreCurves(("folds_percent",))
    assert logger.my_fantastic_logging["folds_percent"] == []
    logger.load_checkpoint({"train_losses": [1.0]})
    assert logger.my_fantastic_logging == {"train_losses": [1.0], "folds_percent": []}
