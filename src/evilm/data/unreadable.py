"""How much of a data set may be unreadable before training on the rest is no use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilm.errors import TooManyBadSamplesError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_bad(problems: Sequence[str], clips: int, share: float) -> None:
    """Stop where too much cannot be read.

    Args:
        problems: one line for each unreadable video.
        clips: how many videos there are.
        share: of them that may be unreadable.

    Raises:
        TooManyBadSamplesError: more are.
    """
    if len(problems) > share * clips:
        raise TooManyBadSamplesError(
            f"{len(problems)} of {clips} videos cannot be read, more than data.max_bad_ratio = {share:g} allows: mend "
            f"or leave them out, or raise it; the first: {problems[0]}"
        )
