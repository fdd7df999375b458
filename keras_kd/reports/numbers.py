"""How numbers are written: as many digits as they deserve."""

import dataclasses
import math

# Of a mean without an interval.
_DIGITS = 3
# Numbers that would need more decimals, or have more digits before the point,
# are written as powers of ten.
_MOST_PLACES, _MOST_DIGITS = 8, 9


def how_many(count, noun):
    """A number of things, such as "1 class" or "2 classes".

    Args:
        count: whole number.
        noun: as for `plural`.
    """
    return f"{int(count)} {plural(count, noun)}"


def plural(count, noun):
    """A noun as it follows a number.

    Args:
        count: whole number.
        noun: string, the word for one thing, of which the plural is regular.
    """
    ending = "es" if noun.endswith("s") else "s"
    return noun if count == 1 else noun + ending


@dataclasses.dataclass(frozen=True)
class Unit:
    """What scores are shown in.

    Attributes:
        of_gains: its name behind a gain, such as "points"; may be empty.
        of_scores: behind a score, such as "%".
        factor: what a score is multiplied by.
    """

    of_gains: str = ""
    of_scores: str = ""
    factor: float = 1.0

    def titled(self, name, of="gains"):
        """The heading of a column or axis, such as "accuracy, %".

        Args:
            name: of what is shown.
            of: "gains" or "scores".
        """
        unit = self.of_gains if of == "gains" else self.of_scores
        return f"{name}, {unit}" if unit else name

    def score(self, value, width=None):
        """A score that is known to within a width.

        Args:
            value: float.
            width: of the interval that it is in, or `None`.

        Returns:
            A string, without the unit.
        """
        value, width = self._shown(value, width)
        return _fixed(value, _places(value, width))

    def gain(self, mean, low=math.nan, high=math.nan):
        """A gain with its interval.

        Args:
            mean: float.
            low: float; NaN if there is no interval.
            high: float.

        Returns:
            Strings, without the unit: the mean, the lower and the upper end;
            the mean alone if there is no interval.
        """
        if math.isnan(mean):
            return ("-",)
        values = (mean,) if math.isnan(low) else (mean, low, high)
        mean, width = self._shown(mean, high - low)
        places = _places(mean, width)
        return tuple(_fixed(self.factor * v, places, "+") for v in values)

    def span(self, mean, low=math.nan, high=math.nan):
        """A gain with its interval as one string, as "+1.4 [-0.2, +3.0]"."""
        mean, *ends = self.gain(mean, low, high)
        return f"{mean} [{', '.join(ends)}]" if ends else mean

    def _shown(self, value, width):
        width = math.nan if width is None else width
        return self.factor * value, self.factor * width


PLAIN = Unit()
# Accuracies and other shares.
POINTS = Unit("points", "%", 100.0)


def p_value(p):
    """A p-value with three decimals; "-" for NaN."""
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.0005 else f"{min(p, 1.0):.3f}"


def _places(value, width):
    """Decimals: two digits of half a width, else three digits of a value."""
    if width > 0:
        return _decimals(width / 2, 2)
    return _decimals(value, _DIGITS) if value else 0


def _decimals(size, digits):
    """How many show so many digits of a number."""
    if not math.isfinite(size) or size == 0:
        return 0
    # As it is shown: 9.999 has the exponent of 10.
    exponent = _exponent(float(f"{size:.{digits - 1}e}"))
    return digits - 1 - exponent


def _exponent(value):
    return math.floor(math.log10(abs(value)))


def _fixed(value, places, sign="-"):
    """With so many decimals; nothing has the sign of a zero.

    Args:
        value: float.
        places: decimals; below 0, so many digits before the point are unknown.
        sign: as in Python's formats.
    """
    text = f"{value:{sign}.{min(max(places, 0), _MOST_PLACES)}f}"
    large = math.isfinite(value) and abs(value) >= 10**_MOST_DIGITS
    if value and (large or places > _MOST_PLACES):
        digits = max(_exponent(value) + places, 0)
        text = f"{value:{sign}.{digits}e}"
    return text if float(text) else text.lstrip("+-")


def general(value):
    """A number in four digits, where nothing has the sign of a zero."""
    return f"{value + 0.0:.4g}"
