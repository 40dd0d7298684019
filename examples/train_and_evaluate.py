"""Train a recipe and evaluate what came of it, from Python: what `evilm train` and `evilm evaluate` do.

python examples/train_and_evaluate.py RECIPE [a.b=c ...]
"""

from __future__ import annotations

import sys

from evilm.training import evaluate, recipe, trainer


def main(name: str, *changes: str) -> None:
    """Carry out a recipe, then measure it on the validation split."""
    settings = recipe.load(recipe.find(name), changes)
    run = trainer.train(settings)
    done = evaluate.of_checkpoint(run, "validation")
    for metric, value in done.summary.metrics.items():
        chance = done.summary.chance.get(metric)
        print(f"{metric:<12} {value:6.1f}" + ("" if chance is None else f"   chance {chance:.1f}"))
    print(done.summary.rule)


if __name__ == "__main__":
    main(*sys.argv[1:])
