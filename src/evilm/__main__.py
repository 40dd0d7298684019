"""``python -m evilm``: the same as the ``evilm`` command."""

from __future__ import annotations

from evilm.cli import main

if __name__ == "__main__":
    main()
