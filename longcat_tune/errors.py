"""What a user can fix, as exceptions; `cli.main` turns them into one message and an exit code.

Every message gives the name, the value, the rule and the remedy. A bug keeps its traceback: nothing here
wraps one.
"""


class UserError(Exception):
    """A run or a check that cannot go on until the user changes something.

    Attributes:
        exit_code: what the process returns; 1 for a failed run or check.
    """

    exit_code = 1


class ConfigError(UserError):
    """The command line or a config file is wrong; exit code 2."""

    exit_code = 2


class DataError(UserError):
    """A clip, caption, image or cache file that cannot be used."""


class CheckpointError(UserError):
    """Model weights, a LoRA file or a saved run that is missing, incomplete or does not fit."""


class DeviceError(UserError):
    """Something asked of a device that it cannot do or has no memory for."""


class InterruptedRunError(UserError):
    """Ctrl-C or SIGTERM ended the run after its state was saved; exit code 130."""

    exit_code = 130
