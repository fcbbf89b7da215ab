"""The one exception for mistakes a user can mend: entry points print its message alone, without a traceback."""


class UserError(ValueError):
    """Wrong input, config or environment. The message names the value found, why it fails and what to do."""
