from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_synthtumour.trainers import validation_references
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from nnunet_synthtumour.trainers.validation_references import ReferenceWriter, write_reference
from tests.toy_dataset import IGNORE, make_trainer


class _Loaded:
    identifiers = ("given", "loaded")

    def load_case(self, case: str) -> tuple[Any, ...]:
        return None, np.array([[[[0, 1, 2]]]]), None, {"of": case}


@pytest.mark.parametrize("regions", [False, True])
def test_voxels_of_doubt_keep_the_ignore_label(toy: Path, tmp_path: Path, regions: bool) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer)
    dataset_json = dict(trainer.dataset_json)
    if regions:
        dataset_json |= {"labels": {"background": 0, "whole": [1], "ignore": IGNORE}, "regions_class_order": [1]}
    data_set = infer_dataset_class(trainer.preprocessed_dataset_folder)(trainer.preprocessed_dataset_folder)
    _, seg, _, properties = data_set.load_case("case_006")
    seg = np.array(seg[:])
    tumour = seg[0] == 1
    doubt = tumour & (np.indices(tumour.shape)[0] % 2 == 0)
    seg[0][doubt] = IGNORE
    write_reference(
        seg, properties, tmp_path / "case", trainer.configuration_manager, trainer.plans_manager, dataset_json
    )
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "case.nii.gz")))
    assert (written == IGNORE).sum() == pytest.approx(doubt.sum(), rel=0.3)
    assert (written == 1).sum() == pytest.approx((tumour & ~doubt).sum(), rel=0.3)


def test_given_references_are_copied_and_others_written_as_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[Path, tuple[list[int], dict[str, Any]]] = {}
    monkeypatch.setattr(
        validation_references, "write_reference",
        lambda seg, properties, file, *_: written.update({file: (seg.ravel().tolist(), properties)}),
    )  # fmt: skip
    (tmp_path / "given.mha").write_text("theirs", encoding="utf-8")
    nothing: Any = None
    writer = ReferenceWriter(tmp_path / "lent", tmp_path, nothing, nothing, {"file_ending": ".mha"})
    writer.write(_Loaded(), lambda case: case == "given")
    assert (tmp_path / "lent" / "given.mha").read_text(encoding="utf-8") == "theirs"
    assert written == {tmp_path / "lent" / "loaded": ([0, 1, 2], {"of": "loaded"})}
