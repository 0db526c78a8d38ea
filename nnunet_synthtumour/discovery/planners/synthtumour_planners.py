"""The planners of nnunet-synthtumour, each imported when nnU-Net asks for it by name."""

PLANNERS = {
    "SynthTumourPlanner": "nnunet_synthtumour.planners.synthtumour_planner",
    "SmallPlanner": "nnunet_synthtumour.planners.small_planner",
    "TinyPlanner": "nnunet_synthtumour.planners.small_planner",
    "DeepAtlasPlanner": "nnunet_synthtumour.planners.deepatlas_planner",
    "DeepAtlasSmallPlanner": "nnunet_synthtumour.planners.deepatlas_planner",
}


def __getattr__(name):
    if name in PLANNERS:
        import importlib

        return getattr(importlib.import_module(PLANNERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
