"""How long it takes until something is on the screen: medians of fresh processes, files in the page cache.

    python benchmarks/cold.py [--index INDEX] [--rounds 9]

``import evilm``, ``evilm --help``, and a whole ``evilm search`` from the command to its answer: of INDEX, or of
one that is made here of 48 clips of the world by the model that comes with the package. One run of each goes
before, uncounted.
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


def seconds(command: list[str]) -> float:
    """From start to end of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - of our own making
    return time.perf_counter() - began


def main() -> None:
    """Measure, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="an index to search")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", default=sys.executable, help="of another environment, such as one without torch")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        index = chosen.index or Path(name) / "index"
        if chosen.index is None:
            videos = build(Path(name) / "world", 48, 0, val=8, test=8).path / "videos"
            evilm.VideoIndex.build(videos, "world-tiny", index).close()
        commands = {
            "python -c pass": [chosen.python, "-c", "pass"],
            "import evilm": [chosen.python, "-c", "import evilm"],
            "evilm --help": [chosen.python, "-m", "evilm", "--help"],
            "evilm search": [chosen.python, "-m", "evilm", "search", str(index), QUERY],
        }
        took: dict[str, list[float]] = {each: [] for each in commands}
        for i in range(chosen.rounds + 1):
            for each, command in commands.items():
                spent = seconds(command)
                if i:
                    took[each].append(spent)
    found = {each: {"median": round(statistics.median(s), 3), "least": round(min(s), 3)} for each, s in took.items()}
    json.dump({"seconds": found, "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
