"""Check the installation: versions, devices, nnU-Net's folders, and whether nnU-Net finds every trainer and planner."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--link", action="store_true", help="editable installs: link trainers and planners into nnU-Net's folders first"
    )
    group.add_argument("--unlink", action="store_true", help="take such links away")


def run(args: argparse.Namespace) -> int:
    from nnunet_synthtumour import doctor

    if args.link or args.unlink:
        for line in doctor.unlink() if args.unlink else doctor.link():
            print(line)
    findings = doctor.examine()
    for finding in findings:
        print(finding)
    failed = [f for f in findings if not f.passed]
    print(f"\n{len(failed)} of {len(findings)} checks failed." if failed else f"\nAll {len(findings)} checks passed.")
    return 1 if failed else 0
