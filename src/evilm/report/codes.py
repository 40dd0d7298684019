"""Words for the codes of a video tokenizer, and what a pre-trained model predicts for hidden patches."""

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

CLIPS = 6  # shown
TRAINING_CLIPS = 1000  # from which the words of the codes are counted
WORDS = 3  # per code
MIN_CLIPS = 3  # with both a code and a word


def masked_examples(run: Path) -> list[dict[str, Any]]:
    """Held-out clips with hidden patches: the tokenizer's labels, the model's predictions, and words for the codes.

    Args:
        run: a pre-training run with MVM; its recipe's path to the video tokenizer must still be valid.

    Returns:
        JSON-able rows: video, caption, grid [T, h, w], hidden [N], labels [N], guesses [N], code_words {code: words}.

    Raises:
        CheckpointError: no such run, or a run without a video tokenizer or validation rows.
    """
    task, saved = build.restore(run)
    recipe = Recipe.model_validate(saved["recipe"])
    parts, tokenizer = task.model_and_vocabulary, task.target_tokenizer
    if parts is None or tokenizer is None or recipe.data.validation is None:
        raise CheckpointError(f"{run}: is no pre-training run with a video tokenizer and validation rows")
    rows = build.examples_of(recipe.data.train)
    loader = replace(build.make_loader(recipe, task, rows, train=False, caches=True), examples=rows[:TRAINING_CLIPS])
    clips: list[tuple[set[int], Sequence[str]]] = []
    for batch in loader:
        labels = tokenizer.labels(batch.frames) if batch.labels is None else batch.labels
        codes = ({int(label) for label in row} for row in labels.flatten(1))
        clips += [(own, example.captions) for own, example in zip(codes, batch.examples, strict=True)]
    words = code_words(clips)
    rows = build.examples_of(recipe.data.validation)
    shown = [rows[i * len(rows) // CLIPS] for i in range(min(CLIPS, len(rows)))]
    loader = replace(build.make_loader(recipe, task, rows, train=False), examples=shown)
    with torch.inference_mode():
        predictions = [prediction for batch in loader for prediction in task.predict(batch) if prediction.readable]
    shape = parts[0].config
    grid = list(parts[0].video_encoder.grid(shape.num_frames, shape.image_size, shape.image_size))
    examples: list[dict[str, Any]] = []
    for prediction in predictions:
        labels, guesses = ([int(code) for code in prediction.values[name]] for name in ("labels", "guesses"))
        examples.append({
            "video": prediction.example.video,
            "caption": prediction.example.captions[0],
            "grid": grid,
            "hidden": [bool(x) for x in prediction.values["hidden"]],
            "labels": labels,
            "guesses": guesses,
            "code_words": {str(code): words.get(code, []) for code in sorted({*labels, *guesses})},
        })  # fmt: skip
    return examples


def code_words(clips: Iterable[tuple[set[int], Sequence[str]]]) -> dict[int, list[str]]:
    """The caption words that occur most with each code, by lift: P(word, code) / (P(word) P(code)), highest first.

    Args:
        clips: the codes that occur in each clip, and its captions.
    """
    with_code: dict[int, Counter[str]] = defaultdict(Counter)
    word_clips: Counter[str] = Counter()
    code_clips: Counter[int] = Counter()
    total = 0
    for codes, captions in clips:
        words = {word for caption in captions for word in words_of(caption, "nouns-adjectives")}
        total += 1
        word_clips.update(words)
        code_clips.update(codes)
        for code in codes:
            with_code[code].update(words)
    best: dict[int, list[str]] = {}
    for code, counts in with_code.items():
        lift = {word: count * total / (code_clips[code] * word_clips[word])
                for word, count in counts.items() if count >= MIN_CLIPS}  # fmt: skip
        best[code] = sorted(lift, key=lambda word: (-lift[word], word))[:WORDS]
    return best
