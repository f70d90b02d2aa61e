"""Job: the HTTP endpoint (`robometer serve`, `python -m jobs.serve`)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jobs import common
from robometer.configs import Config

logger = logging.getLogger(__name__)

HELP = """
robometer serve: serve a checkpoint over HTTP until Ctrl-C or SIGTERM, which answer what was accepted first.

Reads   serve.checkpoint, a checkpoint folder.
Answers POST /v1/score, POST /v1/compare, GET /v1/model, /health, /ready, /metrics; /docs shows all of it.
        Videos become frames as those that the model was trained on; ingest.max_frames=... and the like override that.
        It listens on loopback. Before serve.host opens it to others, set serve.token (or ROBOMETER_TOKEN).

Examples
  robometer serve serve.checkpoint=outputs/train/best
  robometer serve serve.port=9000 serve.replicas=2 serve.num_gpus=1
  ROBOMETER_TOKEN=secret robometer serve serve.host=0.0.0.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def serve(config: Config) -> None:
        where = f"{config.serve.host}:{config.serve.port}"
        logger.info("starting an endpoint at %s for %s", where, config.serve.checkpoint)
        from pipelines.serve import run_serve  # takes seconds

        run_serve(config, frame_overrides=common.given_frames(arguments, config))

    return common.main(HELP, ("serve",), serve, arguments)


if __name__ == "__main__":
    sys.exit(main())
