"""From two folders of images to a trained senior: `synthtumour run`, stage by stage with nnU-Net's own commands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nnunet_synthtumour._version import __version__
from nnunet_synthtumour.atomic_files import read_json
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.known_test_cases import known_test_cases
from nnunet_synthtumour.run_progress import RunProgress
from nnunet_synthtumour.run_recipe import Recipe, RunOptions
from nnunet_synthtumour.stages import Record, Stage, only_one, option_of, run_stage

# On a CPU nnU-Net computes on as many threads as there are cores, beside its own loader; threads that wait by spinning
# would take the loader's core.
SHARING = ("OMP_WAIT_POLICY", "PASSIVE")
# glibc gives large blocks back to the system, which clears them anew in every step: a sixth of the time of a training step.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
SAME = 0.98  # Dice between the pseudo-labels of two rounds above which another round would change nothing


class Run(Recipe):
    """One run of the recipe, from where an earlier one stopped."""

    def __init__(self, options: RunOptions) -> None:
        record = Record(options.out.resolve())
        environment = _environment(options.out.resolve(), record)
        if options.device == "cpu":
            environment.setdefault(*SHARING)
        super().__init__(_as_planned(options, record), environment)

    def environment_of(self, stage: Stage) -> Mapping[str, str]:
        """That of a stage's command: a training on a CPU keeps the memory that it has."""
        return {**KEEPING, **self.environment} if stage.epochs and self.options.device == "cpu" else self.environment

    def shell(self) -> str:
        """The commands that a run amounts to; complains as a run does, but for a GPU: another machine may have it."""
        self._check()
        self._check_begun(Record(self.out))
        lines = [f"export {name}={shlex.quote(self.environment[name])}" for name in (RAW, PREPROCESSED, RESULTS)]
        for stage in self.stages(self.options.rounds):
            lines += ["", f"# {stage.title}", shlex.join(stage.command)]
        return "\n".join(lines)

    def go(self) -> Path:
        """Run what is not finished yet; returns the report."""
        self._check()
        self._check_device()
        with only_one(self.out) as lock:
            for folder in (self.raw, self.preprocessed, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            record = Record(self.out)
            self._check_begun(record)  # before anything is done
            record.about = {"version": __version__, "options": _plain(asdict(self.options)),
                            "folders": {v: self.environment[v] for v in (RAW, PREPROCESSED, RESULTS)}}  # fmt: skip
            record.save()
            progress = RunProgress()
            for at, (next_stage, later) in enumerate(self._in_turn(record), 1):
                stage = self._as_begun(next_stage, record)
                if record.finished(stage):
                    progress.skip(at, stage, later)
                else:
                    progress.begin(at, stage, later)
                    self._drop_what_is_no_result(stage, record)
                    run_stage(self._found(stage), record, self.environment_of(stage), progress.line, lock)
                    progress.end()
                if stage.key == "prepare":
                    self._say_what_is_no_test()
                if stage.key == "plan":
                    self._check_configuration()
        return self.report

    def scores(self) -> list[str]:
        """The mean Dice of every model whose predictions were compared with the truth, a line each."""
        lines = []
        for file in sorted((self.out / "predictions").glob("*/evaluation.json")):
            model = file.parent.name.replace("_", ", round ")
            for structure, found in (read_json(file) or {}).get("summary", {}).items():
                value = "undefined" if found.get("dice") is None else f"{found['dice']:.3f}"
                lines.append(
                    f"{model}: {structure}, Dice {value}, mean of {found['cases'] - found['dice_undefined']} cases"
                )
        return lines

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

    def _say_what_is_no_test(self) -> None:
        known = known_test_cases(self.raw / self.dataset(0)) if self.options.test else []
        if known:
            print(
                f"      test cases that are trained on too, and so test nothing ({len(known)}): {', '.join(known[:6])}"
                + (", ..." if len(known) > 6 else ""),
                flush=True,
            )

    def _as_begun(self, stage: Stage, record: Record) -> Stage:
        """A training goes on with what it was begun with; without a checkpoint it begins anew, from what there is now.

        That there are other pseudo-labels by now is said.
        """
        then = record.stages.get(stage.key, {}).get("made_of")
        if not then or then == stage.made_of or not record.goes_on(stage):
            return stage
        print(
            f"{stage.title} was begun with older pseudo-labels than there are now; to train it anew, remove "
            f"{stage.outputs[0].parent} and give the same command again",
            flush=True,
        )
        return replace(stage, made_of=then)

    def _drop_what_is_no_result(self, stage: Stage, record: Record) -> None:
        """nnU-Net skips predictions that exist, be they of an older model or torn.

        Of a killed run the newest may be torn, as many as the processes that it had.
        """
        if not stage.key.startswith("predict-"):
            return
        files = sorted(stage.outputs[0].parent.glob("*.nii.gz"), key=lambda file: file.stat().st_mtime_ns)
        then = option_of(record.command(stage.key), "-nps")
        torn = len(files) if record.outdated(stage) else max(self.options.processes, int(then or 0))
        for file in files[-torn:]:
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
        from nnunet_synthtumour.datasets import check_names

        o = self.options
        self.settings()
        check_names(o.number, o.name, o.channels)
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
        if "cascade" in o.configuration:
            raise UserError(f"-c {o.configuration} cannot be trained on grown lesions; choose 3d_fullres or 3d_lowres.")
        o.plans_name()

    def _check_device(self) -> None:
        if self.options.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise UserError("No GPU was found; use -device cpu, or see 'synthtumour doctor'.")

    def _check_begun(self, record: Record) -> None:
        self._check_nobody_elses(record)
        record.check(self.stages(self.options.rounds))

    def _check_nobody_elses(self, record: Record) -> None:
        """Data sets of these ids that this run neither made nor began are not touched."""
        stages = [entry for key, entry in record.stages.items() if key == "prepare" or key.startswith("pseudolabels-")]
        own = {Path(output).parent for entry in stages for output in entry["outputs"]}
        for r in range(self.options.rounds + 1):
            for folder in (self.raw, self.preprocessed, self.results):
                for taken in sorted(folder.glob(f"Dataset{self.number(r):03d}_*")):
                    if self.raw / taken.name not in own:
                        raise UserError(f"{taken} exists already and is not of this run; choose another id with -d.")

    def _check_configuration(self) -> None:
        """nnU-Net preprocesses nothing for a configuration that its plans lack, and says so only in passing."""
        there = self.configurations()
        if self.options.configuration not in there:
            raise UserError(
                f"{self.plans_file()} has no configuration {self.options.configuration}, but {', '.join(there) or 'none'}; "
                "choose with -c."
            )


def _as_planned(options: RunOptions, record: Record) -> RunOptions:
    """Options with the planner and plans of an earlier run where none are given now: they do not follow the device."""
    command = record.command("plan", finished=True)
    planner = options.planner or option_of(command, "-pl")
    plans = options.plans or (None if options.planner else option_of(command, "-overwrite_plans_name"))
    return replace(options, planner=planner, plans=plans)


def _environment(out: Path, record: Record) -> dict[str, str]:
    """The environment of all stages; folders of nnU-Net that are not set are those of the earlier run, or in `out`."""
    begun = any(entry["state"] == "finished" for entry in record.stages.values())
    folders = {}
    for variable in (RAW, PREPROCESSED, RESULTS):
        given, before = os.environ.get(variable), record.about.get("folders", {}).get(variable)
        same = bool(given and before) and Path(given or "").resolve() == Path(before).resolve()
        if given and before and begun and not same:
            raise UserError(
                f"{variable} is {given}, but {record.file} was begun with {before}; unset it, or use another -o and -d."
            )
        folder = before if same else given or before or out / variable
        folders[variable] = str(Path(folder).absolute())
    os.environ.update(folders)  # for what this process looks up itself
    return dict(os.environ)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
