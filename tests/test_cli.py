import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nnunet_synthtumour import __version__, cli
from nnunet_synthtumour.errors import UserError

HEAVY = ("torch", "numpy", "scipy", "SimpleITK", "nnunetv2", "matplotlib", "batchgeneratorsv2", "skimage")


def _modules_after(*argv: str) -> set[str]:
    code = (
        "import sys\nfrom nnunet_synthtumour.cli import main\n"
        f"try:\n    main({list(argv)!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('\\n' + ' '.join(m.split('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    assert not _modules_after(*argv) & set(HEAVY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nnunet-synthtumour {__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name, text in cli.COMMANDS.items():
        assert f"{name} " in shown
        assert text in shown


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("the folder x is empty; put images there."), 2, "the folder x is empty; put images there."),
        (FileNotFoundError(2, "No such file or directory", "a.nii"), 1, "No such file or directory (a.nii)."),
        (OSError(28, "No space left on device"), 1, "No space left on device."),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
        (KeyboardInterrupt(), 130, "interrupted."),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_synthtumour.commands import doctor

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert text in shown
    assert cli.main(["doctor", "-v"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    text = (
        "import sys; from nnunet_synthtumour.cli import main; sys.exit(main(['settings', '-d', sys.argv[1], '--all']))"
    )
    roles = {f"case_{i:05d}": "healthy" for i in range(20_000)}  # more than a pipe holds
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dataset.json"
        file.write_text(json.dumps({"labels": {"background": 0, "tumour": 1}, "synthtumour": {"roles": roles}}))
        with subprocess.Popen([sys.executable, "-c", text, str(file)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
    assert process.returncode == 0
