"""Job: the HTTP endpoint (`robometer serve`, `python -m jobs.serve`)."""

from __future__ import annotations

import logging

from jobs.common import frame_overrides
from jobs.grammar import Call, Command, Inputs, SettingOption, stands_for

logger = logging.getLogger(__name__)


def serve(call: Call) -> None:
    """Serve until the process is stopped."""
    settings = call.config.serve
    logger.info("Starting an endpoint at %s:%s for %s.", settings.host, settings.port, settings.checkpoint)
    from pipelines.serve import run_serve  # takes seconds

    run_serve(call.config, frame_overrides=frame_overrides(call.keys, call.config))


COMMAND = Command(
    "serve",
    serve,
    "Serve a checkpoint over HTTP until Ctrl-C or SIGTERM; requests that were accepted are still answered.",
    inputs=Inputs(
        "[CHECKPOINT]",
        "A checkpoint folder, org/name[@revision] of the hub, models:/NAME/VERSION or runs:/ID/PATH of MLflow.  "
        "[serve.checkpoint]",
        values=stands_for("serve.checkpoint"),
    ),
    options=[
        SettingOption("--host", "serve.host", "Address to listen on.", metavar="ADDRESS"),
        SettingOption("--port", "serve.port", "Port to listen on.", metavar="PORT"),
    ],
    details={
        "Answers": "POST /v1/score, POST /v1/compare, GET /v1/model, /health, /ready and /metrics, and what the public "
        "Robometer server answers, /evaluate_batch_npy above all; /docs shows them. "
        "Videos become frames as the model was trained on; ingest.max_frames=... and the like override that.",
        "Security": "It listens on loopback. Before --host opens it to others, set ROBOMETER_TOKEN, serve.token or "
        "serve.token_file, and serve.tls_certificate with serve.tls_key.",
    },
    examples="""
robometer serve outputs/train/best
robometer serve outputs/train/best --port 9000 serve.replicas=2 serve.num_gpus=1
ROBOMETER_TOKEN=secret robometer serve outputs/train/best --host 0.0.0.0
""",
    sections=("serve",),
    instead=dict.fromkeys(("--checkpoint", "--scorer"), "Give it without one: robometer serve CHECKPOINT."),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
