"""A checked data set in words, for a person at a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def as_table(result: dict[str, Any]) -> Table:
    """One row a split of what ``data_check.check`` found; columns that are empty for all are left out."""
    table = Table(pad_edge=False)
    rows = [_cells(name, split) for name, split in result["splits"].items()]
    for heading in rows[0]:
        if any(row[heading] for row in rows):
            table.add_column(heading, justify="left" if heading in ("split", "published") else "right")
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    return table


def _cells(name: str, split: dict[str, Any]) -> dict[str, str]:
    captions, options = split.get("captions"), split.get("options")
    words = captions["words"] if captions else None
    return {
        "split": name,
        "rows": f"{split['rows']:,}",
        "videos": f"{split['videos']:,}",
        "missing": f"{split['missing']:,}",
        "captions": f"{captions['count']:,}" if captions else "",
        "words each": f"{_span(words['least'], words['most'])}, {words['mean']:g}" if words else "",
        "answers": f"{split['answers']:,}" if "answers" in split else "",
        "classes": f"{split['classes']:,}" if "classes" in split else "",
        "options": _span(options["least"], options["most"]) if options else "",
        "published": _published(split.get("published")),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    said = [f"{result['rows']:,} rows of {result['videos']:,} videos, {result['found']:,} of them found"]
    if result["missing_list"]:
        said.append(f"{result['missing']:,} videos are missing, listed in {result['missing_list']}")
    answers = result["answers"]
    if answers and answers["size"]:
        covered = ", ".join(f"{share:g} % of {name}" for name, share in answers["covered"].items())
        said.append(f"answers: {answers['size']:,} ({answers['from']}) cover {covered}")
    elif answers:
        said.append("answers: there is no training split and no published list, so what they cover is not known")
    for leak in result["leaks"]:
        one, other = leak["splits"]
        texts = f"; {leak['texts']:,} captions or questions of {other} stand in {one} too, word for word"
        shared = f"{leak['videos']:,} videos" if leak["videos"] else "no video"
        said.append(f"{one} and {other} share {shared}{texts if leak['texts'] else ''}")
    return said + [f"note: {note}" for note in result["notes"]]


def _published(known: dict[str, Any] | None) -> str:
    if known is None:
        return ""
    if known["agrees"]:
        return f"as published ({known['which']})"
    return "differs: " + " or ".join(f"{rows:,}" for rows in known["rows"])


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
