"""Count how often a search says "no good match": 20 descriptions of clips in the index, and 20 of scenes that are not.

    evilm index FOLDER INDEX        # the 23 clips of GMDCSA24 and the 25 sample clips
    python benchmarks/no_good_match.py INDEX

The sentences were written before the calibration was measured. Its limits were chosen on captions of Panda-70M, but by
someone who knew the scores of these sentences.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evilm.search.index import VideoIndex

ABSENT = (
    "a spaceship on the moon", "a volcano erupting", "a submarine under water", "a medieval castle",
    "a penguin on the ice", "an elephant in the savanna", "a football stadium full of people",
    "a helicopter over a city", "a camel in the desert", "a ski jump in the snow", "a surfer riding a big wave",
    "a hot air balloon in the sky", "a wedding in a church", "a motorcycle race", "a polar bear swimming",
    "a crowd at a rock concert", "a sailing boat in a storm", "a tram in a busy street",
    "a giraffe eating leaves from a tree", "soldiers marching in a parade",
)  # fmt: skip
PRESENT = (
    "Reading book while walking in the room",
    "Picking the mobile phone from the ground while sitting on the chair",
    "Sitting on the chair to right side fall",
    "Eating biscuits while sitting on the bed with legs folded",
    "Drinking water from the water bottle then falling backwards",
    "Falling backward on the bed",
    "Exercising (sitting and standing)",
    "Reading newspaper while sitting on the floor",
    "Walking; sitting on the bed and eating biscuits",
    "Picking the pen from the floor and putting it on the bed",
    "Talking on the phone while sitting on the bed",
    "Walking then falling forward on the floor",
    "a red flower opens in time lapse",
    "a man in a hat talks to women at an office desk in a black and white film",
    "water flows between rocks in a stream",
    "the camera moves around a small white rabbit figure on a wooden table",
    "the camera moves closer to a green toy frog on a wooden table",
    "put banana on plate",
    "put clothes in laundry machine",
    "put knife on cutting board",
)


def main() -> None:
    """Search for both lists, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    with VideoIndex.open(parser.parse_args().index) as index:
        sys.stdout.write(f"{len(index)} segments of {index.num_videos} videos\n")
        for name, texts in (("absent", ABSENT), ("present", PRESENT)):
            found = [index.search(text, 3) for text in texts]
            for hits in found:
                verdict = "no good match" if hits.no_good_match else "match"
                sys.stdout.write(f"  {verdict:14} {hits[0].score:.2f}  {hits.query}  ->  {hits[0].path.name}\n")
            said = sum(hits.no_good_match for hits in found)
            sys.stdout.write(f"{name}: {said} of {len(found)} say 'no good match'\n")


if __name__ == "__main__":
    main()
