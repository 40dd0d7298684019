"""The tasks, one file each. A new task is one file and one line of ``TASKS``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from evilm.tasks.distill import Distill
from evilm.tasks.linear_probe import LinearProbe
from evilm.tasks.multiple_choice import MultipleChoice
from evilm.tasks.paraphrase import Paraphrase
from evilm.tasks.predictions import Metrics, Prediction
from evilm.tasks.pretrain import Pretrain
from evilm.tasks.question_answering import QuestionAnswering
from evilm.tasks.reconstruction import ReconstructionTask
from evilm.tasks.retrieval import Retrieval
from evilm.tasks.settings import TaskConfig
from evilm.tasks.task import Parts, Task, VideoTextTask
from evilm.tasks.tokenizer import TokenizerTask

TASKS: dict[str, type[Task]] = {
    "tokenizer": TokenizerTask,
    "reconstruction": ReconstructionTask,
    "pretrain": Pretrain,
    "paraphrase": Paraphrase,
    "retrieval": Retrieval,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "linear_probe": LinearProbe,
    "distill": Distill,
}

if TYPE_CHECKING:
    AnyTaskConfig = TaskConfig
else:  # the settings of one of the tasks, chosen by ``name``
    AnyTaskConfig = Annotated[
        Union[tuple(task.config_class for task in TASKS.values())],  # noqa: UP007, the members are computed
        Field(discriminator="name"),
    ]

__all__ = ["TASKS", "AnyTaskConfig", "Metrics", "Parts", "Prediction", "Task", "TaskConfig", "VideoTextTask"]
