"""Write a bundled model of the package: export a run in int8, try it, and add its card. For maintainers.

    python benchmarks/ship_model.py world-tiny runs/demo      # a finished demo, or the run of its retrieval model
    python benchmarks/ship_model.py evilm-photo runs/photo

The card states the metrics of the run's own evaluations (folders ``evaluation*``) on test rows, which must be of the
exported weights, and what ``evilm export`` measured; for world-tiny also the results of ``evilm quickstart``. Nothing
is written if the export is larger than the model may be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from evilm.demo import quickstart
from evilm.errors import CheckpointError, EvilmError, ExportError
from evilm.export import card, writer
from evilm.inference import export_format
from evilm.inference.loading import TINY
from evilm.progress import say
from evilm.training import checkpoint, evaluate

MAX_BYTES = {TINY: 4e6, "evilm-photo": 20e6}  # of the whole folder
# Licence of the weights, and what the card says of it; for world-tiny what every export says.
TERMS: dict[str, tuple[str, list[str]]] = {
    TINY: ("apache-2.0", []),
    "evilm-photo": (
        "other",
        [
            "", "## Data and terms", "",
            "For research use, as Flickr8k (6,091 photographs) and MSR-VTT (956 videos of its 9k list) are; DROID gave",
            "560 clips. Questions: MSRVTT-QA (4,734 about 184 videos) and DAQUAR (6,795 about 795 photographs).",
            "The starting weights, EfficientNet-lite2 (ImageNet) and all-MiniLM-L6-v2, are Apache-2.0.",
            "Embeddings skip the fusion decoder, which learned the questions on frozen encoders.",
            "", "## What it does not know", "",
            "Without the video the same decoder answers 19.4 % of MSRVTT-QA, 23.7 % of DAQUAR: paired 95 % intervals",
            "of the video's gain are 1.1 to 4.8 and -2.2 to -0.1 points. Questions about rooms are answered by their",
            "words alone. Asked about 22 real clips that we looked at, 7 first answers were sensible.", "",
            "Of 20 evenly spaced failures on Flickr8k dev (rank above 10), 6 first hits fit the sentence too (dogs on",
            "grass, jumping bikes); 6 miss a small object that decides (hydrant, cup, bottle, lamp); 4 turn on a rare",
            "word (corgi, burka, binoculars); 2 on a number of dogs or boys; in 2 the subject is small or dark.",
            "The order of frames is not read: an embedding is a mean over frames.",
        ],
    ),
}  # fmt: skip
SHIPPED = Path(__file__).resolve().parent.parent / "src" / "evilm" / "inference" / "shipped"


def ship(name: str, source: Path, out: Path) -> None:
    """Make ``out`` the export of a run.

    Raises:
        CheckpointError: no such run, or its evaluation is of other weights.
        ExportError: the export loses too much, or is too large.
    """
    run = source / "retrieval" if (source / "retrieval").is_dir() else source
    weights = checkpoint.find(run)
    folders = sorted(run.glob("evaluation*")) or [run / "evaluation"]
    evaluations = [read_evaluation(folder, weights) for folder in folders]
    with tempfile.TemporaryDirectory(prefix="evilm-ship-") as temporary:
        draft = Path(temporary) / name
        made = writer.export(run, draft, int8=True, say=say)
        metadata = made.metadata.model_copy(update={"source": _public(made.metadata.source, source.resolve())})
        shown = made.model_copy(update={"metadata": metadata})
        lines = describe(name, shown, evaluations)
        if name == TINY:
            seed = shown.metadata.source["recipe"]["seed"]
            lines += _quickstart(quickstart.run(Path(temporary) / "quickstart", str(draft), say=say), seed)

        def fill(to: Path) -> None:
            for path in [*draft.glob("*.onnx"), draft / "vocabulary.json"]:
                (to / path.name).write_bytes(path.read_bytes())
            checkpoint.write_json(to / export_format.NAME, shown.model_dump(mode="json"))
            (to / checkpoint.CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")

        size = sum(path.stat().st_size for path in draft.iterdir())
        if size > MAX_BYTES[name]:
            limit = MAX_BYTES[name] / 1e6
            raise ExportError(f"{run}: its export has {size / 1e6:.1f} MB, more than {limit:g}; nothing is written")
        out.parent.mkdir(parents=True, exist_ok=True)
        export_format.write(out, fill)
    export_format.read(out)
    say(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.2f} MB; commit it")


def read_evaluation(folder: Path, weights: Path) -> dict[str, Any]:
    """The results in a folder of ``evilm evaluate``.

    Raises:
        CheckpointError: there are none, or they are of other weights or of the validation split.
    """
    evaluation = checkpoint.read_json(folder / "metrics.json")
    if evaluation.get("weights") != evaluate.fingerprint(weights) or evaluation.get("split") != "test":
        raise CheckpointError(
            f"{folder}: is not of the test split and the newest checkpoint: evaluate again with "
            f"`evilm evaluate {folder.parent} --split test --out {folder}`"
        )
    return evaluation


def describe(name: str, made: export_format.ExportDescription, evaluations: list[dict[str, Any]]) -> list[str]:
    """The card of a bundled model, in lines."""
    licence, terms = TERMS[name]
    lines = [card.render(made.metadata, made, licence), "## Training and evaluation", ""]
    epochs = made.metadata.source["recipe"]["optim"]["epochs"]
    lines += [f"The last stage took {epochs:g} epochs; the export is `evilm export --int8`."]
    return [*lines, *(line for each in evaluations for line in _evaluation(each)), *terms]


def _public(value: Any, source: Path) -> Any:
    """``value`` with paths of this machine as paths in ``runs/``; others keep their last part only."""
    if isinstance(value, dict):
        return {name: _public(each, source) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_public(each, source) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, str) and value.startswith(("/", "~")):
        path = Path(value).expanduser()
        for root in (source, source.parent):
            if path.is_relative_to(root):
                return (Path("runs") / source.name / path.relative_to(root)).as_posix()
        return path.name
    return value


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    """One of the run's own evaluations as Markdown."""
    data, (low, high) = evaluation["data"], evaluation["interval"]
    interval = f"95 % interval of {evaluation['primary_metric']}: {low:.1f} to {high:.1f}"
    place = f"{Path(data['annotations']).name}, split {data['split']}"
    lines = [
        "", f"The checkpoint on {place} ({evaluation['rule']}); {interval}.", "",
        "| metric | value | chance |", "|---|---|---|",
    ]  # fmt: skip
    for name, value in evaluation["metrics"].items():
        chance = evaluation["chance"].get(name)
        lines.append(f"| {name} | {value:.1f} | {'' if chance is None else format(chance, '.1f')} |")
    return lines


def _quickstart(result: quickstart.Quickstart, seed: int) -> list[str]:
    """The results of ``evilm quickstart`` as Markdown."""
    hits, questions = result.first_hit, result.questions
    return [
        "",
        "Trained by the stages of `evilm demo`:",
        f"recipes `world-tokenizer`, `world-pretrain`, `world-retrieval`, seed {seed}.", "",
        f"This export in `evilm quickstart` ({quickstart.CLIPS} clips of another world, seed {quickstart.SEED}, each",
        f"with a combination that no training clip has): the first hit is right for {hits['percent']:.0f} %",
        f"of {hits['count']:.0f} sentences (chance {hits['chance']:.1f} %). Of {questions['count']:.0f} questions for",
        f"a colour, with eight choices, {questions['percent']:.0f} % are answered correctly",
        f"(chance {questions['chance']:.1f} %).",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MAX_BYTES)
    parser.add_argument("run", type=Path)
    chosen = parser.parse_args()
    try:
        ship(chosen.name, chosen.run, SHIPPED / chosen.name)
    except EvilmError as error:
        sys.exit(str(error))
