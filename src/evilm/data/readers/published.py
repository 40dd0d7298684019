"""What is known about the published data sets: their splits, their counts, their answer vocabularies.

Counts marked ``file`` were taken from the published file itself; those marked ``paper`` are what its paper says, which
for TGIF-QA's training splits is a few questions more than the files have.
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """One published size of a split.

    Attributes:
        rows: examples that the reader gives.
        videos: how many different videos these have; None where nobody says.
        what: which split of that name, and where the number is from.
    """

    rows: int
    videos: int | None
    what: str


def _same(number: int, what: str) -> Counts:
    return Counts(number, number, what)


SPLITS: dict[str, tuple[str, ...]] = {
    "hmdb51": ("train", "test", "train.2", "test.2", "train.3", "test.3"),
    "ucf101": ("train", "test", "train.2", "test.2", "train.3", "test.3"),
    "msrvtt_retrieval": ("train", "train.7k", "val", "test", "test.full"),
}
# Splits that divide the same data, and so may share no video.
DIVISIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("hmdb51", "ucf101"), (("train", "test"), ("train.2", "test.2"), ("train.3", "test.3"))),
    "msrvtt_retrieval": (("train", "val", "test"), ("train.7k", "test"), ("train.7k", "test.full")),
}
USUAL_SPLITS = ("train", "val", "test")  # of all formats that are not in SPLITS

COUNTS: dict[str, dict[str, tuple[Counts, ...]]] = {
    "msrvtt_retrieval": {
        "train": (_same(9000, "9k list, file"), _same(7010, "7k list, file"), _same(6513, "official, paper")),
        "train.7k": (_same(7010, "7k list, file"),),
        "val": (_same(497, "official, paper"), _same(1000, "1k-A list, paper")),
        "test": (_same(1000, "1k-A, file"), _same(2990, "official, file")),
        "test.full": (_same(2990, "official, file"),),
    },
    "msrvtt_qa": {
        "train": (Counts(158581, 6513, "paper"),),
        "val": (Counts(12278, 497, "paper"),),
        "test": (Counts(72821, 2990, "paper"),),
    },
    "msrvtt_mc": {"test": (_same(2990, "paper"),)},
    "msvd_retrieval": {
        "train": (_same(1200, "file"), _same(1970, "all clips, file")),
        "val": (_same(100, "file"),),
        "test": (_same(670, "file"),),
        "all": (_same(1970, "file"),),
    },
    "msvd_qa": {
        "train": (Counts(30933, 1200, "paper"),),
        "val": (Counts(6415, 250, "paper"),),
        "test": (Counts(13157, 520, "paper"),),
    },
    "tgif_action": {
        "train": (Counts(20471, 20471, "file"), Counts(20475, None, "paper")),
        "test": (Counts(2274, 2274, "file"),),
    },
    "tgif_transition": {"train": (Counts(52704, None, "paper"),), "test": (Counts(6232, 3116, "file"),)},
    "tgif_frame": {"train": (Counts(39392, None, "paper"),), "test": (Counts(13691, 7132, "file"),)},
    "tgif_count": {
        "train": (Counts(26839, None, "file"), Counts(26843, None, "paper")),
        "test": (Counts(3554, None, "file"),),
    },
    "didemo": {"train": (_same(8395, "paper"),), "val": (_same(1065, "file"),), "test": (_same(1004, "paper"),)},
    "hmdb51": {
        **dict.fromkeys(("train", "train.2", "train.3"), (_same(3570, "file"),)),
        **dict.fromkeys(("test", "test.2", "test.3"), (_same(1530, "file"),)),
    },
    "ucf101": {
        "train": (_same(9537, "paper"),), "test": (_same(3783, "paper"),),
        "train.2": (_same(9586, "paper"),), "test.2": (_same(3734, "paper"),),
        "train.3": (_same(9624, "paper"),), "test.3": (_same(3696, "paper"),),
    },
    "kinetics400": {
        "train": (_same(246534, "paper"),), "val": (_same(19906, "file"),), "test": (_same(39805, "paper"),),
    },
    "coco_captions": {
        "train": (_same(118287, "2017"), _same(82783, "2014"), _same(113287, "Karpathy")),
        "val": (_same(5000, "2017, file; Karpathy"), _same(40504, "2014")),
        "test": (_same(5000, "Karpathy"),),
    },
    "flickr8k": {"train": (_same(6000, "list"),), "val": (_same(1000, "list"),), "test": (_same(1000, "list"),)},
}  # fmt: skip

# Open-ended questions: how many answers the published systems keep, and the files that name them.
ANSWERS: dict[str, int] = {"msrvtt_qa": 1500, "msvd_qa": 1000, "tgif_frame": 1540}
ANSWER_FILES = ("train_ans2label.json", "*train_ans2label.json", "*answer_set.txt")


def splits(name: str) -> tuple[str, ...]:
    """The splits to look for in a format's files."""
    return SPLITS.get(name, USUAL_SPLITS)


def divisions(name: str) -> tuple[tuple[str, ...], ...]:
    """The groups of splits that may share no video."""
    return DIVISIONS.get(name, (USUAL_SPLITS,))


def counts(name: str, split: str) -> tuple[Counts, ...]:
    """The published sizes of a split; none where nobody says."""
    return COUNTS.get(name, {}).get(split, ())
