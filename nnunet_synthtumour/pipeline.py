"""From two folders of images to a trained senior: `synthtumour run`, stage by stage with nnU-Net's own commands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nnunet_synthtumour._version import __version__
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.run_progress import RunProgress
from nnunet_synthtumour.run_recipe import Recipe, RunOptions
from nnunet_synthtumour.stages import Record, Stage, only_one, run_stage

SAME = 0.98  # Dice between the pseudo-labels of two rounds above which another round would change nothing


class Run(Recipe):
    """One run of the recipe, from where an earlier one stopped."""

    def __init__(self, options: RunOptions) -> None:
        super().__init__(options, _environment(options.out.resolve()))

    def shell(self) -> str:
        """The commands that a run amounts to."""
        lines = [f"export {name}={shlex.quote(self.environment[name])}" for name in (RAW, PREPROCESSED, RESULTS)]
        for stage in self.stages(self.options.rounds):
            lines += ["", f"# {stage.title}", shlex.join(stage.command)]
        return "\n".join(lines)

    def go(self) -> Path:
        """Run what is not finished yet; returns the report."""
        self._check()
        with only_one(self.out) as lock:
            for folder in (self.raw, self.preprocessed, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            record = Record(self.out)
            self._check_nobody_elses(record)
            record.about = {"version": __version__, "options": _plain(asdict(self.options)),
                            "folders": {v: self.environment[v] for v in (RAW, PREPROCESSED, RESULTS)}}  # fmt: skip
            record.save()
            total = len(self.stages(self.options.rounds))
            progress = RunProgress(total)
            for at, (stage, later) in enumerate(self._in_turn(record), 1):
                if record.finished(stage):
                    progress.skip(at, stage)
                    continue
                progress.begin(at, stage, later)
                self._drop_half_written(stage)
                run_stage(self._found(stage), record, self.environment, progress.line, lock)
                progress.end()
        return self.report

    def _in_turn(self, record: Record) -> Iterator[tuple[Stage, list[Stage]]]:
        """Stages as they come, with those after them; rounds end early when pseudo-labels no longer change."""
        rounds = self.options.rounds
        fixed = len(self.first())
        for i in range(fixed):
            stages = self.stages(rounds)
            yield stages[i], stages[i + 1 :]
        made = 0
        for r in range(1, rounds + 1):
            later = self.stages(rounds)[fixed + (r - 1) * (1 + len(self.options.folds)) + 1 :]
            yield self.pseudolabels(r), later
            agreement = self.agreement(r)
            record.about.setdefault("agreement", {})[str(r)] = agreement
            record.save()
            if agreement is not None:
                print(f"      pseudo-labels of rounds {r - 1} and {r} agree with a Dice of {agreement:.3f}", flush=True)
                if agreement >= SAME:
                    print("      they no longer change; no further round is needed", flush=True)
                    break
            made = r
            for i, stage in enumerate(self.trainings(r)):
                yield stage, later[i + 1 :]
        record.about["rounds"] = made
        record.save()
        last = self.last(made)
        for i, stage in enumerate(last):
            yield stage, last[i + 1 :]

    def agreement(self, round_: int) -> float | None:
        """Dice between the pseudo-labels of a round and those of the round before."""
        if round_ < 2:
            return None
        from nnunet_synthtumour.pseudolabel_agreement import agreement

        return agreement(self.raw / self.dataset(round_ - 1), self.raw / self.dataset(round_)).mean

    def _drop_half_written(self, stage: Stage) -> None:
        """nnU-Net skips predictions that exist: of a killed run the newest, as many as its processes, may be torn."""
        if stage.key.startswith("predict-"):
            folder = stage.outputs[0].parent
            files = sorted(folder.glob("*.nii.gz"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[-self.options.processes :]:
                file.unlink()

    def _found(self, stage: Stage) -> Stage:
        """The stage with its program as a path: that of this environment, else that on PATH."""
        program = stage.command[0]
        beside = Path(sys.executable).with_name(program)
        found = str(beside) if beside.is_file() else shutil.which(program)
        if found is None:
            raise UserError(f"The command {program} was not found; is nnunetv2 installed in this environment?")
        return replace(stage, command=(found, *stage.command[1:]))

    def _check(self) -> None:
        """What would go wrong later and can be seen now."""
        from nnunet_synthtumour.lesion_model import load_model

        o = self.options
        load_model(o.preset)
        for option, folder in (("--healthy", o.healthy), ("--unlabelled", o.unlabelled), ("--test", o.test),
                               ("--test-labels", o.test_labels), ("--host-masks", o.host_masks)):  # fmt: skip
            if folder is not None and not Path(folder).is_dir():
                raise UserError(f"{option} {folder} is not a folder; give a folder of images.")
        if o.test_labels is not None and o.test is None:
            raise UserError("--test-labels goes with --test: they are the truth of the test images.")
        if o.rounds < 1:
            raise UserError(f"--rounds is {o.rounds}, but there is at least one.")
        if o.number + o.rounds > 999:
            raise UserError(
                f"Data sets {o.number} to {o.number + o.rounds} are needed, and 999 is the last; choose -d."
            )
        for fold in o.folds:
            if fold != "all" and fold not in map(str, range(5)):
                raise UserError(f"--folds {fold} is not a fold; nnU-Net's are 0 to 4 and all.")
        o.plans_name()
        if o.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise UserError("No GPU was found; use -device cpu, or see 'synthtumour doctor'.")

    def _check_nobody_elses(self, record: Record) -> None:
        """Data sets of these ids that this run did not make are not touched."""
        if record.started("prepare"):
            return
        for r in range(self.options.rounds + 1):
            for folder in (self.raw, self.preprocessed, self.results):
                for taken in sorted(folder.glob(f"Dataset{self.number(r):03d}_*")):
                    raise UserError(f"{taken} exists already and is not of this run; choose another id with -d.")


def _environment(out: Path) -> dict[str, str]:
    """The environment of all stages; folders of nnU-Net that are not set lie in the run's own folder."""
    unset = {variable: str(out / variable) for variable in (RAW, PREPROCESSED, RESULTS) if not os.environ.get(variable)}
    os.environ.update(unset)  # for what this process looks up itself
    return dict(os.environ)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
