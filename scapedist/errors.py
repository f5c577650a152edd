"""The errors that a person can mend."""


class ScapedistError(Exception):
    """An error that a person can mend; its message has the rule, the values and the way out."""


class InputError(ScapedistError):
    """Error about a file or an option that is not what it should be."""


class RunError(ScapedistError):
    """Error about a run directory that is not in the state that the command needs."""


class ResourceError(ScapedistError):
    """Error about memory, disk or workers that do not suffice."""
