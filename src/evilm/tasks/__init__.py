"""The tasks of the paper, one file each; a new one is one file and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evilm.tasks.linear_probe import LinearProbe, LinearProbeConfig
from evilm.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from evilm.tasks.retrieval import Retrieval, RetrievalConfig
from evilm.tasks.task import Prediction, Summary, Task, TaskConfig, VideoTextTask
from evilm.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig

AnyTaskConfig = Annotated[
    TokenizerTaskConfig
    | PretrainConfig
    | RetrievalConfig
    | QuestionAnsweringConfig
    | MultipleChoiceConfig
    | LinearProbeConfig,
    Field(discriminator="name"),
]

# Tasks that are built as Task(model, vocabulary, config, facts); the tokenizer has no E-ViLM, pre-training a tokenizer.
FINETUNE: dict[str, type[Retrieval] | type[QuestionAnswering] | type[MultipleChoice] | type[LinearProbe]] = {
    "retrieval": Retrieval,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "linear_probe": LinearProbe,
}
TASKS: dict[str, type[Task]] = {"tokenizer": TokenizerTask, "pretrain": Pretrain, **FINETUNE}

__all__ = [
    "FINETUNE",
    "TASKS",
    "AnyTaskConfig",
    "Prediction",
    "Summary",
    "Task",
    "TaskConfig",
    "VideoTextTask",
]
