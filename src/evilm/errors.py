"""Everything that E-ViLM raises on purpose, as one tree.

    EvilmError                      every error a user can cause and mend; exit code 2 from the CLI
    ├── ConfigError                 a recipe or an override: unknown key, wrong type, unknown preset or task
    │   └── SelectionError          a run that would be selected on a test split
    ├── DataError
    │   ├── AnnotationError         an annotation file: names file, line, value
    │   │   └── SplitError          a split that the annotations do not have
    │   ├── VideoError              a video that cannot be decoded: carries one status of a closed list
    │   └── TooManyBadSamplesError  more unreadable samples than the run allows
    ├── VocabularyError             words: no such vocabulary, unencodable text, damaged file
    ├── GridError                   frame size and encoder do not fit together
    ├── CodebookError               a collapsed codebook asked for labels
    ├── CheckpointError             a checkpoint that is missing, damaged or of another model
    ├── ExportError                 a model that cannot be exported, or an export that lost too much
    ├── OutputError                 an output folder that holds something else
    ├── VideoIndexError             an index of videos: missing, damaged, in use, or of another model
    ├── QueryError                  a query that cannot be searched for
    ├── DeviceError                 a device that this machine does not have
    ├── DependencyError             an optional package that is not installed
    └── TrainingError               a loss that is no longer a number

Each message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

VideoStatus = Literal[
    "ok", "partial", "no_video", "zero_frames", "corrupt", "unsupported", "refused",
    "too_large", "too_long", "encrypted", "timeout", "crashed", "not_a_file",
]  # fmt: skip


class EvilmError(Exception):
    """The root: catching it catches everything a user can mend."""


class ConfigError(EvilmError):
    """A recipe, an override or a named setting that does not exist or does not fit."""


class SelectionError(ConfigError):
    """A run whose validation, which selects checkpoints and thresholds, would read a test split."""


class DataError(EvilmError):
    """Something about the data."""


class AnnotationError(DataError):
    """An annotation file that is not what its format says.

    Args:
        path: the file.
        reason: what is wrong and the remedy.
        line: the 1-based line, when the fault has one.
    """

    def __init__(self, path: Path | str, reason: str, line: int | None = None) -> None:
        self.path, self.line, self.reason = str(path), line, reason
        super().__init__(f"{path}:{line}: {reason}" if line is not None else f"{path}: {reason}")


class SplitError(AnnotationError):
    """A split that the annotations do not have: no file of it, or no rows."""


class VideoError(DataError):
    """A video that gives no frames.

    Args:
        path: the file.
        status: one of the closed list ``VideoStatus``.
        reason: what is wrong and the remedy.
    """

    def __init__(self, path: Path | str, status: VideoStatus, reason: str) -> None:
        self.path, self.reason = str(path), reason
        self.status: VideoStatus = status
        super().__init__(f"{path}: {status}: {reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, VideoStatus, str]]:
        # The default would pickle only the message; loader workers send this across processes.
        return type(self), (self.path, self.status, self.reason)


class TooManyBadSamplesError(DataError):
    """More unreadable samples than the run was told to bear."""


class VocabularyError(EvilmError):
    """Words that cannot be read, built or encoded."""


class GridError(EvilmError):
    """A frame size or frame count that an encoder cannot take, with those it can."""


class CodebookError(EvilmError):
    """A video tokenizer whose codebook has collapsed: its labels would teach nothing."""


class CheckpointError(EvilmError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class ExportError(EvilmError):
    """A model that cannot be exported, or an export that lost too much to be kept."""


class OutputError(EvilmError):
    """An output folder that already holds something else."""


class VideoIndexError(EvilmError):
    """An index of videos that is missing, damaged, in use by another process, or made by another model."""


class QueryError(EvilmError):
    """A query that cannot be searched for: empty, endless, or in words that the model does not know."""


class DeviceError(EvilmError):
    """A device that this machine does not have."""


class DependencyError(EvilmError):
    """An optional package that is needed and not installed."""


class TrainingError(EvilmError):
    """A run that cannot go on: its loss is no longer a number."""
