"""A plan is a function of its seeds, and changes any selection of frames alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evilm.data import transforms
from evilm.data.transforms import IDENTITY, AugmentConfig, Plan, apply, crop_plan, draw, names_side
from evilm.types import Clip, Example

ALL = AugmentConfig(crop_scale=0.4, shift=3, hflip=True)


def example(*captions: str, number: int = 0) -> Example:
    return Example("0", "v", Clip(Path(f"{number}.mp4")), captions)


def frames(count: int = 5, size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_shift_and_flip_equal_hand_made_results() -> None:
    pixels = frames(1, 3)
    moved = apply(pixels, Plan(shift=(1, -1)))
    assert np.array_equal(moved[0], pixels[0][[0, 0, 1]][:, [1, 2, 2]])
    assert np.array_equal(apply(pixels, Plan(flip=True))[0], pixels[0][:, [2, 1, 0]])
    both = apply(pixels, Plan(shift=(1, -1), flip=True))
    assert np.array_equal(both, moved[:, :, ::-1])
    assert apply(pixels, IDENTITY) is pixels


def test_a_crop_is_the_resized_box() -> None:
    ramp = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(32)[:, None] * 8, np.arange(32) * 8
    found = apply(ramp, Plan(box=(8, 4, 16, 16)))
    assert found.shape == ramp.shape
    assert np.abs(found[0, 4:-4, 16, 0].astype(int) - (64 + np.arange(4, 28) * 4)).max() <= 4
    assert np.abs(found[0, 16, 4:-4, 1].astype(int) - (32 + np.arange(4, 28) * 4)).max() <= 4


def test_any_selection_of_frames_is_changed_alike() -> None:
    pixels = frames()
    for seed in range(20):
        plan = draw(ALL, example("a cat"), 20, 0, seed)
        whole = apply(pixels, plan)
        assert np.array_equal(whole[[3, 1, 1]], apply(pixels[[3, 1, 1]], plan))


def test_equal_seeds_give_equal_plans() -> None:
    plans = [draw(ALL, example("a cat"), 64, 0, seed) for seed in range(200)]
    assert plans == [draw(ALL, example("a cat"), 64, 0, seed) for seed in range(200)]
    assert len(set(plans)) > 190
    assert 70 < sum(plan.flip for plan in plans) < 130
    for plan in plans:
        assert plan.box is not None
        top, left, tall, wide = plan.box
        assert 0 <= top <= 64 - tall
        assert 0 <= left <= 64 - wide
        assert 0.36 < tall * wide / 64**2 <= 1
        assert 0.85 < tall / wide < 1.18
    shares = [plan.box[2] * plan.box[3] / 64**2 for plan in plans if plan.box]
    assert min(shares) < 0.5
    assert max(shares) > 0.9


def test_a_wide_crop_ratio_undoes_squashed_photographs() -> None:
    """A photograph of 4:3 or 3:2 that was squashed to a square needs crops of these height / width ratios."""
    config = AugmentConfig(crop_scale=0.35, crop_ratio=(0.5, 2.0))
    boxes = [plan.box for seed in range(300) if (plan := draw(config, example(), 64, 0, seed)).box]
    ratios = sorted(tall / wide for _, _, tall, wide in boxes)
    assert len(boxes) == 300
    assert 0.45 < ratios[0] < 0.6
    assert 1.7 < ratios[-1] < 2.1
    for wrong in ((0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="two positive numbers are needed"):
            AugmentConfig(crop_ratio=wrong)


def test_no_augmentation_gives_the_identity() -> None:
    assert draw(AugmentConfig(), example(), 64, 0, 1) is IDENTITY


def test_the_number_of_crops_of_a_clip_is_limited() -> None:
    config = AugmentConfig(crop_scale=0.4, shift=2, hflip=True, cached_crops=3)
    plans = {draw(config, example("a cat"), 64, 5, seed) for seed in range(200)}
    expected = {crop_plan(config, "0.mp4", 64, 5, number) for number in range(3)}
    assert {(p.box, p.shift, p.crop) for p in plans} == {(p.box, p.shift, p.crop) for p in expected}
    assert len(plans) == 6  # each mirrored as well
    other = {draw(config, example("a cat", number=1), 64, 5, seed) for seed in range(50)}
    assert not {p.box for p in plans} & {p.box for p in other}
    assert not {p.box for p in plans} & {draw(config, example("a cat"), 64, 6, seed).box for seed in range(50)}
    assert (config.crops, ALL.crops, AugmentConfig(hflip=True).crops, AugmentConfig().crops) == (3, None, 1, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a man turns Left", True),
        ("to the right-hand side", True),
        ("the leftmost cup", True),
        ("moves rightwards, then stops", True),
        ("he left", True),  # the verb looks like the side
        ("a bright cleft", False),
        ("copyright", False),
    ],
)
def test_texts_with_left_or_right(text: str, found: bool) -> None:
    assert names_side(example("a cat", text)) is found
    assert names_side(Example("0", "v", Clip(Path("v")), question=text)) is found
    assert names_side(Example("0", "v", Clip(Path("v")), choices=("up", text))) is found


def test_clips_with_left_or_right_in_their_texts_are_not_mirrored() -> None:
    sided = example("a cat goes left")
    plain = [draw(ALL, example("a cat goes"), 64, 0, seed) for seed in range(60)]
    found = [draw(ALL, sided, 64, 0, seed) for seed in range(60)]
    assert not any(plan.flip for plan in found)
    assert [plan.box for plan in found] == [plan.box for plan in plain]
    forced = ALL.model_copy(update={"hflip_sided": True})
    assert [draw(forced, sided, 64, 0, seed) for seed in range(60)] == plain


def test_a_crop_of_the_whole_frame_changes_nothing() -> None:
    assert transforms.apply(frames(), Plan(box=(0, 0, 20, 20))).shape == (5, 20, 20, 3)
    assert np.abs(transforms.apply(frames(), Plan(box=(0, 0, 20, 20))).astype(int) - frames()).max() <= 1


RAND = AugmentConfig(randaugment_ops=3, randaugment_magnitude=17)


def test_randaugment_does_not_change_the_other_random_draws() -> None:
    plans = [draw(RAND, example(), 64, 0, seed) for seed in range(300)]
    assert plans == [draw(RAND, example(), 64, 9, seed) for seed in range(300)]
    assert {len(plan.changes) for plan in plans} == {3}
    assert {name for plan in plans for name, _ in plan.changes} == set(transforms.RANGES)
    shears = sorted({amount for plan in plans for name, amount in plan.changes if name == "shear_x"})
    assert shears == pytest.approx([-0.17, 0.17])
    both = RAND.model_copy(update={"crop_scale": 0.4, "shift": 3, "hflip": True})
    for seed in range(20):
        plan, plain = draw(both, example(), 64, 0, seed), draw(ALL, example(), 64, 0, seed)
        assert (plan.box, plan.shift, plan.flip) == (plain.box, plain.shift, plain.flip)
    assert RAND.crops is None  # nothing that was computed once can follow it


def test_randaugment_changes_all_frames_alike() -> None:
    pixels = frames(4, 24)
    plan = draw(RAND, example(), 24, 0, 1)
    whole = transforms.apply_randaugment(pixels, plan.changes)
    assert np.array_equal(whole[[2, 0]], transforms.apply_randaugment(pixels[[2, 0]], plan.changes))


OPERATIONS = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "color": "Color", "contrast": "Contrast",
    "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize", "auto_contrast": "AutoContrast",
    "equalize": "Equalize", "identity": "Identity",
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_torchvision(name: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    torch = pytest.importorskip("torch")
    theirs = v2.RandAugment()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[OPERATIONS[name]]
    found = magnitudes(31, 20, 20)
    amount = 0.0 if found is None else float(found[9])
    most, both = transforms.RANGES[name]
    pixels = frames(2, 20)
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = theirs._apply_image_or_video_transform(
        pictures, OPERATIONS[name], amount, interpolation=v2.InterpolationMode.NEAREST, fill={}
    )
    own = most * 9 / transforms.STEPS
    assert both == signed
    ours = transforms.apply_randaugment(pixels, [(name, own)]).astype(int)
    assert np.abs(ours - expected.permute(0, 2, 3, 1).numpy()).max() <= 1  # 0.27 of theirs is a float32
    assert name in ("identity", "auto_contrast") or (ours != pixels).any()  # noise has all contrast already
