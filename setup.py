"""Where the folders of this repository land when installed; everything else is in pyproject.toml.

`trainers/`, `planners/` and `registration/` stand at the top level and become sub-packages of `nnunet_synthtumour`.
The two discovery folders are installed a second time inside nnU-Net's own package, where nnU-Net looks for trainers and
planners: see docs/architecture.md.
"""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
TRAINER_VARIANTS = "nnunetv2.training.nnUNetTrainer.variants.synthtumour"
PLANNERS = "nnunetv2.experiment_planning.experiment_planners.synthtumour"

package_dir = {
    "nnunet_synthtumour": "nnunet_synthtumour",
    "nnunet_synthtumour.trainers": "trainers",
    "nnunet_synthtumour.planners": "planners",
    "nnunet_synthtumour.registration": "registration",
    TRAINER_VARIANTS: "nnunet_synthtumour/discovery/trainers",
    PLANNERS: "nnunet_synthtumour/discovery/planners",
}


def subpackages(package: str, folder: str) -> list[str]:
    """`package` and every package below `folder`, as dotted names."""
    found = [package]
    for init in sorted((HERE / folder).rglob("__init__.py")):
        inner = init.parent.relative_to(HERE / folder)
        if inner.parts:
            found.append(".".join([package, *inner.parts]))
    return found


PRESETS = "nnunet_synthtumour.presets"  # data only, but setuptools takes every folder for a package

packages = [name for package, folder in package_dir.items() for name in subpackages(package, folder)]

setup(
    packages=sorted({*packages, PRESETS}),
    package_dir=package_dir,
    package_data={"nnunet_synthtumour": ["py.typed"], PRESETS: ["*.json"]},
)
