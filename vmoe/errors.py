"""What can go wrong for a user of the trainer, told apart by who has to act."""


class UserError(ValueError):
    """A mistake in a flag, config or file: says what, and the fix. The command exits with 2."""


class RunError(RuntimeError):
    """A run that was set up well and could not go on: a full disk, a loss that is not a number.

    The message names the last good checkpoint where there is one. The command exits with 1.
    """
