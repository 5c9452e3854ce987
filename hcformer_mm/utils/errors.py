"""The error of input that a check refused."""


class InputError(ValueError):
    """Input is wrong, and the message says all: tools print it without a traceback."""

    def __str__(self) -> str:
        # PyTorch puts the traceback before the message of an error in a data worker.
        return super().__str__().rpartition("InputError: ")[2].strip()
