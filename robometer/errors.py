"""The bases of errors that are the user's to fix."""


class RobometerError(ValueError):
    """A mistake at the border; its message is one sentence that says what was wrong, where, and what to do.

    The command line prints it and exits with status 2. Anything else is a bug.
    """


class InputError(RobometerError):
    """What was to be scored cannot be: its frames or its task are at fault, whatever the model.

    The endpoint answers it as a 4xx, and everything else that a model raises as a 500.
    """
