"""The base of every error that is the user's to fix."""


class RobometerError(ValueError):
    """A mistake at the border; its message is one sentence that says what was wrong, where, and what to do.

    The command line prints it and exits with status 2, the endpoint answers it as a 4xx. Anything else is a bug.
    """
