"""The one exception that means "the input is at fault, not the program"."""


class InputError(ValueError):
    """Bad input from the user: a file, a record, a setting.

    The message reads like advice, in one sentence or two: what is wrong, where (file, line, field), what to do.
    Command lines print it without a stack trace and exit with status 2.
    """
