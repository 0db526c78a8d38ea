"""Which of the two networks of DeepAtlas learns when."""

from __future__ import annotations

from nnunet_synthtumour.settings import DeepAtlasSettings

ALONE, TAUGHT, JOINT = "registration alone", "registration teaches", "both learn"
FEW_LABELS = 2  # up to here, the paper's order for one label: first registration, then segmentation, then both


def stage_of(epoch: int, epochs: int, settings: DeepAtlasSettings, labelled: int) -> str:
    """What is learnt in an epoch of a training on so many `labelled` cases."""
    # every image has labels then, its own or fitted ones; registration can wait for a segmenter that tells it something
    if settings.fitted:
        alone, taught = 0.0, 0.5
    else:
        alone, taught = (0.3, 0.2) if labelled <= FEW_LABELS else (0.2, 0.0)
    alone = settings.alone if settings.alone is not None else alone
    taught = settings.taught if settings.taught is not None else taught
    first, second = round(alone * epochs), round((alone + taught) * epochs)
    return ALONE if epoch < first else TAUGHT if epoch < second else JOINT


def registration_steps(settings: DeepAtlasSettings) -> int:
    """Per segmentation step when both learn: as many in all as there are segmentation steps by default."""
    return settings.registration_steps or (2 if settings.fitted else 1)
