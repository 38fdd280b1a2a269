"""`python -m router --spec FILE`: run one router, with its hot modules compiled where they are.

Owns the order: where modules come from is settled before any is imported.
"""

from __future__ import annotations

import sys

from router.compiled import prefer_compiled

if __name__ == "__main__":
    modules = prefer_compiled()
    from router.process import main

    sys.exit(main(modules))
