"""What `pip install` of the wheel puts where, in an environment in which no nnU-Net variable is set."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command: str | Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_") and k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, encoding="utf-8", check=False, env=environment | variables,
        cwd=tempfile.gettempdir(),  # not here: this folder holds packages of the same names
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files() -> Iterator[str]:
    """What git would clone; where this is no clone of ours, what is not hidden, built or installed here."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if listed.returncode == 0:
        yield from (name for name in listed.stdout.splitlines() if (ROOT / name).is_file())
        return
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [
            name for name in inner
            if not name.startswith((".", "__pycache__", "build")) and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]  # fmt: skip
        yield from (os.path.relpath(Path(folder) / name, ROOT) for name in names)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    clone = tmp_path_factory.mktemp("clone")
    for name in _files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    _run(sys.executable, "-m", "build", "--outdir", clone / "dist", clone)
    return clone / "dist"


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an empty environment with nnU-Net and our wheel; their dependencies are lent by this one."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    version = _run(sys.executable, "-c", "import importlib.metadata as m; print(m.version('nnunetv2'))").strip()
    _run(python, "-m", "pip", "install", "-q", "--no-deps", f"nnunetv2=={version}", next(built.glob("*.whl")))
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    # A bare path in a .pth file lends the packages but runs none of the lender's own .pth files, so that no editable
    # install shines through; it comes after the environment's own folder, whose nnU-Net therefore wins.
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return python


FIND = """
import nnunetv2, os
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunet_synthtumour.discovery.planners.synthtumour_planners import PLANNERS
from nnunet_synthtumour.discovery.trainers.synthtumour_trainers import TRAINERS
home = os.path.dirname(os.path.dirname(nnunetv2.__path__[0]))
for name in TRAINERS:
    print(name, recursive_find_trainer_class_by_name(name).__name__)
for name in PLANNERS:
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    print(name, recursive_find_python_class(folder, name, "nnunetv2.experiment_planning").__name__)
import nnunet_synthtumour
print(nnunet_synthtumour.__file__)
"""


def test_nnunet_finds_everything_of_the_wheel_and_nothing_stays_behind(environment: Path) -> None:
    lines = _run(environment, "-c", FIND).splitlines()
    found = dict(line.split() for line in lines[:-1] if len(line.split()) == 2)
    assert found
    assert all(asked == got for asked, got in found.items())
    assert {"SynthTumourTrainer", "SmallPlanner"} <= set(found)
    assert str(environment.parent.parent) in lines[-1]

    _run(environment, "-m", "pip", "uninstall", "-q", "-y", "nnunet-synthtumour")
    left = [p for p in environment.parent.parent.rglob("*synthtumour*") if p.suffix != ".pyc"]
    assert [p for p in left if not p.is_dir() or any(f.is_file() and f.suffix != ".pyc" for f in p.rglob("*"))] == []
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "assert find('nnUNetTrainer').__name__ == 'nnUNetTrainer'\n"
        "try:\n    find('SynthTumourTrainer')\nexcept RuntimeError:\n    print('gone')\n"
    )
    assert _run(environment, "-c", code).splitlines()[-1] == "gone"


def test_wheel_and_sdist_hold_what_they_should(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert "nnunet_synthtumour/py.typed" in names
    assert any(name.startswith("nnunet_synthtumour/presets/") and name.endswith(".json") for name in names)
    assert "nnunet_synthtumour/registration/__init__.py" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nnunet_synthtumour", "nnunetv2", next(t for t in tops if t.endswith(".dist-info"))}
    nnunet_files = {name for name in names if name.startswith("nnunetv2/")}
    assert nnunet_files == {
        "nnunetv2/training/nnUNetTrainer/variants/synthtumour/__init__.py",
        "nnunetv2/training/nnUNetTrainer/variants/synthtumour/synthtumour_trainers.py",
        "nnunetv2/experiment_planning/experiment_planners/synthtumour/__init__.py",
        "nnunetv2/experiment_planning/experiment_planners/synthtumour/synthtumour_planners.py",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        sources = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "trainers/__init__.py"} <= sources


def test_the_discovery_folder_also_serves_as_external_trainers(environment_without_plugin: Path) -> None:
    folder = ROOT / "nnunet_synthtumour" / "discovery" / "trainers"
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('SynthTumourTrainer').__module__)\n"
    )
    shown = _run(environment_without_plugin, "-c", code, nnUNet_extTrainer=str(folder))
    assert shown.splitlines()[-1] == "nnunet_synthtumour.trainers.synthtumour_trainer"


@pytest.fixture
def environment_without_plugin(environment: Path, built: Path) -> Path:
    """The environment after the uninstall, with a copy of this checkout installed as an editable install has it."""
    site = Path(_run(environment, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    _run(environment, "-m", "pip", "uninstall", "-q", "-y", "nnunet-synthtumour")
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    _run(environment, "-m", "pip", "install", "-q", "--no-deps", "--editable", built.parent)
    assert site == Path(_run(environment, "-c", code).strip())
    return environment
