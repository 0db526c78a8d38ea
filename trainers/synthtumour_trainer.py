"""Stage one of SynthTumour: a segmenter trained on lesions that are grown online in healthy images."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class SynthTumourTrainer(nnUNetTrainer):
    """nnU-Net's trainer with synthetic lesions."""
