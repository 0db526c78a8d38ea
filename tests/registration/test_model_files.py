"""A registration network survives being written and read."""

import pytest
import torch

from nnunet_synthtumour.registration.model_files import FILE_NAME, Architecture, load_model, save_model
from tests.registration.plans import architecture


@pytest.mark.parametrize("structures", [0, 2])
@pytest.mark.parametrize("network", ["unet", "mscgunet"])
def test_a_network_comes_back_with_its_limits_its_guide_and_its_answers(tmp_path, network, structures) -> None:
    torch.manual_seed(0)
    options = {"velocity_level": 1, "max_gradient": 1.0, "structures": structures, "passes": 2, "structure_steps": 3}
    stored = Architecture(network, *architecture(), options=options, spacing=(1, 1, 2))
    written = stored.build()
    if written.guide is not None:
        written.guide.say(True)
    torch.nn.init.normal_(written.head.weight, std=0.1)
    save_model(tmp_path / "model", stored, written)
    read, described = load_model(tmp_path / "model")
    assert described.spacing == (1, 1, 2) and read.limits["max_gradient"] == 1.0 and not read.training
    assert read.passes == 2 and read.structure_steps == 3
    images = torch.rand(2, 1, 1, 16, 16, 16)
    first, second = [model.eval().predict(*images) for model in (written, read)]
    assert first.abs().max() > 1e-3
    assert torch.equal(first, second)


def test_files_of_the_first_version_have_no_guide_and_are_read(tmp_path) -> None:
    stored = Architecture("unet", *architecture())
    written = stored.build()
    torch.save({"version": 1, **vars(stored), "state_dict": written.state_dict()}, tmp_path / FILE_NAME)
    read, _ = load_model(tmp_path)
    assert read.guide is None and (read.passes, read.structure_steps) == (1, 0)
    assert torch.equal(read.head.weight, written.head.weight)


def test_files_that_know_no_structure_steps_are_read(tmp_path) -> None:
    stored = Architecture("unet", *architecture(), options={"structures": 1, "passes": 2})
    torch.save({"version": 4, **vars(stored), "state_dict": stored.build().state_dict()}, tmp_path / FILE_NAME)
    read, _ = load_model(tmp_path)
    assert (read.passes, read.structure_steps) == (2, 0)


@pytest.mark.parametrize("version", [2, 3])
def test_files_without_axis_order_direction_and_windows_are_read(tmp_path, version: int) -> None:
    stored = Architecture("unet", *architecture(), spacing=(1.0, 1.0, 2.0))
    new = ("transpose_forward", "direction", "moving_windows", "fixed_windows")
    entries = {key: value for key, value in vars(stored).items() if key not in new}
    torch.save({"version": version, **entries, "state_dict": stored.build().state_dict()}, tmp_path / FILE_NAME)
    _, described = load_model(tmp_path)
    assert described.spacing == (1.0, 1.0, 2.0)
    assert all(getattr(described, name) is None for name in new)


def test_the_frame_and_the_windows_come_back(tmp_path) -> None:
    frame = {"transpose_forward": (2, 0, 1), "direction": (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}
    windows = {"moving_windows": ((-900.0, 300.0), None), "fixed_windows": None}
    stored = Architecture("unet", *architecture(), image_channels=2, **frame, **windows)
    save_model(tmp_path, stored, stored.build())
    assert load_model(tmp_path)[1] == stored


def test_what_is_no_model_is_said_in_a_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"registration\.pth is missing\.$"):
        load_model(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a registration model of this package"):
        load_model(tmp_path)
    torch.save({"version": 99, "state_dict": {}}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="written by another version"):
        load_model(tmp_path)
