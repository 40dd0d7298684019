"""Dual encoders of other libraries give what these libraries give, and say in one line what they cannot take."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import evilm
from evilm import encoders, hub
from evilm.encoders import names
from evilm.errors import CheckpointError, ConfigError, DependencyError, OutputError, VocabularyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS = ["a red disc moves left", "the dog", "word " * 100]


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """Three clips of four frames of 32 x 32."""
    return np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)


def pooled(frames: torch.Tensor) -> torch.Tensor:
    """(n, T, d) as a library gives them to what pooling makes of them."""
    return torch.nn.functional.normalize(torch.nn.functional.normalize(frames, dim=-1).mean(1), dim=-1)


def test_open_clip_gives_what_open_clip_gives(open_clip_folder: Path, pictures: NDArray[np.uint8]) -> None:
    import open_clip
    from PIL import Image

    theirs, prepare = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")
    own = encoders.load(f"open_clip:{open_clip_folder}", "cpu", "fp32")
    with torch.inference_mode():
        pixels = torch.stack([prepare(Image.fromarray(frame)) for clip in pictures for frame in clip])
        wanted = pooled(theirs.eval().encode_image(pixels).view(3, 4, -1))
        wanted_texts = theirs.encode_text(tokenizer(TEXTS), normalize=True)
    np.testing.assert_allclose(own.embed_frames(pictures), wanted, atol=1e-5)
    np.testing.assert_allclose(own.embed_texts(TEXTS), wanted_texts, atol=1e-5)
    assert own.temperature == pytest.approx(1 / theirs.logit_scale.detach().exp().item())
    assert own.resize_mode == "squash-bilinear"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_gives_what_transformers_gives(
    transformers_folder: dict[str, Path], pictures: NDArray[np.uint8], kind: str
) -> None:
    from transformers import AutoModel, AutoProcessor, AutoTokenizer

    folder = transformers_folder[kind]
    theirs, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    own = encoders.load(f"transformers:{folder}", "cpu", "fp32")
    if kind == "clip":  # scaled to 40, of which the middle 32 are looked at
        pictures = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4), (0, 0)))
    prepare = AutoProcessor.from_pretrained(folder)
    padding: dict[str, Any] = {"padding": "max_length"} if kind == "siglip" else {"padding": True}
    with torch.inference_mode():
        pixels = prepare(images=[frame for clip in pictures for frame in clip], return_tensors="pt")["pixel_values"]
        wanted = pooled(theirs.get_image_features(pixel_values=pixels).pooler_output.view(3, 4, -1))
        words = tokenizer(TEXTS, truncation=True, max_length=16, return_tensors="pt", **padding)
        if kind == "siglip":
            words.pop("attention_mask")
        wanted_texts = torch.nn.functional.normalize(theirs.get_text_features(**words).pooler_output, dim=-1)
    np.testing.assert_allclose(own.embed_frames(pictures), wanted, atol=1e-5)
    np.testing.assert_allclose(own.embed_texts(TEXTS), wanted_texts, atol=1e-5)
    assert own.resize_mode == {"clip": "crop-bicubic", "siglip": "squash-bicubic"}[kind]
    assert (own.image_size, own.max_text_len) == ({"clip": 40, "siglip": 32}[kind], 16)


@pytest.mark.parametrize(("kind", "fit"), [("BICUBIC", "bicubic"), ("BILINEAR", "bilinear")])
@pytest.mark.parametrize("side", [48, 300])
def test_frames_are_scaled_as_the_libraries_scale_pictures(kind: str, fit: str, side: int) -> None:
    import av
    from av.video.reformatter import VideoReformatter
    from PIL import Image

    from evilm.data.video.pictures import to_rgb

    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    whole = grain.resize((256, 192), Image.Resampling.BICUBIC)
    frame = av.VideoFrame.from_ndarray(np.asarray(whole), format="rgb24")
    wide = round(side * 256 / 192)
    left = (wide - side) // 2
    scaled = np.asarray(whole.resize((wide, side), Image.Resampling[kind]), dtype=np.int64)
    squashed = np.asarray(whole.resize((side, side), Image.Resampling[kind]), dtype=np.int64)
    for form, wanted in (("crop", scaled[:, left : left + side]), ("squash", squashed)):
        own = to_rgb(frame, side, f"{form}-{fit}", VideoReformatter())  # pyright: ignore[reportArgumentType]
        usual = to_rgb(frame, side, form, VideoReformatter())  # pyright: ignore[reportArgumentType]
        off = np.abs(own.astype(np.int64) - wanted).mean()
        assert off < 0.4  # of 255
        assert side == 300 or off < 0.5 * np.abs(usual.astype(np.int64) - wanted).mean()


def test_half_precision_is_near(open_clip_folder: Path, pictures: NDArray[np.uint8]) -> None:
    full, half = (encoders.load(f"open_clip:{open_clip_folder}", "cpu", kind) for kind in ("fp32", "bf16"))
    cosines = (full.embed_frames(pictures) * half.embed_frames(pictures)).sum(1)
    assert 0.999 < cosines.min() < 1 - 1e-9


def test_an_embedder_does_what_such_a_model_can(open_clip_folder: Path, small_world: Path) -> None:
    own = evilm.load(f"open_clip:{open_clip_folder}@2", device="cpu")
    videos = sorted((small_world / "videos").glob("*.mp4"))[:2]
    found = own.embed_videos([*videos, small_world / "world.jsonl"])
    assert found.statuses[:2] == ("ok", "ok")
    assert found.statuses[2] != "ok"
    texts = own.embed_texts(["a red disc", "a dog"])
    assert (own.num_frames, own.embed_dim, found.vectors.shape) == (2, 8, (3, 8))
    np.testing.assert_allclose(np.linalg.norm(found.vectors[:2], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(own.match(videos, ["a red disc", "a dog"]), found.vectors[:2] @ texts.T, atol=2e-3)
    [named, _] = own.classify(videos, ["a red disc", "a dog"])
    assert sum(share for _, share in named) == pytest.approx(1)
    chosen = own.choose(videos[0], ["a red disc", "a dog"])
    assert chosen.answer == named[0][0]
    assert chosen.attention is not None
    assert chosen.attention.ravel().tolist() == [0.5, 0.5]
    with pytest.raises(ConfigError, match="dual encoder model has no answers of its own"):
        own.answer(videos[0], "what color is the disc?")
    with pytest.raises(ConfigError, match="has no classes of its own"):
        own.classify(videos)
    with pytest.raises(OutputError, match="is a model of another library"):
        own.push_to_hub("me/mine")
    with pytest.raises(VocabularyError, match="half a surrogate pair"):
        own.embed_texts(["\ud800"])
    with pytest.raises(VocabularyError, match="at least one text"):
        own.embed_texts([])


def test_a_fingerprint_is_of_all_that_decides_a_vector(open_clip_folder: Path, tmp_path: Path) -> None:
    def marks(folder: Path, frames: str = "") -> str:
        return encoders.load(f"open_clip:{folder}{frames}", "cpu").fingerprint

    first = marks(open_clip_folder)
    copy = tmp_path / "copy"
    shutil.copytree(open_clip_folder, copy)
    assert marks(copy) == first
    assert marks(copy, "@8") != first
    config = copy / "open_clip_config.json"
    table = json.loads(config.read_text())
    config.write_text(json.dumps({**table, "preprocess_cfg": {}}))
    assert marks(copy) != first
    config.write_text(json.dumps(table))
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "open_clip_model.safetensors")
    tensors["ln_final.bias"][0] += 1
    save_file(tensors, copy / "open_clip_model.safetensors")
    assert marks(copy) != first


def test_a_configuration_and_a_registered_model_take_weights_from_a_file(
    open_clip_folder: Path, tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    import open_clip
    from safetensors.torch import load_file

    tensors = load_file(open_clip_folder / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "weights.pt")
    table = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    (tmp_path / "evilm-tiny-clip.json").write_text(json.dumps(table["model_cfg"]))
    open_clip.add_model_config(tmp_path / "evilm-tiny-clip.json")
    by_name = encoders.load(f"open_clip:evilm-tiny-clip:{tmp_path / 'weights.pt'}", "cpu", "fp32")
    by_file = encoders.load(f"open_clip:{tmp_path / 'evilm-tiny-clip.json'}:{tmp_path / 'weights.pt'}", "cpu", "fp32")
    np.testing.assert_array_equal(by_name.embed_frames(pictures), by_file.embed_frames(pictures))
    assert by_name.fingerprint == by_file.fingerprint
    assert by_name.resize_mode == "crop-bicubic"  # open_clip's own, where nothing is said


def test_published_architectures_know_how_their_pictures_are_made_ready() -> None:
    library = pytest.importorskip("open_clip")
    from evilm.encoders import open_clip

    for model, fit in (("ViT-B-16-SigLIP", "squash-bicubic"), ("PE-Core-B-16", "squash-bilinear"),
                       ("MobileCLIP-S1", "crop-bilinear"), ("ViT-B-32", "crop-bicubic")):  # fmt: skip
        name = names.EncoderName("open_clip", model, __file__)
        _, prepares, weights, _ = open_clip._locate(library, name)
        assert weights == Path(__file__)
        assert open_clip._preprocessing(prepares, 224, name).resize_mode == fit


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/evilm-was-run"),))  # noqa: S108


def damaged(folder: Path, what: str) -> None:
    """Make a copy of a model one that must be refused."""
    weights = next(folder.glob("*.safetensors"))
    config = next(file for file in (folder / "open_clip_config.json", folder / "config.json") if file.is_file())
    table = json.loads(config.read_text())
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif what == "pickle":
        weights.unlink()
        torch.save({"a": Evil()}, folder / "open_clip_pytorch_model.bin")
    elif what == "none":
        weights.unlink()
    elif what == "code":
        config.write_text(json.dumps({**table, "auto_map": {"AutoModel": "evil.Model"}}))
    elif what == "kind":
        config.write_text(json.dumps({**table, "model_type": "blip-2"}))
    elif what == "size":
        table["model_cfg"]["embed_dim"] = 4
        config.write_text(json.dumps(table))
    elif what == "json":
        config.write_text("{")
    elif what == "lacks":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors.pop("visual_projection.weight")
        save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("library", "what", "said"),
    [
        ("open_clip", "cut", "is damaged"), ("open_clip", "pickle", "more than tensors"),
        ("open_clip", "none", "has no weights"), ("open_clip", "size", "does not fit its configuration"),
        ("open_clip", "json", "is not a configuration of open_clip"),
        ("transformers", "cut", "cannot be loaded"), ("transformers", "none", "no model.safetensors"),
        ("transformers", "code", "which is never done"), ("transformers", "kind", "is a blip-2 model"),
        ("transformers", "json", "is damaged"), ("transformers", "lacks", "lacks 1 of its weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_said_in_a_line(
    request: pytest.FixtureRequest, tmp_path: Path, library: str, what: str, said: str
) -> None:
    origin = request.getfixturevalue(f"{library}_folder")
    folder = tmp_path / "model"
    shutil.copytree(origin if library == "open_clip" else origin["clip"], folder)
    damaged(folder, what)
    with pytest.raises(CheckpointError) as caught:
        evilm.load(f"{library}:{folder}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not Path("/tmp/evilm-was-run").exists()  # noqa: S108


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-32:laion2b_s34b_b79k", "no network, and no copy"),
        ("open_clip:ViT-B-32", "names no weights: use open_clip:ViT-B-32:WEIGHTS with a file or one of openai"),
        ("open_clip:ViT-B-32:nothing", "'nothing' is no file and no weights of it"),
        ("open_clip:owner/name", "no network, and no copy"),
        ("open_clip:nothing", "open_clip has no model 'nothing'"),
        ("transformers:openai/clip-vit-base-patch32", "no network, and no copy"),
        ("transformers:./nowhere", "no such folder"),
        ("timm:vit_base_patch32_clip_224.openai", "timm's encoders take images only"),
        ("transformers:owner/name@0", "the number must be from 1 to 64"),
    ],
)
def test_no_such_model_or_no_network_is_said_at_once(name: str, said: str) -> None:
    pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        evilm.load(name)
    assert said in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(DependencyError, match=r"needs open_clip: pip install 'evilm\[clip\]'"):
        evilm.load("open_clip:ViT-B-32:openai")


def test_what_the_hub_has_is_fetched_safe_files_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    class Hub:
        @staticmethod
        def hf_hub_download(name: str, file: str, local_files_only: bool) -> str:
            asked.append(f"{name}/{file}")
            assert not local_files_only
            if file.endswith(".safetensors"):
                raise FileNotFoundError(file)
            return str(tmp_path / file)

    monkeypatch.setattr(hub, "library", lambda _: Hub())
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    assert hub.fetch_first("a/b", ("w.safetensors", "w.bin")) == tmp_path / "w.bin"
    assert asked == ["a/b/w.safetensors", "a/b/w.bin"]
    with pytest.raises(CheckpointError, match=r"a/b: cannot be downloaded from the hub: w\.safetensors"):
        hub.fetch_first("a/b", ("w.safetensors",))


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = names.EncoderName.parse
    assert parse("open_clip:ViT-B-32:openai") == names.EncoderName("open_clip", "ViT-B-32", "openai", 4)
    assert parse("open_clip:hf-hub:owner/name@8") == names.EncoderName("open_clip", "owner/name", None, 8)
    assert parse("transformers:owner/name") == names.EncoderName("transformers", "owner/name", None, 4)
    odd = tmp_path / "with:colon"
    odd.mkdir()
    assert parse(f"open_clip:{odd}") == names.EncoderName("open_clip", str(odd), None)
    (odd / "w.pt").touch()
    assert parse(f"open_clip:{odd}:{odd / 'w.pt'}") == names.EncoderName("open_clip", str(odd), str(odd / "w.pt"))
    assert not names.is_name("owner/name")
    assert not names.is_name("runs/open_clip")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    assert names.absolute_name("open_clip:ViT-B-32:w.pt@8") == f"open_clip:ViT-B-32:{tmp_path / 'w.pt'}@8"
    assert names.absolute_name("transformers:owner/name") == "transformers:owner/name"


def test_a_sentence_encoder_gives_the_mean_of_its_states(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tests.encoders.conftest import words

    tokenizer = words()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    model.eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not say how it pools"):
        encoders.load(f"transformers:{tmp_path}", "cpu", "fp32")
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(CheckpointError, match="another way than by their mean"):
        encoders.load(f"transformers:{tmp_path}", "cpu", "fp32")
    pooling.write_text('{"pooling_mode_mean_tokens": true}')
    encoder = encoders.load(f"transformers:{tmp_path}", "cpu", "fp32")
    texts = ["a red disc moves", "the dog"]
    with torch.no_grad():
        alone = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    wanted = torch.nn.functional.normalize(torch.stack(alone), dim=-1).numpy()
    np.testing.assert_allclose(encoder.embed_texts(texts), wanted, atol=1e-5)
    assert (encoder.sees, encoder.reads) == (False, True)
    with pytest.raises(ConfigError, match="encodes sentences only"):
        encoder.embed_frames(np.zeros((1, 4, 32, 32, 3), np.uint8))
