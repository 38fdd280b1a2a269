"""Command line of `make model`: train the demonstration model and say how it goes."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.demo_model.sample import write_readme
from engine.demo_model.tokenizer import DEMO_MODEL_DIR
from engine.demo_model.train import DEMO_RECIPE, train_demo_model

logger = logging.getLogger("engine.demo_model")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train into the folder given, by default the committed one; return the exit status."""
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("--out", type=Path, default=DEMO_MODEL_DIR, help="folder to write")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    started_s = time.monotonic()
    logger.info("training into %s; expect ten to fifteen minutes on two cores", options.out)
    loss = train_demo_model(options.out, DEMO_RECIPE)
    write_readme(options.out, loss)
    logger.info("validation loss %.3f nats per token; done in %.0f s", loss, time.monotonic() - started_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
