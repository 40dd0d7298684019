"""Write the package's ``world-tiny`` from a finished demo: export in int8, try it, add its card. For maintainers.

    python benchmarks/ship_world_tiny.py runs/demo      # or the run of a retrieval model in the world

Numbers on the card: those of the run's own evaluation on the test split, which must be of the very weights; those of
the export's gate; and those of ``evilm quickstart`` with the export. Nothing is written where the export is larger than
4 MB.
"""

from __future__ import annotations

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

MOST = 4e6  # bytes of the whole folder
HOME = Path(__file__).resolve().parent.parent / "src" / "evilm" / "inference" / "shipped" / TINY


def ship(demo: Path, out: Path = HOME) -> None:
    """Make ``out`` the export of a demo's retrieval model.

    Raises:
        CheckpointError: no such run, or its evaluation is of other weights.
        ExportError: the export loses too much, or is too large.
    """
    run = demo / "retrieval" if (demo / "retrieval").is_dir() else demo
    weights = checkpoint.find(run)
    found = checkpoint.read_json(run / "evaluation" / "metrics.json")
    if found.get("weights") != evaluate.fingerprint(weights) or found.get("split") != "test":
        raise CheckpointError(
            f"{run / 'evaluation'}: is not of the test split and the newest checkpoint: evaluate anew with "
            f"`evilm evaluate {run} --split test --out {run / 'evaluation'}`"
        )
    with tempfile.TemporaryDirectory(prefix="evilm-ship-") as name:
        draft = Path(name) / TINY
        made = writer.export(run, draft, int8=True, say=say)
        tried = quickstart.run(Path(name) / "try", str(draft), say=say)
        about = made.metadata.model_copy(update={"source": _public(made.metadata.source, demo.resolve())})
        shown = made.model_copy(update={"about": about})
        text = "\n".join([card.text(shown), *_numbers(shown, found, tried)]) + "\n"

        def fill(temporary: Path) -> None:
            for path in [*draft.glob("*.onnx"), draft / "vocabulary.json"]:
                (temporary / path.name).write_bytes(path.read_bytes())
            checkpoint.write_json(temporary / export_format.NAME, shown.model_dump(mode="json"))
            (temporary / checkpoint.CARD).write_text(text, encoding="utf-8")

        size = sum(path.stat().st_size for path in draft.iterdir())
        if size > MOST:
            raise ExportError(f"{run}: exported, it has {size / 1e6:.1f} MB, more than {MOST / 1e6:g}; nothing written")
        out.parent.mkdir(parents=True, exist_ok=True)
        export_format.write(out, fill)
    export_format.read(out)
    say(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.2f} MB; commit it")


def _public(value: Any, demo: Path) -> Any:
    """``value`` with the paths of this machine as those of ``runs/demo``; others are cut to their last part."""
    if isinstance(value, dict):
        return {name: _public(each, demo) for name, each in value.items()}
    if isinstance(value, list):
        return [_public(each, demo) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        path = Path(value).expanduser()
        for root in (demo, demo.parent):
            if path.is_relative_to(root):
                return (Path("runs/demo") / path.relative_to(root)).as_posix()
        return path.name
    return value


def _numbers(made: export_format.ExportDescription, found: dict[str, Any], tried: quickstart.Quickstart) -> list[str]:
    """What the run and the try measured, as Markdown."""
    recipe, clips = made.metadata.source["recipe"], quickstart.CLIPS
    stages = "recipes `world-tokenizer`, `world-pretrain`, `world-retrieval`"
    lines = [
        "## How it was made, and how good it is", "",
        f"The stages of `evilm demo`: {stages}, seed {recipe['seed']};",
        f"the last for {recipe['optim']['epochs']:g} epochs. Then `evilm export --int8`.", "",
        f"Before the export, on the test split ({found['rule']}):", "",
        "| metric | value | chance |", "|---|---|---|",
    ]  # fmt: skip
    for name, value in found["metrics"].items():
        chance = found["chance"].get(name)
        lines.append(f"| {name} | {value:.1f} | {'' if chance is None else format(chance, '.1f')} |")
    tried_it = (
        f"As shipped, in `evilm quickstart` ({clips} clips of another world, seed {quickstart.SEED}, each with a "
        f"combination training never showed): the first hit is right in {tried.first_hit['percent']:.0f} % of "
        f"{tried.first_hit['count']:.0f} sentences (chance {tried.first_hit['chance']:.1f} %); of\n"
        f"{tried.questions['count']:.0f} questions for a colour, answered by choosing among eight, "
        f"{tried.questions['percent']:.0f} % are right (chance {tried.questions['chance']:.1f} %)."
    )
    return [*lines, "", tried_it]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        ship(Path(sys.argv[1]))
    except EvilmError as error:
        sys.exit(str(error))
