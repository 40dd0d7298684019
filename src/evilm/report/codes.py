"""What the codes of a tokenizer mean in words, and what pre-training predicted for hidden regions."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from evilm.errors import CheckpointError
from evilm.tasks.caption_words import words_of
from evilm.training import build
from evilm.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from evilm.tasks import Prediction, Task
    from evilm.types import Example

SHOWN = 6  # clips
WORDS = 3  # words a code
AT_LEAST = 3  # clips that must have both a code and a word


def masked_examples(run: Path) -> list[dict[str, Any]]:
    """Held-out clips with their hidden regions: the tokenizer's label, the model's guess, and what both mean.

    Args:
        run: a pre-training run with MVM, whose tokenizer is still where its recipe says.

    Returns:
        JSON-able rows: video, caption, grid [T, h, w], hidden [N], labels [N], guesses [N], code_words {code: words}.

    Raises:
        CheckpointError: no such run, or no tokenizer to compare with.
    """
    task, about = build.restore(run)
    recipe = Recipe.model_validate(about["recipe"])
    parts = task.model_and_vocabulary
    if parts is None or task.target_tokenizer is None or recipe.data.validation is None:
        raise CheckpointError(f"{run}: is no pre-training run with a video tokenizer and validation rows")
    rows = build.examples_of(recipe.data.validation)
    predictions = _predictions(recipe, task, rows)
    words = code_words(_codes_of(recipe, task, build.examples_of(recipe.data.train)))
    shape = parts[0].config
    grid = list(parts[0].video_encoder.grid(shape.num_frames, shape.image_size, shape.image_size))
    return [_row(prediction, grid, words) for prediction in predictions if prediction.readable]


def code_words(clips: Iterable[tuple[set[int], Sequence[str]]]) -> dict[int, list[str]]:
    """The caption words that a code goes with more than others do, by lift, the strongest first.

    Args:
        clips: the codes that occur in a clip, and its captions.
    """
    together: dict[int, Counter[str]] = defaultdict(Counter)
    alone: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    total = 0
    for found, captions in clips:
        words = {word for caption in captions for word in words_of(caption, "nouns-adjectives")}
        total += 1
        alone.update(words)
        codes.update(found)
        for code in found:
            together[code].update(words)
    meanings: dict[int, list[str]] = {}
    for code, counts in together.items():
        often = {word: n for word, n in counts.items() if n >= AT_LEAST}
        lift = {word: n * total / (codes[code] * alone[word]) for word, n in often.items()}
        meanings[code] = sorted(lift, key=lambda word: (-lift[word], word))[:WORDS]
    return meanings


def _predictions(recipe: Recipe, task: Task, rows: Sequence[Example]) -> list[Prediction]:
    """Of some clips, evenly spread."""
    shown = [rows[i * len(rows) // SHOWN] for i in range(min(SHOWN, len(rows)))]
    loader = replace(build.make_loader(recipe, task, rows, train=False), examples=shown)
    with torch.inference_mode():
        return [prediction for batch in loader for prediction in task.predict(batch)]


def _codes_of(recipe: Recipe, task: Task, rows: Sequence[Example]) -> list[tuple[set[int], Sequence[str]]]:
    """The codes in each training clip's middle frames; what the tokenizer says of 1,000 clips is enough."""
    loader = replace(build.make_loader(recipe, task, rows, train=False, caches=True), examples=rows[:1000])
    found: list[tuple[set[int], Sequence[str]]] = []
    tokenizer = task.target_tokenizer
    assert tokenizer is not None
    for batch in loader:
        labels = (tokenizer.labels(batch.frames) if batch.labels is None else batch.labels).flatten(1)
        found += [({int(label) for label in row}, e.captions) for row, e in zip(labels, batch.examples, strict=True)]
    return found


def _row(prediction: Prediction, grid: list[int], words: dict[int, list[str]]) -> dict[str, Any]:
    values = prediction.values
    named = {int(code) for code in (*values["labels"], *values["guesses"])}
    return {
        "video": prediction.example.video,
        "caption": prediction.example.captions[0],
        "grid": grid,
        "hidden": [bool(x) for x in values["hidden"]],
        "labels": [int(x) for x in values["labels"]],
        "guesses": [int(x) for x in values["guesses"]],
        "code_words": {str(code): words.get(code, []) for code in sorted(named)},
    }
