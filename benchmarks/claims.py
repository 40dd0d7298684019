"""Measure what this project claims about speed, side by side, and write the table into docs/results/performance.md.

    python benchmarks/claims.py                     # all of them: `make bench`, about half an hour on two idle cores
    python benchmarks/claims.py decode query        # these, and the table with the earlier results of the others
    python benchmarks/claims.py --list

A claim is one command, one ratio of two figures of the same run, and a goal where one was set. Results are kept in
docs/results/claims.json with date, load and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results" / "claims.json"
DOCUMENT = HERE.parent / "docs" / "results" / "performance.md"
BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"


@dataclass(frozen=True)
class Claim:
    """What is compared.

    Attributes:
        text: ours against what.
        command: words after ``python benchmarks/``; ``{out}`` is a file for JSON, which else is read from stdout.
        ratio: from that JSON to how many times better ours is, or to the figure itself.
        goal: the least ratio that was aimed at, or with ``least`` False the highest figure; None: no goal.
        unit: ``x`` for ratios.
    """

    text: str
    command: str
    ratio: Callable[[Any], float]
    goal: float | None = None
    least: bool = True
    unit: str = "x"


FILM = "20 s of 1280x720"
CLAIMS: Mapping[str, Claim] = {
    "decode": Claim("four exact frames of a 20 s film against decoding all frames (PyAV), CPU",
                    "decode.py --json {out}", lambda found: found[FILM]["linear"] / found[FILM]["exact"]),
    "decode-opencv": Claim("the same against OpenCV's seek per frame, CPU", "decode.py --json {out}",
                           lambda found: found[FILM]["opencv"] / found[FILM]["exact"]),
    "train": Claim("pre-training step against a plain torch loop, CPU", "train.py",
                   lambda found: found["full is faster by"]["plain"]),
    "encode-ort": Claim("encode a clip with ONNX Runtime fp32 against torch eager, CPU",
                        "export.py --forms fp32 int8 openvino --json {out}",
                        lambda found: _encode(found, "fp32")),
    "encode-int8": Claim("with ONNX Runtime int8", "export.py --forms fp32 int8 openvino --json {out}",
                         lambda found: _encode(found, "int8")),
    "encode-openvino": Claim("with OpenVINO", "export.py --forms fp32 int8 openvino --json {out}",
                             lambda found: _encode(found, "openvino"), 3.5),
    "round": Claim("1,000 x 1,000 retrieval, files to metrics, against fusing every pair (extrapolated from a part)",
                   "retrieval_round.py",
                   lambda found: found["pairwise_fusion_seconds_extrapolated"] / found["seconds"]),
    "round-time": Claim("the same, time", "retrieval_round.py", lambda found: found["seconds"], 60, False, " s"),
    "index": Claim("index a folder: its time divided by decoding alone plus encoding alone",
                   "search.py indexing", lambda found: 1 / found["share_of_own_sum"], 0.9, False, ""),
    "index-clip": Claim("index a folder against a script that sends a frame a second through CLIP B/32, CPU",
                        "rivals.py", lambda found: found["faster"], 5.0),
    "query": Claim("a text query in 1,000,000 segments, p50 with the text encoder",
                   "search.py query --segments 1000000", lambda found: found["query_ms"]["p50"], 30, False, " ms"),
    "nearest": Claim("exact NumPy search of 1,000,000 vectors against FAISS 8 bits",
                     "search.py nearest --segments 1000000 --width 256",
                     lambda found: found["ms"]["faiss"]["p50"] / found["ms"]["exact"]["p50"]),
}  # fmt: skip


def _encode(found: Any, form: str) -> float:
    video = next(value for name, value in found.items() if name.startswith("video"))
    return video["torch"]["clock"] / video[form]["clock"]


def run(command: str) -> Any:
    """The JSON of one command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = [sys.executable, str(HERE / command.split(maxsplit=1)[0]), *command.format(out=out).split()[1:]]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words
        return json.loads(out.read_text(encoding="utf-8") if out.is_file() else done.stdout)


def measure(names: Sequence[str], claims: Mapping[str, Claim], results: dict[str, Any]) -> None:
    """Add the results of some claims; claims of one command share one run. A command that fails is recorded."""
    found: dict[str, Any] = {}
    for name in names:
        claim = claims[name]
        about = {"date": time.strftime("%Y-%m-%d"), "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
        try:
            if claim.command not in found:
                found[claim.command] = run(claim.command)
            results[name] = {"value": round(claim.ratio(found[claim.command]), 3), **about}
        except (subprocess.CalledProcessError, KeyError, StopIteration) as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:100], **about}


def table(claims: Mapping[str, Claim], results: Mapping[str, Any]) -> str:
    """The Markdown table of all claims."""
    lines = [
        "| claim | value | goal | reached | load | date | `python benchmarks/...` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, claim in claims.items():
        got = results.get(name, {})
        value, sign = got.get("value"), "at least" if claim.least else "at most"
        goal = "" if claim.goal is None else f"{sign} {claim.goal:g}{claim.unit}"
        reached = ""
        if claim.goal is not None and value is not None:
            reached = "yes" if (value >= claim.goal if claim.least else value <= claim.goal) else "no"
        shown = "failed" if "failed" in got else "not measured" if value is None else f"{value:.3g}{claim.unit}"
        command = claim.command.replace(" --json {out}", "")
        lines.append(
            f"| {claim.text} | {shown} | {goal} | {reached} | {got.get('load', '')} | {got.get('date', '')} | "
            f"`{command}` |"
        )
    return "\n".join(lines)


def write(document: Path, text: str) -> None:
    """Replace what stands between the two marks of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{document}: has no {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure what is named, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--list", action="store_true", help="print the claims")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("".join(f"{name:<18}{claim.text}\n" for name, claim in CLAIMS.items()))
        return
    if unknown := set(options.names) - set(CLAIMS):
        parser.error(f"no such claim: {', '.join(sorted(unknown))}; --list prints them")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    measure(options.names or list(CLAIMS), CLAIMS, results)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write(DOCUMENT, table(CLAIMS, results))


if __name__ == "__main__":
    main()
