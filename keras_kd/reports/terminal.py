"""What is printed while something runs."""

import sys


def say(text):
    """Prints text at once, in letters that the output can show.

    Args:
        text: string.
    """
    print(printable(text), flush=True)


def printable(text):
    """A text as the output can take it.

    A name may have letters that the output's encoding lacks, such as that of a
    pipe on Windows; no training should end because of these.

    Args:
        text: string.

    Returns:
        A string, with codes of Unicode in the place of such letters.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
