"""The trainers of nnunet-synthtumour, each imported when nnU-Net asks for it by name."""

TRAINERS = {
    "SynthTumourTrainer": "nnunet_synthtumour.trainers.synthtumour_trainer",
    "DeepAtlasTrainer": "nnunet_synthtumour.trainers.deepatlas_trainer",
    "CrossModalTrainer": "nnunet_synthtumour.trainers.crossmodal_trainer",
    "SynthTumourSeniorTrainer": "nnunet_synthtumour.trainers.senior_trainer",
}


def __getattr__(name):
    if name in TRAINERS:
        import importlib

        return getattr(importlib.import_module(TRAINERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
