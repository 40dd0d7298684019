"""Time of short commands in fresh processes: medians, with files in the page cache.

    python benchmarks/cold.py [--index INDEX] [--rounds 9] [--python PYTHON]

Measured are ``import evilm``, ``evilm --help``, loading the bundled model, and ``evilm search`` from its start to its
answer, in INDEX or in an index of 48 synthetic clips. The commands take turns; the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import evilm
from evilm.data.synthetic import build

QUERY = "a red square moves left"


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="the index to search")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", default=sys.executable, help="of another environment, such as one without torch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        index = arguments.index or Path(name) / "index"
        if arguments.index is None:
            videos = build(Path(name) / "world", 48, 0, val=8, test=8).path / "videos"
            evilm.VideoIndex.build(videos, "world-tiny", index).close()
        commands = {
            "python -c pass": ["-c", "pass"],
            "import evilm": ["-c", "import evilm"],
            "evilm --help": ["-m", "evilm", "--help"],
            "load world-tiny and embed a text": [
                "-c",
                f"import evilm; evilm.load('world-tiny').embed_texts([{QUERY!r}])",
            ],
            "evilm search": ["-m", "evilm", "search", str(index), QUERY],
        }
        seconds: dict[str, list[float]] = {each: [] for each in commands}
        for number in range(arguments.rounds + 1):
            for each, command in commands.items():
                start = time.perf_counter()
                subprocess.run([arguments.python, *command], check=True, capture_output=True)  # noqa: S603 - our own
                if number:
                    seconds[each].append(time.perf_counter() - start)
    table = {
        each: {"median": round(statistics.median(values), 3), "least": round(min(values), 3)}
        for each, values in seconds.items()
    }
    json.dump({"seconds": table, "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
