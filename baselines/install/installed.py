"""What is installed in this interpreter, and why something cannot be imported."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str:
    """The version by the metadata on sys.path; empty if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
