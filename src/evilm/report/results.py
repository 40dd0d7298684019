"""The numbers of ``results.json`` as rows: what a table, a figure and the terminal show alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUPS = {
    "retrieval": "Text-to-video retrieval",
    "question_answering": "Question answering",
    "multiple_choice": "Multiple choice",
    "linear_probe": "Linear probe",
    "tokenizer": "Video tokenizer",
    "pretraining": "Pre-training",
    "export": "Retrieval, exported to int8",
}
NAMES = {
    "MdR": "median rank",
    "voc_rate": "VOC. RATE",
    "word_mAP": "caption words, mAP",
    "mvm_accuracy": "masked regions",
    "mlm_accuracy": "masked words",
    "vtm_accuracy": "video-text matching",
}
_COUNTS = frozenset({"MdR", "v2t_MdR", "perplexity"})  # all else is in percent
_LOWER_IS_BETTER = frozenset({"MdR", "v2t_MdR"})


@dataclass(frozen=True, slots=True)
class Metric:
    """One number and what it must be read beside.

    Attributes:
        group, name: as in ``results.json``, ``question_answering`` and ``kinds.colour``.
        value: in percent, but for ranks and perplexity.
        chance: what an answer at random gets; None where the word has no meaning.
        baselines: what those get that cannot see, cannot read order, or did not learn.
        interval: bootstrap 95 %, or None.
        target: what the run is held to: a number, or words; None for no promise.
        said_met: the run's own word on its target, where the target is no number.
    """

    group: str
    name: str
    value: float
    chance: float | None
    baselines: Mapping[str, float]
    interval: tuple[float, float] | None = None
    target: float | str | None = None
    said_met: bool | None = None

    @property
    def label(self) -> str:
        """The name for a reader."""
        last = self.name.rsplit(".", 1)[-1]
        return NAMES.get(last, last.replace("_", " "))

    @property
    def percent(self) -> bool:
        return self.name not in _COUNTS

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or none that can be told."""
        if self.said_met is not None or not isinstance(self.target, float):
            return self.said_met
        return self.value <= self.target if self.name in _LOWER_IS_BETTER else self.value >= self.target


def read(results: Mapping[str, Any]) -> list[Metric]:
    """Every metric of a ``results.json``, in its order, nested ones with dotted names."""
    return [
        metric
        for group in (*GROUPS, *(key for key in results if key not in GROUPS and key != "seconds"))
        for metric in _within(group, "", results.get(group))
    ]


def _within(group: str, name: str, table: object) -> list[Metric]:
    found = table_of(table)
    value = number(found.get("value"))
    if value is not None:
        return [_metric(group, name or group, value, found)]
    inner = [(f"{name}.{key}" if name else str(key), part) for key, part in found.items()]
    return [metric for key, part in inner for metric in _within(group, key, part)]


def _metric(group: str, name: str, value: float, found: Mapping[str, object]) -> Metric:
    ends = [number(end) for end in list_of(found.get("interval"))]
    target = found.get("target")
    met = found.get("met")
    return Metric(
        group,
        name,
        value,
        number(found.get("chance")),
        {
            str(key): known
            for key, one in table_of(found.get("baselines")).items()
            if (known := number(one)) is not None
        },
        (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None,
        str(target) if isinstance(target, str) else number(target),
        met if isinstance(met, bool) else None,
    )


def table_of(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    """A JSON array; an empty one for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def number(value: object) -> float | None:
    """A finite number; a ``{"value": ...}`` stands for its value; None for anything else."""
    if isinstance(value, dict):
        return number(table_of(cast("object", value)).get("value"))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def shown(value: float | None, metric: Metric) -> str:
    """A number as it is printed: percent and perplexity with one decimal, ranks as they are."""
    if value is None:
        return ""
    return f"{value:.1f}" if metric.percent or metric.name == "perplexity" else f"{value:g}"
