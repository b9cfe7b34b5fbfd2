"""The error that commands report as one line, without a traceback."""


class InputError(ValueError):
    """The user's config, archive, checkpoint or other input is wrong.

    The message is one line that names the value and the remedy.
    """
