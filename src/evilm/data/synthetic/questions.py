"""Questions about a scene: open-ended ones, and multiple choice with five options.

An open question has exactly one right answer. Its words are independent of its answer, up to the held-out combinations,
so a text-only baseline is little better than the most frequent answer of a kind.

Options are drawn so that a text-only baseline is at chance: given the five options, each is equally likely to be right.
Two constructions have this property and are the only ones used:

* a window of five in a fixed circle of actions; each of the five windows that contain the right one is equally likely;
* six combinations of two by three values (or the six orders of two of three actions) without a random wrong one.

If the scene has no held-out combination, no option has one: a text-only baseline would otherwise learn from the
training split that those are never right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import TYPE_CHECKING, Literal

from evilm.data.synthetic.language import COUNTS, article, is_true, verb
from evilm.data.synthetic.scene import (
    CAST,
    COLOURS,
    HELD_COLOUR_SHAPE,
    JUMPS,
    KNOWN_PAIRS,
    ORDERED,
    PARTS,
    REVERSE,
    SEQUENCES,
    SHAPES,
    SIMPLE,
    held,
    parts,
    possible,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from evilm.data.synthetic.scene import Scene, Thing

Kind = Literal["colour", "shape", "action", "count", "place", "order"]
KINDS: tuple[Kind, ...] = ("colour", "shape", "action", "count", "place", "order")
ChoiceKind = Literal["action", "order", "object", "both"]
_OPTIONS = 5
_FRAMES = ("{a} {verb}", "there is {a} that {verb}", "we see {a} that {verb}")


@dataclass(frozen=True, slots=True)
class Question:
    """An open question; ``temporal`` if its answer depends on the order of the frames."""

    text: str
    answer: str
    kind: Kind
    temporal: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Five options, one of which is right.

    Attributes:
        question: for short options (actions); None if the options are sentences.
        options: five different texts.
        answer: index of the right one.
        kind: how the options differ: action, order of two actions, object, or object and action (both).
        temporal: whether a wrong option differs from the right one only by the order of the frames.
    """

    question: str | None
    options: tuple[str, ...]
    answer: int
    kind: ChoiceKind
    temporal: bool


def questions(scene: Scene, count: int, rng: random.Random) -> list[Question]:
    """Up to ``count`` different open questions, of as many kinds as the scene allows."""
    main = scene.main
    found = [*_about_count(scene, rng), *_about_action(main, rng)]
    found.append(_about_looks(scene, rng.choice(("colour", "shape")), rng))  # only one of the two, for equal numbers
    placed = [thing for thing in scene.things if len(thing.places) == 1]
    if placed:
        # The middle is the rarest place, so it is always asked about.
        thing = next((thing for thing in placed if thing.places == ("middle",)), rng.choice(placed))
        still = "still " if thing.action == "stays still" and rng.random() < 0.3 else ""
        found.append(Question(f"where is the {still}{_name(thing)}?", thing.places[0], "place", temporal=False))
    rng.shuffle(found)
    return found[:count]


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _about_count(scene: Scene, rng: random.Random) -> list[Question]:
    """How many shapes there are, or how often the main actor jumps; all answers are equally likely."""
    name, number = _name(scene.main), len(scene.things)
    if scene.main.action in JUMPS:
        text = rng.choice((f"how many times does the {name} jump?", f"how often does the {name} hop?"))
        return [Question(text, COUNTS[JUMPS.index(scene.main.action) + 1], "count", temporal=True)]
    if rng.random() >= min(CAST) / CAST[number - 1]:  # scenes with few shapes are more frequent
        return []
    text = rng.choice(("how many shapes are there?", "how many things can be seen?"))
    return [Question(text, COUNTS[number], "count", temporal=False)]


def _about_action(thing: Thing, rng: random.Random) -> list[Question]:
    """The action of a thing, or its first and last action."""
    if thing.action in SEQUENCES:
        first, last = parts(thing.action)
        phrases = (("do first", first), (rng.choice(("do last", "do at the end")), last))
        return [
            Question(f"what does the {_name(thing)} {words}?", answer, "order", temporal=True)
            for words, answer in phrases
        ]
    text = rng.choice((f"what does the {_name(thing)} do?", f"what is the {_name(thing)} doing?"))
    return [Question(text, thing.action, "action", thing.action in ORDERED)]


def _about_looks(scene: Scene, kind: Literal["colour", "shape"], rng: random.Random) -> Question:
    """The colour or the shape of a thing, identified by the other of the two or by an action that only it has."""
    thing = rng.choice(scene.things)
    unique = sum(other.action == thing.action for other in scene.things) == 1
    if unique and rng.random() < 0.6:
        reverse = any(REVERSE.get(thing.action) == other.action for other in scene.things)
        text = f"what {kind} is the {'shape' if kind == 'colour' else 'thing'} that {verb(thing.action, rng)}?"
        return Question(text, getattr(thing, kind), kind, temporal=reverse)
    if kind == "colour":
        return Question(f"what colour is the {thing.shape}?", thing.colour, kind, temporal=False)
    return Question(f"what shape is {thing.colour}?", thing.shape, kind, temporal=False)


def action_choice(scene: Scene, rng: random.Random) -> Choice:
    """The action of the main actor, as a question with short options."""
    return _order_choice(scene, rng) if scene.main.action in SEQUENCES else _action_choice(scene, rng)


def choices(scene: Scene, action: Choice, rng: random.Random) -> list[Choice]:
    """Two sets of sentences: one differs in the action, one in the actor (sometimes in both).

    Args:
        scene: the scene.
        action: ``action_choice`` of the scene, which becomes whole sentences: another shape may have that action too.
        rng: draws how the options differ.
    """
    main, template = scene.main, rng.choice(_FRAMES)
    sentences = tuple(template.format(a=article(_name(main)), verb=option) for option in action.options)
    by_action = replace(action, question=None, options=sentences)
    still = all(thing.action == "stays still" for thing in scene.things[1:])
    rival = rng.choice(scene.things[1:]) if len(scene.things) > 1 and still else None
    if (
        rival is not None
        and main.action in SIMPLE[:-1]
        and rng.random() < 0.4
        and _allowed(scene, rival.colour, rival.shape, main.action)
    ):
        return [by_action, _mixed_choice(scene, rival, rng)]
    return [by_action, _object_choice(scene, rng)]


def transition(thing: Thing, rng: random.Random) -> Choice | None:
    """The action of a thing after its first action; the options are all other simple actions.

    The question does not name the shape, as some actions of some shapes are held out.
    """
    if thing.action not in SEQUENCES:
        return None
    first, last = parts(thing.action)
    options = [part for part in PARTS if part != first]
    rng.shuffle(options)
    text = f"what does the {thing.colour} shape do after it {verb(first, rng)}?"
    return Choice(text, tuple(options), options.index(last), "order", temporal=True)


def _shuffled(
    options: Sequence[str], truth: str, kind: ChoiceKind, rng: random.Random, question: str | None, *, temporal: bool
) -> Choice:
    mixed = list(options)
    rng.shuffle(mixed)
    return Choice(question, tuple(mixed), mixed.index(truth), kind, temporal)


def _allowed(scene: Scene, colour: str, shape: str, action: str) -> bool:
    """Whether an option may have this combination: it is visible, and held out only if the scene is too."""
    known = (colour, shape) not in HELD_COLOUR_SHAPE and not held(shape, action)
    return possible(shape, action) and (known or scene.novelty is not None)


def _action_choice(scene: Scene, rng: random.Random) -> Choice:
    """Five neighbours in the circle of the actions of this shape."""
    thing = scene.main
    actions = SIMPLE if thing.action in SIMPLE else (*SIMPLE, thing.action)
    circle = [action for action in actions if _allowed(scene, thing.colour, thing.shape, action)]
    start = circle.index(thing.action) - rng.randrange(_OPTIONS)
    window = [circle[(start + step) % len(circle)] for step in range(_OPTIONS)]
    jumps = thing.action in JUMPS and sum(action in JUMPS for action in window) > 1
    temporal = jumps or REVERSE.get(thing.action) in window
    question = f"what does the {_name(thing)} do?"
    return _shuffled(window, thing.action, "action", rng, question, temporal=temporal)


def _order_choice(scene: Scene, rng: random.Random) -> Choice:
    """Five of the six orders of two of three actions."""
    thing = scene.main
    first, last = parts(thing.action)
    fair = [part for part in PARTS if _allowed(scene, thing.colour, thing.shape, part)]
    third = rng.choice([part for part in fair if part not in (first, last)])
    six = [f"first {a}, then {b}" for a, b in permutations((first, last, third), 2)]
    six.remove(rng.choice([option for option in six if option != thing.action]))
    return _shuffled(six, thing.action, "order", rng, f"what does the {_name(thing)} do?", temporal=True)


def _object_choice(scene: Scene, rng: random.Random) -> Choice:
    """Five of two by three colours and shapes, all with the action of the main actor."""
    main = scene.main
    while True:
        wide = rng.random() < 0.5
        colours = [main.colour, *_others(COLOURS, main.colour, 1 + wide, rng)]
        shapes = [main.shape, *_others(SHAPES, main.shape, 2 - wide, rng)]
        if len(scene.things) > 1 and rng.random() < 0.5:
            rival = rng.choice(scene.things[1:])
            colours[-1], shapes[-1] = rival.colour, rival.shape
        names = [(colour, shape, main.action) for colour, shape in product(colours, shapes)]
        choice = _sentences(scene, names, "object", rng)
        if choice is not None:
            return choice


def _mixed_choice(scene: Scene, rival: Thing, rng: random.Random) -> Choice:
    """Five of two shapes by three actions, or three shapes by two actions; one shape is another of the scene."""
    main = scene.main
    while True:
        wide = rng.random() < 0.5
        rivals = [(rival.colour, rival.shape), rng.choice(KNOWN_PAIRS)][: 1 + wide]
        actions = [main.action, *_others(SIMPLE[:-1], main.action, 2 - wide, rng)]
        who = [(main.colour, main.shape), *rivals]
        names = [(colour, shape, action) for (colour, shape), action in product(who, actions)]
        distinct = all(len(set(trait)) == len(who) for trait in zip(*who, strict=True))
        choice = _sentences(scene, names, "both", rng) if distinct else None
        if choice is not None:
            return choice


def _others(values: Sequence[str], but: str, count: int, rng: random.Random) -> list[str]:
    return rng.sample([value for value in values if value != but], count)


def _sentences(scene: Scene, names: list[tuple[str, str, str]], kind: ChoiceKind, rng: random.Random) -> Choice | None:
    """Five sentences of six (colour, shape, action), the first of which is true; None if an option is not allowed."""
    if len(set(names)) != len(names) or not all(_allowed(scene, *name) for name in names):
        return None
    facts = scene.facts()
    meanings = [dict(zip(("colour", "shape", "action"), name, strict=True)) for name in names]
    if [is_true({"things": [meaning]}, facts) for meaning in meanings] != [True] + [False] * 5:
        return None
    truth = names[0]
    chosen = [truth, *rng.sample(names[1:], _OPTIONS - 1)]
    template = rng.choice(_FRAMES)
    texts = [template.format(a=article(f"{colour} {shape}"), verb=action) for colour, shape, action in chosen]
    reverse = any(name[2] == REVERSE.get(truth[2]) or _counts(name[2], truth[2]) for name in chosen)
    return _shuffled(texts, texts[0], kind, rng, None, temporal=kind != "object" and reverse)


def _counts(one: str, other: str) -> bool:
    """Whether the two actions are different numbers of jumps."""
    return one != other and one in JUMPS and other in JUMPS
