"""Captions and questions: held-out combinations, truth, balance, and text-only baselines at chance."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import chain
from typing import Any

import pytest

from evilm.data.synthetic import ORDERED, SIMPLE, Plan, is_true
from evilm.data.synthetic.scene import (
    COLOURS,
    HELD_COLOUR_SHAPE,
    HELD_SHAPE_ACTION,
    PARTS,
    SEQUENCES,
    SHAPES,
    compose,
    parts,
)
from evilm.data.synthetic.writer import record_of

PLAN = Plan(clips=3000, seed=7, val=300, test=900, novel=0.5)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record_of(PLAN, index, compose(PLAN.seed, index, PLAN.novelty(index))) for index in range(PLAN.clips)]


def _of(records: list[Record], split: str) -> list[Record]:
    return [one for one in records if one["split"] == split]


def test_tables() -> None:
    assert len(SIMPLE) == 13
    assert len(SEQUENCES) == len(PARTS) * (len(PARTS) - 1) == 30
    assert parts("first grows, then moves up") == ("grows", "moves up")
    assert parts("jumps twice") == ("jumps twice",)
    # Every colour and every shape loses exactly one partner, every shape one action.
    assert sorted(colour for colour, _ in HELD_COLOUR_SHAPE) == sorted(COLOURS)
    assert sorted(shape for _, shape in HELD_COLOUR_SHAPE) == sorted(SHAPES)
    assert sorted(HELD_SHAPE_ACTION) == sorted(SHAPES)
    assert len(set(HELD_SHAPE_ACTION.values())) == 8


def _is_held(thing: Record) -> tuple[bool, bool]:
    pair = (thing["colour"], thing["shape"]) in HELD_COLOUR_SHAPE
    return pair, HELD_SHAPE_ACTION[thing["shape"]] in parts(thing["action"])


def test_train_has_no_held_out_combination(records: list[Record]) -> None:
    for one in _of(records, "train"):
        assert one["novelty"] is None
        for thing in one["scene"]["things"]:
            assert _is_held(thing) == (False, False)


def test_half_of_test_has_a_novel_main_actor(records: list[Record]) -> None:
    wanted = {None: (False, False), "colour-shape": (True, False), "shape-action": (False, True)}
    for split, count in (("val", 300), ("test", 900)):
        chosen = _of(records, split)
        assert Counter(one["novelty"] for one in chosen) == {
            None: count // 2, "colour-shape": count // 4, "shape-action": count // 4
        }  # fmt: skip
        for one in chosen:
            main, *others = one["scene"]["things"]
            assert _is_held(main) == wanted[one["novelty"]]
            assert all(_is_held(thing) == (False, False) for thing in others)


def test_everything_is_frequent_in_train(records: list[Record]) -> None:
    train = [one["scene"]["things"][0] for one in _of(records, "train")]
    assert min(Counter(thing["colour"] for thing in train)[colour] for colour in COLOURS) > len(train) / 12
    assert min(Counter(thing["shape"] for thing in train)[shape] for shape in SHAPES) > len(train) / 12
    assert min(Counter(thing["action"] for thing in train)[action] for action in SIMPLE) > len(train) / 40
    assert set(SEQUENCES) <= {thing["action"] for thing in train}


def test_things_of_a_scene_differ_and_do_not_touch() -> None:
    for index in range(200):
        things = compose(1, index).things
        assert len({thing.colour for thing in things}) == len({thing.shape for thing in things}) == len(things)
        for thing in things:
            edge = thing.track.radius
            assert (thing.track.x - edge >= 0).all()
            assert (thing.track.x + edge <= 96).all()
            assert (thing.track.y - edge >= 0).all()
            assert (thing.track.y + edge <= 96).all()


# An independent reading of the sentences: key words, in order, to actions.
_READING = {
    r"\b(?:moves|moving|slides to the|sliding to the|goes|going) left\b": "moves left",
    r"\b(?:moves|moving|slides to the|sliding to the|goes|going) right\b": "moves right",
    r"\b(?:moves up|moving up|rises|rising|goes up|going up)\b": "moves up",
    r"\b(?:moves down|moving down|sinks|sinking|goes down|going down)\b": "moves down",
    r"\b(?:grows|growing|bigger|larger)\b": "grows",
    r"\b(?:shrinks|shrinking|smaller)\b": "shrinks",
    r"\bonce\b|\bone time\b": "jumps once",
    r"\btwice\b|\btwo times\b": "jumps twice",
    r"\bthree times\b": "jumps three times",
    r"\b(?:spins|spinning|turns|turning|rotates|rotating)\b": "spins",
    r"\b(?:blinks|blinking|flashes|flashing)\b": "blinks",
    r"\bloop\b|\bround and round\b": "moves in a loop",
    r"\bstill\b|\bnot move\b|\brests\b|\bresting\b": "stays still",
}
_SHAPE_WORDS = {"disc": "circle", "box": "square", "plus sign": "cross", "hoop": "ring"} | {s: s for s in SHAPES}


def _read(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The (colour, shape)s and the actions that a sentence names, each in order."""
    pattern = rf"\b({'|'.join(COLOURS)}) ({'|'.join(_SHAPE_WORDS)})\b"
    named = [(colour, _SHAPE_WORDS[word]) for colour, word in re.findall(pattern, text)]
    hits = [(match.start(), action) for regex, action in _READING.items() for match in re.finditer(regex, text)]
    return named, [action for _, action in sorted(hits)]


def test_captions_read_independently_are_true(records: list[Record]) -> None:
    for one in records[:600]:
        things = {(thing["colour"], thing["shape"]): thing for thing in one["scene"]["things"]}
        main = one["scene"]["things"][0]
        assert len({said["text"] for said in one["captions"]}) == 5
        for said in one["captions"]:
            text = said["text"]
            named, actions = _read(text)
            assert (main["colour"], main["shape"]) in named, text
            assert set(named) <= set(things), text
            doing = [list(parts(things[name]["action"])) for name in named]
            # Every thing's action in the order of mention, or the main actor's alone.
            assert actions in (list(chain.from_iterable(doing)), list(parts(main["action"]))), text
            for words, size in ((r"\b(?:small|little)\b", "small"), (r"\b(?:large|big)\b", "large")):
                if re.search(words, text):
                    assert size in [things[name]["size"] for name in named], text
            background = re.search(r"(\w+) background", text)
            assert background is None or background[1] == one["scene"]["background"]
            count = re.search(r"\b(one|two|three) shapes?\b", text)
            assert count is None or {"one": 1, "two": 2, "three": 3}[count[1]] == len(things)
            place = re.search(r"\b(?:on the|at the|in the) (left|right|top|bottom|middle)\b", text)
            assert place is None or place[1] in main["places"]
            assert is_true(said["meaning"], one["scene"])


def test_one_sentence_has_one_meaning(records: list[Record]) -> None:
    meanings: dict[str, Any] = {}
    for one in records:
        for said in one["captions"]:
            assert meanings.setdefault(said["text"], said["meaning"]) == said["meaning"], said["text"]


SCENE: Record = {
    "background": "plain",
    "things": [
        {"colour": "red", "shape": "circle", "size": "small", "action": "moves left", "places": []},
        {"colour": "blue", "shape": "star", "size": "large", "action": "stays still", "places": ["left", "top"]},
    ],
}


@pytest.mark.parametrize(
    ("meaning", "true"),
    [
        ({"things": [{"colour": "red", "shape": "circle", "action": "moves left"}]}, True),
        ({"things": [{"colour": "red", "shape": "circle", "action": "moves right"}]}, False),
        # The whole of what a thing does: half of it is not enough, nor is more.
        ({"things": [{"colour": "red", "shape": "circle", "action": "first moves left, then grows"}]}, False),
        ({"things": [{"colour": "red", "size": "small"}]}, True),
        ({"things": [{"colour": "red", "size": "large"}]}, False),
        ({"things": [{"colour": "blue", "place": "top"}]}, True),
        ({"things": [{"colour": "blue", "place": "middle"}]}, False),
        ({"things": [{"colour": "red", "place": "left"}]}, False),
        # Two things said are two things seen, in any order.
        ({"things": [{"shape": "star"}, {"shape": "circle"}]}, True),
        ({"things": [{"shape": "star"}, {"colour": "blue"}]}, False),
        ({"things": [{}, {}, {}]}, False),
        ({"things": [{"colour": "red"}], "count": 2}, True),
        ({"things": [{"colour": "red"}], "count": 1}, False),
        ({"things": [{"colour": "red"}], "background": "plain"}, True),
        ({"things": [{"colour": "red"}], "background": "noisy"}, False),
    ],
)
def test_truth_by_hand(meaning: Record, *, true: bool) -> None:
    assert is_true(meaning, SCENE) is true


def test_answers_are_right(records: list[Record]) -> None:
    """Each kind of question, answered again from the facts."""
    for one in records[:600]:
        things = one["scene"]["things"]
        main = things[0]
        for asked in one["questions"]:
            text, answer, kind = asked["question"], asked["answer"], asked["kind"]
            named, actions = _read(text)
            doers = [thing for thing in things if [*parts(thing["action"])] == actions]
            if kind in ("colour", "shape"):
                found = doers if actions else [
                    thing for thing in things if {thing["colour"], thing["shape"]} & set(re.findall(r"\w+", text)[2:])
                ]  # fmt: skip
                assert [thing[kind] for thing in found] == [answer], text
            elif kind == "action":
                assert named == [(main["colour"], main["shape"])]
                assert (answer, asked["temporal"]) == (main["action"], main["action"] in ORDERED)
            elif kind == "order":
                assert answer == parts(main["action"])[0 if text.endswith("first?") else 1]
                assert asked["temporal"]
            elif kind == "place":
                assert [thing["places"] for thing in things if (thing["colour"], thing["shape"]) == named[0]] == [
                    [answer]
                ]
            elif asked["temporal"]:
                word = {"one": "once", "two": "twice", "three": "three times"}[answer]
                assert main["action"] == f"jumps {word}"
            else:
                assert len(things) == {"one": 1, "two": 2, "three": 3}[answer]


def test_answers_are_balanced(records: list[Record]) -> None:
    """No answer is much more frequent than chance, and the question's words do not tell it."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for one in _of(records, "train"):
        for asked in one["questions"]:
            counted[asked["kind"]][asked["answer"]] += 1
            known[asked["question"]][asked["answer"]] += 1
    sizes = {"colour": 8, "shape": 8, "action": 13, "count": 3, "place": 5, "order": 6}
    for kind, size in sizes.items():
        assert len(counted[kind]) == size
        assert counted[kind].most_common(1)[0][1] / counted[kind].total() < 1.4 / size, kind
    right, rows = 0, [asked for one in _of(records, "test") for asked in one["questions"]]
    for asked in rows:
        seen = known.get(asked["question"]) or counted[asked["kind"]]
        right += seen.most_common(1)[0][0] == asked["answer"]
    assert right / len(rows) < 0.25


def _choices(records: list[Record], split: str) -> list[Record]:
    return [choice for one in _of(records, split) for choice in one["choices"]]


def test_exactly_one_option_is_true(records: list[Record]) -> None:
    for one in records[:800]:
        for choice in [*one["choices"], *one["actions"]]:
            main = one["scene"]["things"][0]
            true: list[bool] = []
            for option in choice["options"]:
                named, actions = _read(option)
                # Options without a question stand alone: each must name its thing.
                assert len(named) == (choice["question"] is None)
                colour, shape = named[0] if named else (main["colour"], main["shape"])
                action = next(known for known in (*SIMPLE, *SEQUENCES) if [*parts(known)] == actions)
                said = {"colour": colour, "shape": shape, "action": action}
                true.append(is_true({"things": [said]}, one["scene"]))
            assert true == [number == choice["answer"] for number in range(5)], choice


def _similarity(one: str, other: str) -> float:
    first, second = set(one.split()), set(other.split())
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("wanted", [max, min])
def test_the_position_of_an_option_is_independent_of_the_answer(records: list[Record], wanted: Any) -> None:
    """The option most (least) like the others is right as often as chance says: 20 %."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for choice in [*_choices(records, "train"), *_choices(records, "test")]:
        options = choice["options"]
        scores = [round(sum(_similarity(one, other) for other in options), 9) for one in options]
        best = [number for number, score in enumerate(scores) if score == wanted(scores)]
        by_kind[choice["kind"]].append((choice["answer"] in best) / len(best))
    everything = list(chain.from_iterable(by_kind.values()))
    assert abs(sum(everything) / len(everything) - 0.2) < 0.02
    for kind, hits in by_kind.items():
        assert abs(sum(hits) / len(hits) - 0.2) < 1.6 / len(hits) ** 0.5, kind


def test_a_text_only_baseline_is_at_chance(records: list[Record]) -> None:
    """Words counted over train, right against wrong, do not find the right option in test; nor does its position."""
    right, all_ = Counter[str](), Counter[str]()
    for choice in _choices(records, "train"):
        for number, option in enumerate(choice["options"]):
            for word in option.split():
                all_[word] += 1
                right[word] += number == choice["answer"]
    hits: list[bool] = []
    rng = random.Random(0)
    for choice in _choices(records, "test"):
        scores = [
            (sum((right[word] + 2) / (all_[word] + 10) for word in option.split()) / len(option.split()), rng.random())
            for option in choice["options"]
        ]
        hits.append(scores.index(max(scores)) == choice["answer"])
    assert sum(hits) / len(hits) < 0.24
    places = Counter(choice["answer"] for choice in _choices(records, "train"))
    assert max(places.values()) / places.total() < 0.23


def test_transition_options_are_all_other_actions(records: list[Record]) -> None:
    found = [choice | {"action": one["action"]} for one in records for choice in one["transitions"]]
    assert len(found) == sum(one["action"] in SEQUENCES for one in records)
    for choice in found:
        first, last = parts(choice["action"])
        assert choice["options"][choice["answer"]] == last
        assert {first, *choice["options"]} == set(PARTS)
