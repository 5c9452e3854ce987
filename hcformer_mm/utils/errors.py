"""The error of input that a check refused."""


class InputError(ValueError):
    """Input is wrong, and the message says all: tools print it without a traceback."""
