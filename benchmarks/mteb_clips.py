"""A model on MTEB tasks that are built on the spot: the mock video tasks of MTEB, and real clips.

    python benchmarks/mteb_clips.py                         # the 33 clips that come with evilm, captioned by file name
    python benchmarks/mteb_clips.py --clips CAPTIONS.csv    # columns path and caption; the first caption of each clip

It needs `pip install 'evilm[mteb]'` and the shared libraries of FFmpeg. Prints one JSON object: the mock tasks that
ran, accuracy of zero-shot classification of the bundled clips into three kinds, retrieval in both directions by MTEB,
and R@1 of the same clips by evilm's own decoder for comparison.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict, Video
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.mocks.mock_run import ALL_MOCK_TASK_TEST_GRID

from evilm import metrics
from evilm.demo import clips as bundled
from evilm.report.mteb_encoder import MtebEncoder

DEMO = bundled.folder()
KINDS = {
    "objects": "a close-up of a small object",
    "people": "a person in a room",
    "robot-kitchen": "a robot arm in a toy kitchen",
}
FACTS: dict[str, Any] = {
    "description": "Clips at hand.", "reference": None, "dataset": {"path": "local", "revision": "local"},
    "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "date": ("2022-01-01", "2026-01-01"), "dialect": [],
    "domains": [], "task_subtypes": [], "license": "not specified", "annotations_creators": "human-annotated",
    "sample_creation": "found", "bibtex_citation": "",
}  # fmt: skip


def videos(paths: list[Path]) -> Dataset:
    """A column ``video`` and one of ids."""
    table = Dataset.from_dict({"id": [f"v{i}" for i in range(len(paths))], "video": [str(path) for path in paths]})
    return table.cast_column("video", Video())


def task(base: type, kind: str, name: str, category: str, modalities: list[str], score: str, load: Any) -> Any:
    """An MTEB task of this kind, whose ``load_data`` is ``load``."""
    about = TaskMetadata(
        type=kind, name=name, main_score=score, category=category, modalities=modalities, **FACTS
    )  # fmt: skip
    return type(name, (base,), {"metadata": about, "load_data": load})()


def retrieval(clips: list[tuple[Path, str]], to_video: bool) -> Any:
    """Search of the one clip for each caption, or of the one caption for each clip."""

    def load(self: Any, **_: Any) -> None:
        texts = Dataset.from_dict({"id": [f"t{i}" for i in range(len(clips))], "text": [text for _, text in clips]})
        films = videos([path for path, _ in clips])
        queries, corpus, (a, b) = (texts, films, "tv") if to_video else (films, texts, "vt")
        right = {f"{a}{i}": {f"{b}{i}": 1} for i in range(len(clips))}
        split = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None)
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    name = "ClipsT2V" if to_video else "ClipsV2T"
    way = "t2v" if to_video else "v2t"
    return task(AbsTaskRetrieval, "Any2AnyRetrieval", name, way, ["text", "video"], "hit_rate_at_1", load)


def kinds() -> Any:
    """Zero-shot classification of the bundled clips into three kinds."""

    def load(self: Any, **_: Any) -> None:
        paths = sorted(DEMO.rglob("*.mp4"))
        table = videos(paths).add_column("label", [list(KINDS).index(path.parent.name) for path in paths])
        self.dataset, self.data_loaded = DatasetDict({"test": table}), True

    found = task(
        AbsTaskZeroShotClassification, "VideoZeroshotClassification", "ClipKinds", "v2c", ["video", "text"],
        "accuracy", load,
    )  # fmt: skip
    found.input_column_name, found.label_column_name = "video", "label"
    found.get_candidate_labels = lambda: list(KINDS.values())
    return found


def captions(file: Path) -> list[tuple[Path, str]]:
    """The clips of a table with the first caption of each."""
    with file.open(encoding="utf-8", newline="") as lines:
        first: dict[str, str] = {}
        for row in csv.DictReader(lines):
            first.setdefault(row["path"], row["caption"])
    return [(file.parent / path, text) for path, text in first.items()]


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="evilm-photo")
    parser.add_argument("--clips", type=Path, help="CSV file with the columns path and caption")
    arguments = parser.parse_args()
    demo = [(path, path.stem.replace("-", " ")) for path in sorted(DEMO.rglob("*.mp4"))]
    clips = captions(arguments.clips) if arguments.clips else demo
    model = MtebEncoder(arguments.model)
    mocks = [each for each in ALL_MOCK_TASK_TEST_GRID if {*each.metadata.modalities} in ({"video"}, {"video", "text"})]
    began = time.perf_counter()
    done = mteb.evaluate(
        model, [*mocks, kinds(), retrieval(clips, to_video=True), retrieval(clips, to_video=False)],
        cache=None, show_progress_bar=False, encode_kwargs={"batch_size": 16},
    )  # fmt: skip
    found = {result.task_name: result.scores["test"][0] for result in done.task_results}
    files = [path for path, _ in clips]
    cosines = model.embedder.embed_texts([text for _, text in clips]) @ model.embedder.embed_videos(files).vectors.T
    own = metrics.retrieval(cosines, np.eye(len(clips), dtype=bool))
    keep = ("accuracy", "hit_rate_at_1", "hit_rate_at_5", "hit_rate_at_10", "ndcg_at_10")
    print(json.dumps({  # noqa: T201
        "model": f"{model.mteb_model_meta.name} {model.mteb_model_meta.revision}",
        "parameters": model.mteb_model_meta.n_parameters,
        "mock video tasks": [name for name in found if name.startswith("Mock")],
        **{name: {key: round(100 * scores[key], 1) for key in keep if key in scores}
           for name, scores in found.items() if not name.startswith("Mock")},
        "clips": len(clips), "chance of hit_rate_at_1": round(100 / len(clips), 2),
        "R@1 by evilm's own decoder, text to video": round(own["R@1"], 1),
        "seconds": round(time.perf_counter() - began, 1),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
