"""Request and response models of the interface; OpenAPI is made from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """The base of request bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Filters(Body):
    """Conditions on files."""

    folder: str | None = Field(default=None, max_length=2000, description="relative to the indexed folder")
    after: str | None = Field(default=None, max_length=10, description="ISO day; changed on this day or later")
    before: str | None = Field(default=None, max_length=10, description="ISO day; changed before this day")
    min_seconds: float | None = Field(default=None, ge=0, le=1e7, description="shortest video")
    max_seconds: float | None = Field(default=None, ge=0, le=1e7, description="longest video")
    name: str | None = Field(default=None, max_length=200, description="part of the file name")


class SearchBody(Body):
    """A search; without text, segment and upload all segments are listed."""

    text: str | None = Field(default=None, max_length=1000, description="`-word` subtracts")
    segment: str | None = Field(default=None, max_length=20, pattern=r"^\d{1,18}$")
    upload: str | None = Field(default=None, max_length=40)
    filters: Filters = Filters()
    sort: Literal["score", "date", "name"] = "score"
    limit: int = Field(default=48, ge=1, le=200)
    cursor: str | None = Field(default=None, max_length=20, pattern=r"^\d{1,9}$")


class AskBody(Body):
    """A question about a part of a video."""

    question: str = Field(min_length=1, max_length=500)
    start: float | None = Field(default=None, ge=0, le=1e7)
    end: float | None = Field(default=None, ge=0, le=1e7)
    choices: list[str] = Field(default=[], max_length=50)


class SegmentPart(Body):
    """A segment for an export, with other bounds if wanted."""

    segment: str = Field(pattern=r"^\d{1,18}$")
    start: float | None = Field(default=None, ge=0, le=1e7)
    end: float | None = Field(default=None, ge=0, le=1e7)


class ExportBody(Body):
    """Segments to export."""

    segments: list[SegmentPart] = Field(min_length=1, max_length=500)
    format: Literal["clips", "csv", "json", "edl", "fcpxml"]
    exact: bool = False


class ScanBody(Body):
    """A folder to scan; without one, the folder of the index again."""

    folder: str | None = Field(default=None, max_length=40)
    samples: bool = False
    pictures: bool | None = Field(default=None, description="index still pictures too; null: as the last time")


class SavedSearch(Body):
    """A saved search: its name and the query string of the page."""

    name: str = Field(max_length=200)
    query: str = Field(max_length=2000)


class SavedBody(Body):
    """All saved searches."""

    saved: list[SavedSearch] = Field(max_length=200)


class SegmentOut(BaseModel):
    """A segment of a video."""

    segment: str
    video: str
    start: float
    end: float
    seconds: float
    score: float = 0.0
    good: bool = False
    name: str
    folder: str
    date: str
    duration: float
    picture: bool = False
    words: list[str] = Field(default=[], description="words of the query that the segment matches")
    why: list[str] = Field(default=[], description="words that tell what the model sees in the segment")


class SearchOut(BaseModel):
    """The result of a search."""

    hits: list[SegmentOut]
    next: str | None
    total: int
    good: int
    no_good_match: bool
    seconds: float
    query: dict[str, list[str]]


class SpanOut(BaseModel):
    """A segment's bounds, and its score where there is a query."""

    segment: str
    start: float
    end: float
    score: float | None = None


class VideoOut(BaseModel):
    """A video and its segments."""

    video: str
    name: str
    folder: str
    date: str
    duration: float
    width: int
    height: int
    codec: str
    container: str
    bytes: int
    play: Literal["direct", "remux", "transcode", "picture", "none"]
    segments: list[SpanOut]


class JobOut(BaseModel):
    """Work that makes a file."""

    job: str
    kind: str
    state: Literal["queued", "running", "done", "failed"]
    progress: float
    message: str
    download: bool


class ScanOut(BaseModel):
    """A scan of a folder."""

    id: str
    folder: str
    state: Literal["running", "stopping", "done", "stopped", "failed"]
    done: int
    total: int
    rate: float
    seconds_left: float | None
    added: int
    changed: int
    removed: int
    unreadable: int
    message: str


class ErrorOut(BaseModel):
    """An error."""

    error: dict[str, Any]
