"""Job: frozen embeddings of a corpus (`robometer embed`, `python -m jobs.embed`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.runs.redaction import redacted

HELP = """
robometer embed: image embeddings of every frame and text embeddings of every task, by frozen encoders.

Reads   the corpus at corpus.path
Writes  corpus.path/embeddings/ENCODER/*.arrow
Re-run  embeds only what is new.

Examples
  robometer embed corpus.path=outputs/corpus
  robometer embed embed.image_encoder=dinov2_base embed.text_encoder=minilm_l12 embed.num_gpus=1
  ray job submit --working-dir . -- python -m jobs.embed corpus.path=/data/corpus embed.actors=8
"""


def embed(config: Config) -> None:
    """Embed and say what was done."""
    from pipelines.embed import run_embed

    report = dataclasses.asdict(run_embed(config))
    print(
        f"corpus {redacted(config.corpus.path)}: " + ", ".join(f"{name} {value:.4g}" for name, value in report.items())
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return common.main(HELP, ("embed", "corpus"), embed, argv)


if __name__ == "__main__":
    raise SystemExit(main())
