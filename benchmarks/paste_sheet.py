"""Draw tumours of phantom patients pasted into healthy phantoms: what the senior's training sees before augmentation.

python benchmarks/paste_sheet.py -o docs/pastes.png [--placement relative] [-n 8]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synthtumour.contact_sheet import Panel, save_sheet
from nnunet_synthtumour.donor_cutting import build_bank
from nnunet_synthtumour.mixing import PasteTumour
from nnunet_synthtumour.phantom import make_subject
from nnunet_synthtumour.settings import DonorSettings

MM, IGNORE, HEALTHY, PATIENTS = 1.5, 2, 4, 8


def case(seed: int, tumour: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, Z, Y, X), z-scored in the brain, and label map, cropped to the brain as nnU-Net does."""
    subject = make_subject(seed, MM, tumour=tumour)
    at = np.argwhere(subject.brain)
    box = tuple(slice(a, b) for a, b in zip(at.min(0), at.max(0) + 1, strict=True))
    brain = subject.brain[box].transpose()
    image = next(iter(subject.images.values()))[box].transpose()
    image = np.where(brain, (image - image[brain].mean()) / image[brain].std(), 0).astype(np.float32)
    labels = (subject.regions[box].transpose() > 0) if tumour else brain * IGNORE
    return image[None], np.where(brain, labels, -1)[None].astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--placement", default="relative", choices=("relative", "anywhere", "paper"))
    parser.add_argument("-n", type=int, default=8)
    args = parser.parse_args()
    settings = replace(DonorSettings(), probability=1.0, placement=args.placement)
    names = [f"patient_{i}" for i in range(PATIENTS)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i, name in enumerate(names):
            image, seg = case(100 + i, tumour=True)
            properties = {"spacing": [MM] * 3, "bbox_used_for_cropping": [[0, n] for n in seg.shape[1:]]}
            chunks = image.shape
            nnUNetDatasetBlosc2.save_case(image, seg, properties, str(folder / name), chunks, chunks, chunks, chunks)
        bank = build_bank(
            folder, names, folder / "bank", settings, labels=[1], ignore_label=IGNORE, spacing=(MM,) * 3
        )  # fmt: skip
        paste = PasteTumour(bank, settings, (MM,) * 3, IGNORE)
        healthy = [case(i, tumour=False) for i in range(HEALTHY)]
        rows: list[list[Panel]] = [[], [], []]
        for i in range(args.n):
            image, seg = healthy[i % HEALTHY]
            np.random.seed(i)
            sample = {"image": torch.from_numpy(image.copy()), "segmentation": torch.from_numpy(seg.copy())}
            drawn = paste.get_parameters(**sample)
            out = paste.apply(sample, **drawn)
            labels = out["segmentation"][0].numpy()
            at = int((labels > 0).sum((1, 2)).argmax())
            nothing = np.zeros_like(labels[at])
            name = drawn["pastes"].pastes[0].donor if drawn["pastes"].pastes else "nothing has its place here"
            pasted = out["image"][0, at].numpy()[::-1]
            rows[0].append(Panel(image[0, at][::-1], nothing, f"healthy {i % HEALTHY}"))
            rows[1].append(Panel(pasted, nothing, name))
            rows[2].append(Panel(pasted, labels[at][::-1], f"{(labels > 0).sum() * MM**3 / 1000:.0f} ml"))
    save_sheet(
        rows, args.out, f"Healthy phantoms, with a tumour of a phantom patient, with its label ({args.placement})"
    )


if __name__ == "__main__":
    main()
