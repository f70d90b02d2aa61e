"""The endpoint's parts: request parsing, the HTTP interface, and the two Ray Serve deployments."""
