from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nnunet_synthtumour.senior_dataset import splits_with_patients

HEALTHY = [{"train": [f"h{i}" for i in range(5) if i != fold], "val": [f"h{fold}"]} for fold in range(5)]
PATIENTS = [f"p{i:02d}" for i in range(12)]


def test_a_patient_is_held_out_in_the_same_fold_in_every_round() -> None:
    all_kept = splits_with_patients(HEALTHY, PATIENTS, PATIENTS)
    fewer = splits_with_patients(HEALTHY, PATIENTS[1:], PATIENTS)
    for one, other in zip(all_kept, fewer, strict=True):
        assert set(one["val"]) - {"p00"} == set(other["val"])


@given(st.sets(st.sampled_from(PATIENTS), min_size=1))
def test_every_fold_holds_patients_out_and_keeps_the_healthy_where_they_were(kept: set[str]) -> None:
    for before, after in zip(HEALTHY, splits_with_patients(HEALTHY, sorted(kept), PATIENTS), strict=True):
        assert [case for case in after["train"] if case.startswith("h")] == before["train"]
        assert [case for case in after["val"] if case.startswith("h")] == before["val"]
        held_out, trained = set(after["val"]) & kept, set(after["train"]) & kept
        assert held_out
        assert held_out | trained == kept
        assert len(kept) == 1 or not held_out & trained
