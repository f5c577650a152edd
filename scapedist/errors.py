"""What can go wrong in a way that a person can mend."""


class ScapedistError(Exception):
    """A sentence for the rule, one with the values, one for the way out."""


class InputError(ScapedistError):
    """A file or an option that is not what it should be."""


class RunError(ScapedistError):
    """A run directory that is not in the state that the command needs."""


class ResourceError(ScapedistError):
    """Memory, disk or workers that do not suffice."""
