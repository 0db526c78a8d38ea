"""The stages of `synthtumour run`: which commands, in which order, with which files to show for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_synthtumour.atomic_files import read_json
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.junior_model import usual_checkpoint
from nnunet_synthtumour.kept_settings import own_settings
from nnunet_synthtumour.lesion_model import is_ct, model_of, preset_files
from nnunet_synthtumour.schema import merge, parse, parse_assignments
from nnunet_synthtumour.senior_dataset import PROVENANCE
from nnunet_synthtumour.settings import BLOCK, Settings
from nnunet_synthtumour.short_training import EPOCHS, number_in
from nnunet_synthtumour.stages import Stage, is_late

JUNIOR, SENIOR = "SynthTumourTrainer", "SynthTumourSeniorTrainer"
PLANS_OF = {"ExperimentPlanner": "nnUNetPlans", "SynthTumourPlanner": "nnUNetSynthTumourPlans",
            "SmallPlanner": "nnUNetSmallPlans", "TinyPlanner": "nnUNetTinyPlans",
            "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans", "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
            "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans"}  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """What a run is made of; the fields are the options of `synthtumour run`."""

    healthy: Path
    unlabelled: Path
    number: int
    name: str
    out: Path
    channels: tuple[str, ...] = ("FLAIR",)
    host_masks: Path | None = None
    test: Path | None = None
    test_labels: Path | None = None
    device: str = "cuda"
    num_gpus: int = 1
    configuration: str = "3d_fullres"
    planner: str | None = None
    plans: str | None = None
    preset: str = "glioma"
    settings: tuple[str, ...] = ()
    rounds: int = 1
    folds: tuple[str, ...] = ("0",)
    processes: int = 2

    def preset_name(self) -> str:
        """The preset, by --set where it is named there; a user's file by a path that is the same from any folder."""
        lesion = parse_assignments([f"lesion.preset={self.preset}", *self.settings], "training.epochs=100")["lesion"]
        name = str(lesion["preset"]) if isinstance(lesion, dict) else self.preset  # what else it is, prepare says
        return str(Path(name).resolve()) if name.endswith(".json") else name

    def planner_name(self) -> str:
        """nnU-Net's own planner, or without a GPU the small one; for CT one that knows which cases are unlabelled."""
        own = "SynthTumourPlanner" if any(map(is_ct, self.channels)) else "ExperimentPlanner"
        return self.planner or ("SmallPlanner" if self.device == "cpu" else own)

    def plans_name(self) -> str:
        if self.plans is not None:
            return self.plans
        try:
            return PLANS_OF[self.planner_name()]
        except KeyError as error:
            raise UserError(f"What {self.planner_name()} calls its plans is not known; name them with -p.") from error


class Recipe:
    """The stages of one run. `environment` names nnU-Net's folders."""

    def __init__(self, options: RunOptions, environment: Mapping[str, str]) -> None:
        self.options = options
        self.environment = environment
        self.out = options.out.resolve()
        self.raw, self.preprocessed, self.results = (
            Path(environment[variable]) for variable in (RAW, PREPROCESSED, RESULTS)
        )
        self.report = self.out / "report" / "report.html"
        self.late = tuple(text for text in options.settings if is_late(text))

    # ------------------------------------------------------------------------------------------------- names

    def dataset(self, round_: int) -> str:
        """The data set of the junior (round 0) or of the senior of a round."""
        return f"Dataset{self.number(round_):03d}_{self.options.name}" + (f"Senior{round_}" if round_ else "")

    def number(self, round_: int) -> int:
        return self.options.number + round_

    def trainer(self, round_: int) -> str:
        return SENIOR if round_ else JUNIOR

    def model_folder(self, round_: int) -> Path:
        options = self.options
        return self.results / self.dataset(round_) / (
            f"{self.trainer(round_)}__{options.plans_name()}__{options.configuration}"
        )  # fmt: skip

    def predictions(self, round_: int) -> Path:
        return self.out / "predictions" / ("junior" if round_ == 0 else f"senior_{round_}")

    # ------------------------------------------------------------------------------------------------ stages

    def first(self) -> list[Stage]:
        """From the images to the junior."""
        return [self.prepare(), self.plan(), self.preprocess(), *self.trainings(0)]

    def stages(self, rounds: int) -> list[Stage]:
        """All stages, if that many rounds are made."""
        return [
            *self.first(),
            *(stage for r in range(1, rounds + 1) for stage in (self.pseudolabels(r), *self.trainings(r))),
            *self.last(rounds),
        ]

    def prepare(self) -> Stage:
        o = self.options
        given = {"--healthy": o.healthy, "--host-masks": o.host_masks, "--unlabelled": o.unlabelled,
                 "--test": o.test or o.unlabelled, "--test-labels": o.test_labels}  # fmt: skip
        folders = {option: Path(folder).resolve() for option, folder in given.items() if folder is not None}
        return Stage(
            "prepare", "raw data set from the folders of images",
            ("synthtumour", "prepare", "-d", str(o.number), "-n", o.name,
             *(word for name in o.channels for word in ("--channel", name)),
             *(word for option, folder in folders.items() for word in (option, str(folder))),
             "--preset", o.preset_name(),
             *(word for text in o.settings if text not in self.late for word in ("--set", text)),
             "--overwrite", "-np", str(o.processes)),
            outputs=(self.raw / self.dataset(0) / "dataset.json",),
            inputs=(*folders.values(), *preset_files(o.preset_name())),
            channels=o.channels,
        )  # fmt: skip

    def plan(self) -> Stage:
        o = self.options
        return Stage(
            "plan", "nnU-Net looks at the data and plans",
            ("nnUNetv2_plan_and_preprocess", "-d", str(o.number), "-pl", o.planner_name(), "--no_pp", "--clean",
             "--verify_dataset_integrity", "-npfp", str(o.processes),
             *(("-overwrite_plans_name", o.plans) if o.plans else ())),
            outputs=(self.plans_file(),),
        )  # fmt: skip

    def plans_file(self) -> Path:
        return self.preprocessed / self.dataset(0) / f"{self.options.plans_name()}.json"

    def configurations(self) -> dict[str, str]:
        """Configurations that the plans have, each with the folder of its cases; none before planning."""
        plans = read_json(self.plans_file()) or {}
        of = plans.get("configurations", {})
        folders = {}
        for name in of:
            at = of[name]
            while "data_identifier" not in at and at.get("inherits_from") in of:
                at = of[at["inherits_from"]]
            folders[name] = str(at.get("data_identifier", f"{plans.get('plans_name')}_{name}"))
        return folders

    def preprocess(self) -> Stage:
        o = self.options
        cases = self.configurations().get(o.configuration)
        return Stage(
            "preprocess", "nnU-Net preprocesses",
            ("nnUNetv2_preprocess", "-d", str(o.number), "-plans_name", o.plans_name(), "-c", o.configuration,
             "-np", str(o.processes)),
            outputs=tuple(self.preprocessed / self.dataset(0) / name for name in ("gt_segmentations", cases) if name),
        )  # fmt: skip

    def trainings(self, round_: int) -> list[Stage]:
        o, who = self.options, "senior" if round_ else "junior"
        return [
            Stage(
                f"{who}-{round_}-fold-{fold}" if round_ else f"junior-fold-{fold}",
                f"{who}{f' of round {round_}' if round_ and o.rounds > 1 else ''}, fold {fold}",
                ("nnUNetv2_train", str(self.number(round_)), o.configuration, fold, "-tr", self.trainer(round_),
                 "-p", o.plans_name(), "-device", o.device,
                 *(("-num_gpus", str(o.num_gpus)) if o.num_gpus > 1 else ()), "--c"),
                outputs=tuple(self.model_folder(round_) / f"fold_{fold}" / name
                              for name in ("checkpoint_final.pth", "validation/summary.json")),
                epochs=self.epochs(round_),
                made_of=(read_json(self.provenance(round_)) or {}).get("digest", ""),
            )
            for fold in o.folds
        ]  # fmt: skip

    def settings(self) -> Settings:
        """Those that the data set has by now, over those given, checked; what only seniors are made with, as given."""
        o = self.options
        given = parse_assignments([*o.settings, f"lesion.preset={o.preset_name()}"], "training.epochs=100", Settings)
        late = parse_assignments(self.late, "senior.epochs=100", Settings)
        own = own_settings(self.raw / self.dataset(0)) or {}
        settings = parse(Settings, merge(given, merge(own, late)), BLOCK)
        model_of(settings, o.channels)  # complains about what does not exist or fit
        return settings

    def epochs(self, round_: int) -> int:
        """Epochs of one training, as far as it can be known by now."""
        given, settings = number_in(self.environment, EPOCHS), self.settings()
        return given or (round_ and settings.senior.epochs) or settings.training.epochs or 1000

    def pseudolabels(self, round_: int) -> Stage:
        o = self.options
        before = round_ - 1
        return Stage(
            f"pseudolabels-{round_}", f"{'senior' if before else 'junior'} segments the patients: pseudo-labels",
            ("synthtumour", "pseudolabel", "-d", str(o.number), "-o", str(self.number(round_)),
             "-n", self.dataset(round_).split("_", 1)[1],
             *(("--junior", self.dataset(before)) if before else ()), "-tr", self.trainer(before),
             "-chk", usual_checkpoint(self.trainer(before)),
             "-p", o.plans_name(), "-c", o.configuration, "-f", *o.folds,
             *(word for text in self.late for word in ("--set", text)),
             "-device", o.device, "-np", str(o.processes)),
            settings=self.late,
            outputs=(self.provenance(round_), self.preprocessed / self.dataset(round_) / PROVENANCE),
            after=tuple(training.key for training in self.trainings(before)),
        )  # fmt: skip

    def provenance(self, round_: int) -> Path:
        return self.raw / self.dataset(round_) / PROVENANCE

    def last(self, rounds: int) -> list[Stage]:
        """Predictions of junior and senior, their evaluation if the truth is known, and the report."""
        o = self.options
        images = self.raw / self.dataset(0) / "imagesTs"
        what = "the test images" if o.test else "the patients"
        stages = [
            Stage(
                f"predict-{self.predictions(r).name}", f"{'senior' if r else 'junior'} segments {what}",
                ("nnUNetv2_predict", "-d", str(self.number(r)), "-i", str(images), "-o", str(self.predictions(r)),
                 "-c", o.configuration, "-f", *o.folds, "-tr", self.trainer(r), "-p", o.plans_name(),
                 "-chk", usual_checkpoint(self.trainer(r)),
                 "-device", o.device, "--continue_prediction", "-npp", str(o.processes), "-nps", str(o.processes)),
                outputs=(self.predictions(r) / "dataset.json",),
                after=("prepare", *(training.key for training in self.trainings(r))),
            )
            for r in dict.fromkeys((0, rounds))
        ]  # fmt: skip
        if o.test_labels is not None:
            truth = self.raw / self.dataset(0) / "labelsTs"
            stages += [
                Stage(
                    f"evaluate-{self.predictions(r).name}", f"{'senior' if r else 'junior'} against the truth",
                    ("synthtumour", "evaluate", "-r", str(truth), "-i", str(self.predictions(r)),
                     "-np", str(o.processes)),
                    outputs=(self.predictions(r) / "evaluation.json",),
                    after=("prepare", f"predict-{self.predictions(r).name}"),
                )
                for r in dict.fromkeys((0, rounds))
            ]  # fmt: skip
        return [*stages, self.report_stage()]

    def report_stage(self) -> Stage:
        """Always written anew: it costs little, and shows whatever was done since."""
        return Stage(
            "report", "report", ("synthtumour", "report", "-o", str(self.out)), outputs=(self.report,), always=True
        )
