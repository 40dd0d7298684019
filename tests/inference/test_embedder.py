"""Embeddings, answers and classes of a trained model, and its error messages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import evilm
from evilm import cli, inference
from evilm.data.video import DecoderPool
from evilm.errors import ConfigError, DataError, OutputError, VideoError
from evilm.inference import Embedder
from evilm.inference.runtime import EncodedArrays
from evilm.tasks import VideoTextTask
from evilm.training import build
from evilm.types import Clip

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def retrieval(trained: Callable[[str], Path]) -> Embedder:
    return evilm.load(trained("retrieval"))


@pytest.fixture
def clips(small_world: Path) -> list[Path]:
    return sorted((small_world / "videos").glob("*.mp4"))[:3]


def test_embeddings_equal_those_of_the_task(
    retrieval: Embedder, trained: Callable[[str], Path], clips: list[Path]
) -> None:
    task, _ = build.restore(trained("retrieval"))
    assert isinstance(task, VideoTextTask)
    frames = np.stack([retrieval.read_frames(clip) for clip in clips])
    texts = ["a red disc moves left", "a blue star jumps and a green square grows"]
    with torch.inference_mode():
        pixels = task.model.normalise(torch.from_numpy(frames).permute(0, 1, 4, 2, 3))
        video = task.model.encode_video(pixels)
        words = task.model.encode_text(task.vocabulary.encode(texts, 24))
        wanted_videos = task.embed.video(task.model, video)
        wanted_texts = task.embed.text(task.model, words)
        wanted_match = [task.match(task.model.fuse(video[i : i + 1][[0, 0]], words).cls) for i in range(3)]
    found = retrieval.embed_videos(clips)
    assert found.statuses == ("ok", "ok", "ok")
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (3, retrieval.embed_dim) == (3, 16)
    np.testing.assert_allclose(found.vectors, wanted_videos, atol=2e-5)
    np.testing.assert_allclose(retrieval.embed_frames(frames), found.vectors, atol=1e-6)
    np.testing.assert_allclose(retrieval.embed_texts(texts), wanted_texts, atol=2e-5)
    np.testing.assert_allclose(retrieval.match(clips, texts), torch.stack(wanted_match), atol=2e-4)


def test_a_text_has_one_embedding_beside_longer_texts(retrieval: Embedder) -> None:
    alone = retrieval.embed_texts(["a disc"])
    beside = retrieval.embed_texts(["a disc", "a red star and a blue star and a green star and a disc jumps left"])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_every_video_has_a_row_and_a_status(retrieval: Embedder, clips: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    count = list[int]()
    videos = [clips[0], empty, (clips[0], 0.0, 0.5), str(clips[1]), Clip(tmp_path / "none.mp4")]
    found = retrieval.embed_videos(videos, progress=count.append)
    assert found.statuses == ("ok", "corrupt", "ok", "ok", "not_a_file")
    assert [bool(line) for line in found.problems] == [False, True, False, False, True]
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), [1, 0, 1, 1, 0], atol=1e-5)
    assert np.abs(found.vectors[0] - found.vectors[2]).max() > 1e-6, "half of a video is another clip"
    assert count == [5]
    assert retrieval.embed_videos([]).vectors.shape == (0, 16)


def test_answers_equal_those_of_the_task(trained: Callable[[str], Path], clips: list[Path]) -> None:
    run = trained("question_answering")
    task, _ = build.restore(run)
    model = evilm.load(run)
    asked = "what color is the disc?"
    found = model.answer(clips[0], asked)
    with torch.inference_mode():
        pixels = torch.from_numpy(model.read_frames(clips[0])[None]).permute(0, 1, 4, 2, 3)
        video = task.model.encode_video(task.model.normalise(pixels))
        text = task.model.encode_text(task.vocabulary.encode([asked], 24))
        shares = task.answer_head(task.model.fuse(video, text).cls)[0].softmax(-1)
    assert found.answer == task.answers[int(shares.argmax())]
    assert found.probability == pytest.approx(float(shares.max()), abs=1e-4)
    assert len(found.times) == 2
    assert 0 < found.times[0] < found.times[1]
    assert found.attention is not None
    assert found.attention.shape == (2, 4, 4)
    assert found.attention.sum() == pytest.approx(1, abs=1e-4)
    some = model.answer(clips[0], asked, choices=task.answers[:3])
    assert [name for name, _ in some.candidates] == sorted(task.answers[:3], key=lambda n: -shares[task.index[n]])
    assert sum(p for _, p in some.candidates) == pytest.approx(1, abs=1e-5)


def test_choices_and_classes_are_ranked(trained: Callable[[str], Path], retrieval: Embedder, clips: list[Path]) -> None:
    options = ["a red disc moves left", "a blue star jumps", "a red disc moves left"]
    chosen = evilm.load(trained("multiple_choice")).choose(clips[0], options, "what happens?")
    assert {name for name, _ in chosen.candidates} == set(options)
    assert chosen.probability == max(p for _, p in chosen.candidates)
    (named,) = retrieval.classify(clips[:1], ["a disc", "a star"])
    cosines = retrieval.embed_videos(clips[:1]).vectors @ retrieval.embed_texts(["a disc", "a star"]).T
    assert named[0][0] == ["a disc", "a star"][int(cosines.argmax())]
    probe = evilm.load(trained("linear_probe"))
    (own,) = probe.classify(clips[:1])
    assert {name for name, _ in own} == set(probe.metadata.classes)
    assert sum(p for _, p in own) == pytest.approx(1, abs=1e-5)


def test_a_missing_head_names_the_remedy(
    trained: Callable[[str], Path], retrieval: Embedder, clips: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="this retrieval model has no answers of its own: use a question_answering"):
        retrieval.answer(clips[0], "what?")
    with pytest.raises(ConfigError, match="at least two different options, and there are 1"):
        retrieval.choose(clips[0], ["a", "a"])
    model = evilm.load(trained("question_answering"))
    with pytest.raises(ConfigError, match="has no text embeddings"):
        model.embed_texts(["a disc"])
    with pytest.raises(ConfigError, match="'purple elephants' is not an answer of this model; its answers are"):
        model.answer(clips[0], "what?", choices=["purple elephants"])
    with pytest.raises(DataError, match=r"frames are float64 \(1, 2\), and this model takes uint8 \(n, 2, 64, 64, 3\)"):
        retrieval.embed_frames(np.zeros((1, 2)))
    with pytest.raises(VideoError, match="not_a_file"):
        model.answer(tmp_path / "none.mp4", "what?")


def test_times_are_the_middles_of_equal_segments(clips: list[Path]) -> None:
    with DecoderPool() as decoders:
        whole = inference.sampled_times(Clip(clips[0]), 4, decoders)
        part = inference.sampled_times(Clip(clips[0], 0.5, 1.5), 2, decoders)
    assert np.diff(whole) == pytest.approx(np.full(3, 2 * whole[0]))
    assert part == pytest.approx((0.75, 1.25))


def test_files_are_decoded_in_separate_processes(
    trained: Callable[[str], Path], clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that crashes the decoder raises a VideoError, and no file is opened in this process."""

    def never(*_: object) -> None:
        raise AssertionError("decoded in the process that asks")

    monkeypatch.setattr("evilm.data.video.clips.VideoReader", never)
    monkeypatch.setattr("evilm.data.video.reader.VideoReader.__init__", never)
    deadly = (
        "import os, sys; from evilm.data.video import child; real = child.ANSWERS['clip']; "
        "child.ANSWERS['clip'] = lambda p, *r: os.abort() if 'bomb' in p.name else real(p, *r); child.main()"
    )
    shutil.copy(clips[0], tmp_path / "bomb.mp4")
    with evilm.load(trained("question_answering")) as model:
        model.decoders.program = ("-P", "-c", deadly)
        answer = model.ask(clips[0], "what color is the disc?")
        assert len(answer.times) == model.num_frames
        with pytest.raises(VideoError, match=r"bomb\.mp4: crashed: the decoder has died of SIGABRT"):
            model.ask(tmp_path / "bomb.mp4", "what color is the disc?")
        assert model.ask(clips[0], "what color is the disc?").candidates == answer.candidates
        alive = model.decoders.processes
        assert alive
    assert not any((Path("/proc") / str(number)).exists() for number in alive)


def test_inference_imports_no_torch() -> None:
    program = (
        "import sys, evilm.inference, evilm.inference.runtime; print({'torch', 'onnx', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_answer_below_the_threshold_is_cannot_tell(
    trained: Callable[[str], Path], clips: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("question_answering")
    model = evilm.load(run)
    threshold = model.metadata.answer_threshold
    assert threshold is not None, "the validation that ends training sets it"
    assert 0 <= threshold.probability <= 1
    for probability, known in ((0.0, True), (1.0, False)):
        told = threshold.model_copy(update={"probability": probability})
        model.runtime.metadata = model.metadata.model_copy(update={"answer_threshold": told})
        found = model.ask(clips[0], "what color is the disc?")
        assert found.confident is known
        assert found.as_json()["answer"] == (found.answer if known else None)
    asked = ["ask", str(clips[0]), "what color is the disc?", "--model", str(run)]
    assert cli.run(asked) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split(" (")[0] in {"cannot tell", *model.metadata.answers}
    assert [line.split(" s: ")[0] for line in printed[-2:]] == [f"frame at {time:.2f}" for time in found.times]
    two = list(model.metadata.answers[:2])
    assert cli.run([*asked, "--choices", *two, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best_guess"] in two


def test_wrong_arguments_of_ask_end_in_one_line(
    trained: Callable[[str], Path], clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained("question_answering"))
    capsys.readouterr()
    for arguments, complaint in (
        ([str(clips[0]), "  ", "--model", run], "the question is empty"),
        ([str(tmp_path / "none.mp4"), "what?", "--model", run], "not_a_file"),
        ([str(clips[0]), "what?", "--model", str(tmp_path)], "holds no checkpoint"),
        ([str(clips[0]), "what?", "stray", "--model", run], "put the question in quotes"),
        ([str(clips[0]), "what?", "--model", "owner/no-such-model"], "no network, and no copy in the cache"),
    ):
        assert cli.run(["ask", *arguments]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert complaint in said[0]


def test_a_published_model_loads_again(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder replaces the hub."""
    from evilm import hub

    model = evilm.load(trained("retrieval"))
    store = tmp_path / "hub"

    class Library:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
            shutil.copytree(folder_path, store / repo_id)
            return f"hub/{repo_id}"

        def HfApi(self) -> Library:  # noqa: N802 - the name that huggingface_hub has for it
            return self

        def snapshot_download(self, name: str, allow_patterns: list[str], local_files_only: bool) -> str:
            return str(store / name)

    monkeypatch.setattr(hub, "library", lambda _: Library())
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    with pytest.raises(OutputError, match="not a name: is not a name on the hub: use owner/name"):
        model.push_to_hub("not a name")
    assert model.push_to_hub("someone/clips") == "hub/someone/clips"
    assert not (store / "someone/clips/training").exists()
    card = (store / "someone/clips/README.md").read_text()
    assert "## Limits" in card
    assert "R@10" in card
    for file in (store / "someone/clips").glob("*.*"):
        assert str(tmp_path.parent).encode() not in file.read_bytes(), f"{file.name} tells where its author keeps files"
    again = evilm.Embedder.from_pretrained("someone/clips")
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.embed_texts(["a disc"]), model.embed_texts(["a disc"]))


def test_a_picture_has_one_vector_in_every_form(retrieval: Embedder, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "still.png")
    forms = [tmp_path / "still.png", (tmp_path / "still.png").read_bytes(), pixels, Image.fromarray(pixels)]
    frames = retrieval.read_picture(forms[0])
    assert frames.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(frames[0], frames[1])
    vectors = retrieval.embed_pictures(forms)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[:1], vectors.shape), atol=1e-5)
    assert retrieval.embed_pictures([]).shape == (0, 16)
    with pytest.raises(VideoError, match="not_a_file"):
        retrieval.embed_pictures([tmp_path / "none.png"])
    with pytest.raises(VideoError):
        retrieval.embed_pictures([b"no picture"])


def test_labels_of_vectors_equal_zero_shot_classes(retrieval: Embedder, clips: list[Path]) -> None:
    names = ["a disc", "a star", "a square"]
    probabilities = retrieval.label_vectors(retrieval.embed_videos(clips).vectors, names)
    assert probabilities.shape == (3, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    for row, ranked in zip(probabilities, retrieval.classify(clips, names), strict=True):
        assert dict(ranked) == pytest.approx(dict(zip(names, row.tolist(), strict=True)), abs=1e-5)


def test_threads_may_share_a_model(clips: list[Path]) -> None:
    with evilm.load("world-tiny", threads=1) as model:
        texts = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("disc", "star", "square", "cross")]
        wanted = [evilm.load("world-tiny").embed_texts([text])[0] for text in texts]
        with ThreadPoolExecutor(8) as pool:  # the graphs are opened here, by several threads at once
            vectors = list(pool.map(lambda text: model.embed_texts([text])[0], texts))
            answers = list(pool.map(lambda clip: model.ask(clip, "what is it?", ["a disc", "a star"]), clips * 2))
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    assert [each.candidates for each in answers[:3]] == [each.candidates for each in answers[3:]]


class Colours:
    """A runtime whose pooled features of a frame are its mean colour; counts the frames that it encodes."""

    folder, fingerprint, form = None, "colours", "fake"

    def __init__(self, *, of_frames: bool) -> None:
        heads = ("embed_video", "embed_text")
        self.metadata = SimpleNamespace(embedding="pooled", num_frames=4, image_size=8, heads=heads, task="retrieval")
        self.of_frames, self.encoded = of_frames, 0

    def encode_video(self, frames: np.ndarray) -> EncodedArrays:
        self.encoded += frames.shape[0] * frames.shape[1]
        means = frames.mean((2, 3)).astype(np.float32)
        return EncodedArrays(means, np.ones(means.shape[:2], bool), means if self.of_frames else means.mean(1))

    def apply_head(self, name: str, cls: Any, pooled: np.ndarray) -> np.ndarray:
        assert (name, cls, pooled.ndim) == ("embed_video", None, 2)
        return pooled


@pytest.mark.parametrize("of_frames", [True, False])
def test_equal_frames_in_a_row_are_encoded_once(of_frames: bool) -> None:
    runtime = Colours(of_frames=of_frames)
    clips = np.random.default_rng(0).integers(0, 256, (5, 4, 8, 8, 3), dtype=np.uint8)
    clips[1], clips[2, 1], clips[4] = clips[1, 0], clips[2, 0], clips[1, 0]  # 4 + 1 + 3 + 4 + 1 frames differ
    with Embedder(runtime) as embedder:  # type: ignore[arg-type]
        np.testing.assert_allclose(embedder.embed_frames(clips), clips.mean((1, 2, 3)), rtol=1e-5)
        assert runtime.encoded == (16 if of_frames else 16 + 20)
        runtime.encoded = 0
        np.testing.assert_allclose(embedder.embed_frames(clips[1:2]), clips[1:2].mean((1, 2, 3)), rtol=1e-5)
        assert runtime.encoded == 4
        assert embedder.embed_frames(clips[:0]).shape == (0, 3)
        with pytest.raises(DataError, match="takes uint8"):
            embedder.embed_frames(clips[:, :3])
