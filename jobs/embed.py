"""Job: frozen embeddings of a corpus (`robometer embed`, `python -m jobs.embed`)."""

from __future__ import annotations

import dataclasses

from jobs.grammar import Call, Command, corpus_option
from robometer.runs.redaction import redacted


def embed(call: Call) -> None:
    """Embed and say what was done."""
    from pipelines.embed import run_embed

    counts = dataclasses.asdict(run_embed(call.config))
    place = redacted(call.config.corpus.path)
    print(f"corpus {place}: " + ", ".join(f"{name} {value:.4g}" for name, value in counts.items()))


COMMAND = Command(
    "embed",
    embed,
    "Compute image embeddings of every frame and text embeddings of every task, with frozen encoders.",
    options=[corpus_option()],
    details={
        "Reads": "The corpus.",
        "Writes": "In the corpus: embeddings/ENCODER/*.arrow.",
        "Rerun": "The same command embeds what is new.",
    },
    examples="""
robometer embed --corpus outputs/corpus
robometer embed embed.image_encoder=dinov2_base embed.text_encoder=minilm_l12 embed.num_gpus=1
ray job submit --working-dir . -- python -m jobs.embed --corpus /data/corpus embed.actors=8
""",
    sections=("embed", "corpus"),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
