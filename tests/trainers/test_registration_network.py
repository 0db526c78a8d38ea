from pathlib import Path

import pytest
import torch

from nnunet_synthtumour.registration import networks
from nnunet_synthtumour.registration.instance import displacements_on
from nnunet_synthtumour.trainers import deepatlas_trainer
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.registration_network import kind_of
from tests.toy_dataset import make_trainer


@pytest.mark.parametrize(("network", "guided"), [("unet", True), ("unet", False), ("mscgunet", True)])
def test_weights_tell_what_they_are_of(toy: Path, network: str, guided: bool) -> None:
    roles = {f"case_{i:03d}": "labelled" for i in (6, 7)}
    settings = {"registration": {"network": network}, "deepatlas": {"guided": guided}}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", roles=roles, **settings)
    trainer.initialize()
    assert kind_of(trainer.registration.state()["weights"]) == (network, guided)


def test_how_often_a_pair_is_looked_at_and_drawn_together_goes_into_the_model_file(toy: Path) -> None:
    roles = {f"case_{i:03d}": "labelled" for i in (6, 7)}
    none = {"passes": 1, "anatomy": 0.0, "structure_steps": 0}
    for settings, passes, anatomy, steps in (({}, 2, 4.0, 8), (none, 1, 0.0, 0)):
        trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", roles=roles, registration=settings)
        trainer.initialize()
        assert trainer.registration.bare.passes == trainer.registration.architecture.build().passes == passes
        assert trainer.objective().settings.anatomy == anatomy and trainer.registration.passes == passes
        assert (
            trainer.registration.structure_steps == trainer.registration.architecture.build().structure_steps == steps
        )


@pytest.mark.parametrize("shape", [(16, 16, 16), (18, 21, 17)])
def test_a_velocity_covers_the_images_and_not_their_padding(toy: Path, shape: tuple[int, ...]) -> None:
    roles = {f"case_{i:03d}": "labelled" if i > 5 else "unlabelled" for i in range(8)}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", roles=roles)
    trainer.initialize()
    learner = trainer.registration
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in learner.bare.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moving, fixed = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
    velocity, expected = learner.velocity(moving, fixed), learner.register(moving, fixed)[0]
    assert velocity.shape[2:] == shape
    found = displacements_on(velocity, shape)[0]
    assert expected.abs().mean() > 0.2
    inner = (slice(None), slice(None), *[slice(3, -3)] * 3)  # at the faces the padding has moved, too
    assert (found - expected)[inner].abs().mean() < 0.15 * expected[inner].abs().mean()


def test_labels_that_teach_are_carried_by_the_looks_alone(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = {f"case_{i:03d}": "labelled" if i > 5 else "unlabelled" for i in range(8)}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", roles=roles, deepatlas={"fitted": 0})
    trainer.initialize()
    learner = trainer.registration
    learner.bare.guide.say(True)
    taken: list[int] = []
    monkeypatch.setattr(networks, "drawn_together", lambda velocity, *rest: taken.append(rest[3]) or velocity)
    image = torch.rand(1, 1, 16, 16, 16)
    pair = {side: {"match": image, "labelled": [True], "image": image, "seg": torch.zeros_like(image)} for side in
            ("moving", "fixed")}  # fmt: skip
    monkeypatch.setattr(deepatlas_trainer, "taught_samples", lambda *_: ([], []))
    trainer.taught_samples(pair)
    learner.register(image, image, to_structures=False)
    learner.velocity(image, image, to_structures=False)
    assert not taken
    learner.register(image, image)
    learner.velocity(image, image)
    assert taken == [8, 8]


def test_looks_are_those_of_register_and_say_whether_steps_were_kept(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {f"case_{i:03d}": "labelled" if i > 5 else "unlabelled" for i in range(8)}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", roles=roles)
    trainer.initialize()
    learner = trainer.registration
    learner.bare.guide.say(True)
    one, other = torch.rand(2, 1, 1, 16, 16, 16)
    found = torch.rand(2, 1, 2, 16, 16, 16).softmax(2)
    monkeypatch.setattr(type(learner.bare), "found_in", lambda *_: tuple(found))
    for alike in (True, False):
        monkeypatch.setattr(type(learner.bare), "_still_alike", lambda *_, alike=alike: torch.tensor([alike]))
        looks, kept = learner.looks(one, other)
        assert kept is alike
        assert torch.equal(looks, learner.register(one, other, to_structures=False)[0])
        assert torch.equal(looks, learner.register(one, other)[0]) is not alike
    assert learner.network.training
