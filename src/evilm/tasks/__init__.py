"""The tasks of the paper, one file each; a new one is one file and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evilm.tasks.distill import Distill, DistillConfig
from evilm.tasks.linear_probe import LinearProbe, LinearProbeConfig
from evilm.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from evilm.tasks.paraphrase import Paraphrase, ParaphraseConfig
from evilm.tasks.pretrain import Pretrain, PretrainConfig
from evilm.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from evilm.tasks.reconstruction import ReconstructionConfig, ReconstructionTask
from evilm.tasks.retrieval import Retrieval, RetrievalConfig
from evilm.tasks.task import Metrics, Prediction, Task, TaskConfig, VideoTextTask
from evilm.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig

AnyTaskConfig = Annotated[
    TokenizerTaskConfig
    | ReconstructionConfig
    | PretrainConfig
    | ParaphraseConfig
    | RetrievalConfig
    | QuestionAnsweringConfig
    | MultipleChoiceConfig
    | LinearProbeConfig
    | DistillConfig,
    Field(discriminator="name"),
]

# Tasks that train a video tokenizer and are built as Task(config, facts): they have no E-ViLM.
TOKENIZERS: dict[str, type[TokenizerTask] | type[ReconstructionTask]] = {
    "tokenizer": TokenizerTask,
    "reconstruction": ReconstructionTask,
}
# Tasks that are built as Task(model, vocabulary, config, facts).
FINETUNE: dict[
    str, type[Retrieval] | type[QuestionAnswering] | type[MultipleChoice] | type[LinearProbe] | type[Paraphrase]
] = {
    "retrieval": Retrieval,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "linear_probe": LinearProbe,
    "paraphrase": Paraphrase,
}
# What comes before any task, and is carried out by `evilm pretrain`.
PRETRAINING = ("pretrain", "paraphrase")
# Pre-training takes a tokenizer beside these, and distillation a teacher.
TASKS: dict[str, type[Task]] = {**TOKENIZERS, "pretrain": Pretrain, "distill": Distill, **FINETUNE}

__all__ = [
    "FINETUNE",
    "PRETRAINING",
    "TASKS",
    "TOKENIZERS",
    "AnyTaskConfig",
    "Distill",
    "DistillConfig",
    "Metrics",
    "Paraphrase",
    "ParaphraseConfig",
    "Prediction",
    "Task",
    "TaskConfig",
    "VideoTextTask",
]
