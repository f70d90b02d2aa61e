"""Job: make a token for the endpoint (`robometer serve-token`, `python -m jobs.serve_token`)."""

from __future__ import annotations

import logging
from pathlib import Path

from jobs.grammar import Call, Command, Inputs, SettingOption, option
from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

LIMITS = {
    "requests_per_minute": "Requests with a body that may begin within any 60 s; none: no limit.",
    "requests_at_a_time": "Requests with a body that may be in progress; none: no limit.",
    "bytes_per_minute": "Bytes of bodies within any 60 s; none: no limit.",
    "session_trajectories": "Trajectories in open sessions, on each replica of the model; none: no limit.",
    "kept_jobs": "Jobs that have not ended, or whose results are kept; none: no limit.",
}


def make(call: Call) -> None:
    """Append the hash of a new token to the file, and print the token."""
    from pipelines.serving.tokens import TokenLimits, add_token

    path = call.config.serve.token_file
    if not path:
        raise ConfigError("Say which file the token is for: --file tokens.yaml")
    token = add_token(Path(path), call.inputs[0], TokenLimits(**{name: call.options[name] for name in LIMITS}))
    logger.info("This token is shown once; %s holds only its hash. Endpoints that read the file accept it now.", path)
    print(token)


COMMAND = Command(
    "serve-token",
    make,
    "Make a token of 256 random bits for the endpoint, print it, and append its hash to a file.",
    inputs=Inputs("NAME", "Who will use it; logs and metrics show this name.", least=1),
    options=[
        SettingOption("--file", "serve.token_file", "The file of `serve.token_file`; made if need be.", metavar="FILE"),
        *(option(f"--{name.replace('_', '-')}", text, type=int, metavar="NUMBER") for name, text in LIMITS.items()),
    ],
    details={"Revoke": "Delete the token's line from the file: running endpoints refuse it within a second."},
    examples="""
robometer serve-token lab-arm-3 --file tokens.yaml
robometer serve-token visitor --file tokens.yaml --requests-per-minute 60 --requests-at-a-time 2
robometer serve outputs/train/best serve.token_file=tokens.yaml
""",
    sections=(),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
