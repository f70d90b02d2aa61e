"""The parts of the endpoint: request parsing, the HTTP interface, and the two Ray Serve deployments."""
