"""The command `synthtumour`: one console script, one module per subcommand in `commands/`.

Only the subcommand that is asked for is imported, and it imports what is heavy when it runs, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from nnunet_synthtumour._version import __version__
from nnunet_synthtumour.errors import UserError

COMMANDS = {
    "doctor": "check the installation, the nnU-Net paths and the devices",
    "phantom": "write the embedded data set: procedural brains with tumours in two modalities",
    "run": "everything: two folders of images in, a trained segmenter and a report out",
    "prepare": "build a raw nnU-Net data set from folders of images",
    "pseudolabel": "let a junior segment unlabelled patients, and build the data set for a senior",
    "evaluate": "compare predictions with label maps",
    "export": "a trained model as a zip for machines without this package",
    "report": "one page on a run: data, curves, pseudo-labels, test cases",
    "settings": "show the settings that a data set trains with, and which of them you set",
    "presets": "list the lesion presets",
    "grow": "grow synthetic lesions in whole images and write them to files",
    "preview": "draw what training would see, as a picture and an HTML page",
    "visibility": "can a modality show what is to be segmented in it? ask before labels are carried over",
    "align": "put every case of a raw data set on one grid",
    "register": "register two images: affine, then diffeomorphic",
}

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="synthtumour",
        description="nnU-Net trainers for images with hardly any annotations.",
        epilog=f"commands:\n{listing}\n\n'synthtumour COMMAND --help' describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunet-synthtumour {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit codes: 0 done, 1 a check failed, 2 the user can mend it, 130 interrupted."""
    chosen = build_parser().parse_args(argv)
    command = importlib.import_module(f"nnunet_synthtumour.commands.{chosen.command}")
    parser = argparse.ArgumentParser(prog=f"synthtumour {chosen.command}", description=command.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    args = parser.parse_args(chosen.arguments)
    try:
        return int(command.run(args) or EXIT_OK)
    except UserError as error:
        return _complain(parser.prog, str(error), args.verbose, EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _complain(parser.prog, "interrupted.", args.verbose, EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain when it flushes at exit
        return EXIT_OK
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(parser.prog, f"{error.strerror or error}{where}.", args.verbose, EXIT_FAILED)
    except Exception as error:
        text = f"{type(error).__name__}: {error} (this is a defect of ours; -v shows where)."
        return _complain(parser.prog, text, args.verbose, EXIT_FAILED)


def _complain(program: str, text: str, verbose: bool, code: int) -> int:
    if verbose:
        traceback.print_exc()
    print(f"{program}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
