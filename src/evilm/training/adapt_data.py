"""The data of ``evilm adapt``: captions, unreadable clips, the held-out part, and new words.

In the order of use:

    read_clips      a list or a folder to clips with captions
    check_videos    leave out videos that cannot be read
    split           clips to train on, and clips of other videos held out
    count_words     which words of the captions the model's vocabulary lacks
    extend          a checkpoint with word pieces added for them
    cache_frames    decode frames into the cache, and leave out clips that fail
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from evilm.data import readers
from evilm.data.frame_cache import TRANSIENT, FrameCache
from evilm.data.readers.places import find_optional, video_files, video_root
from evilm.data.readers.tables import FORMATS
from evilm.data.sampling import generator
from evilm.data.video import DecoderPool
from evilm.data.vocabulary import Vocabulary
from evilm.errors import CheckpointError, DataError
from evilm.progress import Meter
from evilm.training import checkpoint
from evilm.types import Clip, Example

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from evilm.data.config import DataConfig

    Unreadable = list[dict[str, str]]  # path, status and reason of each clip

# Words in file names of cameras and programs, which do not describe a video.
_CAMERA_WORDS = frozenset(
    "img vid mov dsc dscn dscf mvi pxl gopr gopro gx gh dji clip clips video videos movie film final copy export edit "
    "untitled new mp avi mkv webm whatsapp screen recording capture cam camera part scene shot take test sample".split()
)
MIN_VIDEOS = 8  # two to evaluate on and some to train on
MAX_HELD_OUT = 500  # videos; more would only make the evaluation longer
MIN_CLIPS = 2  # whose captions must have a word before it becomes a word piece
MAX_NEW_WORDS, _LONGEST_WORD = 2000, 40
EMBEDDING = "model.text_encoder.bert.embeddings.word_embeddings.weight"
BAG_EMBEDDING = "model.text_encoder.bag_embeddings.weight"
PIECE_WEIGHTS = "model.text_encoder.piece_weights"


@dataclass(frozen=True, slots=True)
class UserClips:
    """A user's clips.

    Attributes:
        examples: one for each clip, with all its captions.
        root: the folder that the names of their videos are relative to.
        origin: where the captions come from, for the report.
        uncaptioned: videos without a caption, which are left out.
    """

    examples: tuple[Example, ...]
    root: Path
    origin: str
    uncaptioned: tuple[str, ...] = ()


def read_clips(source: Path, videos: Path | None = None) -> UserClips:
    """Read the clips and captions of a list or a folder.

    Args:
        source: a list for the ``captions`` reader; or a folder with such a list (``captions.csv``), with a text file
            beside each video, or with videos whose file names describe them.
        videos: the folder that paths in a list are relative to; None is the folder of the list.

    Raises:
        AnnotationError: a list or a text file that is not valid, with file and line.
        DataError: no videos, or no captions.
    """
    table = source
    if source.is_dir():
        lists = tuple(f"{name}.{suffix}" for name in ("train", "captions") for suffix in FORMATS)
        found = find_optional(source, lists)
        if found is None:
            return _read_folder(source)
        table = found
    rows = readers.read("captions", table, videos)
    return UserClips(_merge_captions(rows), video_root(table, videos), table.name)


def _read_folder(source: Path) -> UserClips:
    """The videos of a folder with text files beside them, or else captioned by their own or their folder's name."""
    root = source / "train" if (source / "train").is_dir() else source
    paths = list(video_files(root))
    if not paths:
        raise DataError(f"{source}: has neither a list of captions (captions.csv) nor a video: name one that has")
    if any(path.with_suffix(suffix).is_file() for path in paths for suffix in (".txt", ".json")):
        return UserClips(_merge_captions(readers.read("sidecars", source)), root, "texts beside the videos")
    examples: list[Example] = []
    uncaptioned: list[str] = []
    for path in paths:
        name = path.relative_to(root)
        caption = caption_from_name(name.stem) or caption_from_name(name.parent.name)
        if caption:
            examples.append(Example(name.as_posix(), name.as_posix(), Clip(path), captions=(caption,)))
        else:
            uncaptioned.append(name.as_posix())
    if not examples:
        raise DataError(
            f"{root}: no captions: there is no captions.csv and no text beside a video, and names such as "
            f"{uncaptioned[0]} do not describe a video: write a list with the columns path and caption"
        )
    return UserClips(tuple(examples), root, "file names", tuple(uncaptioned))


def caption_from_name(name: str) -> str:
    """The words of a file name without numbers and camera words: "a_dog-runs_003" gives "a dog runs".

    Empty if no word of three letters is left.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]
    words = [word for word in words if word not in _CAMERA_WORDS]
    return " ".join(words) if any(len(word) > 2 for word in words) else ""


def _merge_captions(rows: Iterable[Example]) -> tuple[Example, ...]:
    """Merge the rows of each clip into one row with all their captions, in order of first appearance."""
    merged: dict[str, Example] = {}
    for row in rows:
        first = merged.get(row.clip.id)
        captions = row.captions if first is None else (*first.captions, *row.captions)
        merged[row.clip.id] = replace(first or row, captions=tuple(dict.fromkeys(captions)))
    return tuple(merged.values())


def check_videos(examples: Sequence[Example]) -> tuple[list[Example], Unreadable]:
    """The rows whose video can be read, and the videos that cannot.

    A video that fails for a reason that may pass (a timeout, a killed decoder) is checked a second time.

    Raises:
        DataError: no video can be read.
    """
    paths = list(dict.fromkeys(row.clip.path for row in examples if not row.clip.frames))
    workers = os.cpu_count() or 1
    bad: dict[Path, dict[str, str]] = {}
    with (
        Meter("checking", len(paths), "videos") as meter, DecoderPool(workers) as pool,
        ThreadPoolExecutor(workers) as threads,
    ):  # fmt: skip
        try:
            for done, (path, first) in enumerate(zip(paths, threads.map(pool.check, paths), strict=True), 1):
                result = pool.check(path) if not first.readable and first.status in TRANSIENT else first
                if not result.readable:
                    bad[path] = {"path": str(path), "status": result.status, "reason": result.reason}
                meter.update(done)
        except BaseException:  # Ctrl-C: do not check the files that are still waiting
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [row for row in examples if row.clip.path not in bad]
    if examples and not rows:
        first_bad = next(iter(bad.values()))
        raise DataError(f"none of {len(bad)} videos can be read; the first: {first_bad['path']}: {first_bad['reason']}")
    return rows, list(bad.values())


def cache_frames(examples: Sequence[Example], data: DataConfig, size: int) -> tuple[tuple[Example, ...], Unreadable]:
    """Decode the clips into the frame cache; the rows that succeed, and the clips that fail. All rows without a cache.

    Args:
        examples: of one split.
        data: with the cache.
        size: pixels of a frame's side.
    """
    if data.cache is None or data.packed is not None:
        return tuple(examples), []
    clips = [row.clip for row in examples]
    cache = FrameCache(data.cache, clips, size=size, cached_frames=data.cached_frames, resize_mode=data.resize_mode)
    with Meter("decoding", len(cache), "clips") as meter:
        cache.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
        if any(status in TRANSIENT for key, (status, _) in cache.problems.items() if key in cache.clips):
            cache.fill(data.workers, lambda done, _: meter.update(done), data.timeout)
    failed = [
        {"path": str(clip.path), "status": cache.problems[clip.id][0], "reason": cache.problems[clip.id][1]}
        for clip in cache.clips.values()
        if clip.id in cache.problems
    ]
    return tuple(row for row in examples if row.clip.id not in cache.problems), failed


def split(
    examples: Sequence[Example], val_ratio: float = 0.2, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Clips to train on, and clips held out; parts and copies of a video are on the same side.

    Args:
        examples: one for each clip. Their order has no influence.
        val_ratio: fraction of the videos to hold out; at least two and at most ``MAX_HELD_OUT`` videos are.
        seed: of the random choice.

    Raises:
        DataError: fewer than ``MIN_VIDEOS`` videos, or too few left to train on.
    """
    videos = _identify_videos(examples)
    names = sorted(set(videos))
    count = min(MAX_HELD_OUT, max(2, round(val_ratio * len(names))))
    if len(names) < MIN_VIDEOS or len(names) - count < 2:
        raise DataError(
            f"{len(names)} different videos are too few to hold some out and train on the rest: at least {MIN_VIDEOS} "
            "are needed, and some dozens for a useful result"
        )
    chosen = {names[int(i)] for i in generator(seed, "held-out").permutation(len(names))[:count]}
    train = tuple(row for row, name in zip(examples, videos, strict=True) if name not in chosen)
    return train, tuple(row for row, name in zip(examples, videos, strict=True) if name in chosen)


def _identify_videos(examples: Sequence[Example]) -> list[str]:
    """A name for the video of each row, equal for parts of one file and for files with equal content."""

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    places = [(row.clip.path, row.clip.frames) for row in examples]
    sizes = Counter(bytes_ for path in {path for path, frames in places if not frames} if (bytes_ := size(path)))
    names: dict[Path, str] = {}
    for row, (path, frames) in zip(examples, places, strict=True):
        if frames:  # still pictures: a folder is a video, and so is a single picture in a folder of pictures
            names[path / frames[0]] = row.video
        elif path not in names:
            names[path] = row.video
            if sizes[size(path)] > 1:  # another file has this size: compare their content
                with path.open("rb") as file:
                    names[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return [names[path / frames[0] if frames else path] for path, frames in places]


@dataclass(frozen=True, slots=True)
class WordCounts:
    """How well a vocabulary covers some captions.

    Attributes:
        count: words in all, repeated ones counted each time.
        split: how many of these are not a word piece, but several.
        unknown: fraction of pieces that stand for a character that the vocabulary lacks.
        top: the most frequent words that are split, with the number of clips whose captions have them.
        new: words to add to the vocabulary, most frequent first.
    """

    count: int
    split: int
    unknown: float
    top: tuple[tuple[str, int], ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        text = (
            f"{100 * self.split / max(1, self.count):.1f} % of {self.count:,} words are not in the model's vocabulary"
        )
        if self.unknown:
            text += f", {100 * self.unknown:.1f} % of the pieces are unknown characters"
        return text + (f"; most often: {', '.join(word for word, _ in self.top[:12])}" if self.top else "")

    def as_json(self) -> dict[str, Any]:
        return {"words": self.count, "split": self.split, "unknown pieces": self.unknown, "top": dict(self.top),
                "new": list(self.new)}  # fmt: skip


def count_words(vocabulary: Vocabulary, examples: Iterable[Example]) -> WordCounts:
    """Count how the vocabulary splits the captions of training clips.

    A word that is not a word piece is split into smaller pieces, down to letters. A text encoder would have to learn to
    combine these before it can learn what the word looks like, so frequent ones are added to the vocabulary.
    """
    count = split_count = 0
    clips: Counter[str] = Counter()
    texts: list[str] = []
    for example in examples:
        texts += example.captions
        words = [word for caption in example.captions for word in vocabulary.words_of(caption)]
        missing = [word for word in words if word not in vocabulary]
        count += len(words)
        split_count += len(missing)
        clips.update(set(missing))
    order = sorted(clips.items(), key=lambda item: (-item[1], item[0]))
    new = [word for word, number in order if number >= MIN_CLIPS and len(word) <= _LONGEST_WORD]
    return WordCounts(
        count, split_count, vocabulary.unknown_share(texts), tuple(order[:50]), tuple(new[:MAX_NEW_WORDS])
    )


def extend(source: Path, words: Sequence[str], out: Path) -> None:
    """Write the checkpoint ``source`` to ``out`` with a word piece added for each of ``words``.

    The embedding of a new piece is the mean of the pieces that the word was split into; it counts as a rare word in
    pooled features.

    Raises:
        CheckpointError: the word embeddings do not fit the vocabulary.
        OutputError: ``out`` cannot be written.
    """
    tensors = checkpoint.read_tensors(source / "model.safetensors")
    vocabulary = Vocabulary.load(source / "vocabulary.json")
    table = tensors.get(EMBEDDING)
    if table is None or table.shape[0] != vocabulary.size:
        raise CheckpointError(f"{source}: has no {EMBEDDING} for the {vocabulary.size} pieces of its vocabulary")
    for name in (EMBEDDING, BAG_EMBEDDING):
        if name in tensors:
            tensors[name] = torch.cat([tensors[name], mean_embeddings(tensors[name], vocabulary, words)])
    if PIECE_WEIGHTS in tensors:
        weights = tensors[PIECE_WEIGHTS]
        tensors[PIECE_WEIGHTS] = torch.cat([weights, weights.max().expand(len(words))])
    about = checkpoint.read_json(source / "config.json")

    def fill(folder: Path) -> None:
        checkpoint.write_tensors(folder / "model.safetensors", tensors)
        checkpoint.write_json(folder / "config.json", {**about, "extended": {"from": str(source), "words": words}})
        Vocabulary([*vocabulary.pieces, *words]).save(folder / "vocabulary.json")

    checkpoint.write(out, fill)


def mean_embeddings(table: Tensor, vocabulary: Vocabulary, words: Sequence[str]) -> Tensor:
    """(words, D): for each word, the mean of the embeddings of its pieces."""
    return torch.stack([table[vocabulary.pieces_of(word)].mean(0) for word in words])
