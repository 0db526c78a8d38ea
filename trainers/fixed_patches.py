"""The fixed validation set: the same patches and lesions in every epoch, whoever computes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.trainers.host_patches import HostPatchLoader, stack_targets
from nnunet_synthtumour.trainers.random_streams import seeded

IN_DISTRIBUTION, SHIFTED, PASTED = "in-distribution", "shifted", "pasted"


@dataclass(frozen=True)
class FixedPatch:
    """One patch of the set. `index` counts over the whole set and, with the set's seed, decides everything drawn."""

    index: int
    kind: str
    case: str
    affected: bool


def list_patches(cases: Mapping[str, Sequence[str]], per_kind: int, affected: float) -> list[FixedPatch]:
    """`per_kind` patches of each kind, cases in turn, `affected` of them with a lesion, as evenly of every case; at least
    one, unless none shall have one: without a lesion there is no Dice that could choose an epoch.

    `cases` maps a kind to its cases; the order of the kinds is that of the set. A network that tells the cases apart must
    not know with that which patches have lesions, so these are counted out case after case, not in the order of the set.
    """
    patches = []
    too_few = affected > 0 and int(per_kind * affected) == 0
    for k, (kind, names) in enumerate(cases.items()):
        for i in range(per_kind):
            turn, case = divmod(i, len(names))
            at = case * (per_kind // len(names)) + min(case, per_kind % len(names)) + turn
            has_lesion = int((at + 1) * affected) > int(at * affected) or (too_few and at == 0)
            patches.append(FixedPatch(k * per_kind + i, kind, names[case], has_lesion))
    return patches


def batches_of_rank(patches: Sequence[FixedPatch], batch_size: int, rank: int, world: int) -> list[list[FixedPatch]]:
    """The batches of one rank: every patch goes to exactly one rank, a batch holds one kind."""
    kinds = dict.fromkeys(p.kind for p in patches)
    mine = [[p for p in patches if p.kind == kind][rank::world] for kind in kinds]
    return [part[i : i + batch_size] for part in mine for i in range(0, len(part), batch_size)]


class FixedPatchLoader(HostPatchLoader):
    """Yields a rank's batches in order, over and over. With W workers, worker w yields batches w, w + W, ...; collected
    round-robin (batchgenerators' ordered augmenter) they are in order again.

    Each patch is drawn anew from its own seed instead of being kept: 96 patches of 128^3 are most of a gigabyte.
    """

    def __init__(
        self,
        *args: Any,
        batches: list[list[FixedPatch]],
        grow: Callable[[FixedPatch, dict[str, Any]], dict[str, Any]],
        seed: int,
        workers: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches, self.grow, self.seed, self.workers = batches, grow, seed, max(1, workers)
        self._next: int | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Called in a worker when it starts. More than one thread there may wait for ever on threads lost in the fork."""
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)

    def generate_train_batch(self) -> dict[str, Any]:
        at = self.thread_id if self._next is None else self._next
        self._next = at + self.workers
        batch = self.batches[at % len(self.batches)]
        samples = [self.sample(patch) for patch in batch]
        data = torch.stack([s["image"] for s in samples])
        targets = stack_targets([s["segmentation"] for s in samples])
        finest = targets[0] if isinstance(targets, list) else targets
        return {
            "data": data,
            "target": targets,
            "keys": [patch.case for patch in batch],
            "kind": batch[0].kind,
            "digests": {p.index: digest(x, y) for p, x, y in zip(batch, data, finest, strict=True)},
        }

    def sample(self, patch: FixedPatch) -> dict[str, Any]:
        """The patch, the same whenever and wherever it is asked for."""
        with torch.no_grad(), seeded(self.seed, patch.index):
            sample = self.patch_at(patch.case, in_host=True, oversample=True)
            if patch.case in self.healthy:  # what others do not know is no host
                sample = self.grow(patch, sample)
            return self.transforms(**sample) if self.transforms is not None else sample


def digest(*tensors: torch.Tensor) -> str:
    """A hash of what the tensors hold, bit for bit."""
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        hashed.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return hashed.hexdigest()


def digest_of_set(digests: Iterable[dict[int, str]]) -> str:
    """One hash of the whole set from the hashes of its patches, in whichever order they came."""
    together = {index: text for part in digests for index, text in part.items()}
    return hashlib.blake2b("".join(together[i] for i in sorted(together)).encode(), digest_size=8).hexdigest()
