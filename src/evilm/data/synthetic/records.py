"""What is to be made, and what is said of each clip of it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evilm.data.synthetic.language import captions
from evilm.data.synthetic.layout import SPLITS, Record
from evilm.data.synthetic.questions import action_choice, choices, questions, transition

if TYPE_CHECKING:
    from evilm.data.synthetic.scene import Novelty, Scene

_CAPTIONS, _QUESTIONS = 5, 6


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of a world: the same plan gives the same annotations.

    Attributes:
        clips: how many, all splits together.
        seed: of everything random.
        val, test: clips of those splits; the others are train.
        novel: share of val and of test whose main actor is a combination that train never holds.
        unseen: every clip, of train too, shows a colour or an action that worlds without this never hold.
    """

    clips: int
    seed: int
    val: int
    test: int
    novel: float
    unseen: bool = False

    def split(self, index: int) -> tuple[str, int]:
        """The split of a clip and its number within it: train first, test last."""
        train = self.clips - self.val - self.test
        if index < train:
            return "train", index
        return ("val", index - train) if index < train + self.val else ("test", index - train - self.val)

    def novelty(self, index: int) -> Novelty | None:
        """Which held-out combination, or unseen thing, a clip shows: an exact share, the two kinds in turn."""
        if self.unseen:
            return "colour" if index % 2 else "action"
        split, place = self.split(index)
        before, after = int(place * self.novel), int((place + 1) * self.novel)
        if split == "train" or before == after:
            return None
        return "colour-shape" if after % 2 else "shape-action"


def record(plan: Plan, index: int, scene: Scene) -> Record:
    """All that the annotation files say of one clip, as JSON."""
    rng = random.Random(f"evilm words {plan.seed} {index}")
    asked = questions(scene, _QUESTIONS, rng)
    action = action_choice(scene, rng)
    offered = choices(scene, action, rng)
    after = transition(scene.main, rng)
    numbered = [
        {"id": index * 10 + number, "question": item.text, "answer": item.answer, "kind": item.kind,
         "temporal": item.temporal}
        for number, item in enumerate(asked)
    ]  # fmt: skip
    return {
        "index": index,
        "video": f"video{index}",
        "split": plan.split(index)[0],
        "novelty": scene.novelty,
        "action": scene.main.action,
        "scene": scene.facts(),
        "captions": [asdict(caption) for caption in captions(scene, _CAPTIONS, rng)],
        "questions": numbered,
        "choices": [{"id": index * 10 + number, **asdict(choice)} for number, choice in enumerate(offered)],
        "actions": [{"id": index, **asdict(action)}],
        "transitions": [{"id": index, **asdict(choice)} for choice in ([after] if after is not None else [])],
    }


def counts(records: list[Record]) -> dict[str, Any]:
    """Rows of each kind, for the card."""
    found: dict[str, Any] = {f: sum(len(one[f]) for one in records) for f in ("captions", "questions", "choices")}
    found["splits"] = {split: sum(one["split"] == split for one in records) for split in SPLITS}
    found["novel"] = {
        split: sum(one["split"] == split and one["novelty"] is not None for one in records) for split in SPLITS
    }
    return found
