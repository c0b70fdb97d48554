"""Failures a user can act on: one sentence of what is wrong, one next step."""


class MoeprofError(Exception):
    """A failure with a remedy; the command line prints it as two lines and exits 1.

    Args:
        what: *thing: what is wrong, expected and got*, in one sentence.
        hint: one next step, as a command where possible; may be empty.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class TraceError(MoeprofError):
    """A trace, or the text it is made from, cannot be read or written."""


class WriteError(TraceError):
    """The disk failed while a trace was written; the cause is the `OSError`."""


class PlacementError(MoeprofError):
    """A placement is malformed or belongs to another model."""


class CapacityError(MoeprofError):
    """Something does not fit the budget or the machine."""


class UnsupportedModelError(MoeprofError):
    """A model cannot be found, read, traced or run."""


class NativeError(MoeprofError):
    """A native operation failed on the device."""
