"""Base classes of errors that the user can fix."""


class RobometerError(ValueError):
    """A user's mistake; the message is one sentence that says what is wrong, where, and what to do.

    The command line prints it and exits with status 2. Any other exception is a bug.
    """


class InputError(RobometerError):
    """A clip cannot be scored because of its frames or its task, whatever the model.

    The endpoint answers it with a 4xx status, and any other exception of a model with 500.
    """
