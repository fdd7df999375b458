"""Other forms of the inputs, tried on a few examples.

A teacher that gets few labels right may see its inputs in another form than
those it was trained on. Whether it gets more right in the form that was meant
is the surest test of that.
"""

import contextlib
import dataclasses

import numpy as np
from keras.applications import imagenet_utils

# The forms of pixels in common use: from 0 to 255 or to 1, and the modes of
# `keras.applications`, of which two treat each colour in a way of its own.
_PIXELS, _SHARES = "255", "1"
_BY_COLOUR = ("torch", "caffe")
_PIXEL_FORMS = (_PIXELS, _SHARES, "tf", *_BY_COLOUR)
# Pixels that use less of their range than this are in another form.
_LEAST_RANGE = 128
# Few examples tell which form is the best, more whether it is better.
_FEW, _MORE = 32, 256
# A gain on few that is worth a look at more, and of how many forms: one for
# each colour is much like another for all.
_WORTH_A_LOOK = 0.1
_FINALISTS = 3
# A gain in accuracy that a different crop or augmentation would not give,
_LEAST_GAIN = 0.15
# in standard errors that the best of a dozen does not reach by chance.
_ERRORS = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the inputs.

    Attributes:
        name: what was found about the inputs, such as "upside down".
        remedy: what to do.
        change: function from the inputs, a NumPy array, to that form.
    """

    name: str
    remedy: str
    change: object


def forms(x):
    """The forms to try, in order of how often they are meant.

    Args:
        x: [batch, ...] NumPy array.

    Returns:
        List of `Form`.
    """
    found = []
    are_coloured = x.ndim >= 4 and x.shape[-1] == 3
    if are_coloured:
        found += _by_colour(x)
    if x.dtype.kind == "f" or _are_pixels(x):
        found += _ranges(x)
    if x.dtype.kind in "iu" and x.ndim == 2:
        found += _token_ids(x.astype("int64"))
    if are_coloured:
        found.append(
            Form(
                "in another colour order",
                "Reverse the channels: x[..., ::-1].",
                lambda x: x[..., ::-1],
            )
        )
    if x.ndim in (3, 4) and x.shape[1] > 3 and x.shape[2] > 3:
        found += _turned(x)
    elif x.ndim == 2 and x.dtype.kind in "iu":
        found.append(
            Form(
                "in reverse order",
                "Reverse the sequences: x[:, ::-1].",
                lambda x: x[:, ::-1],
            )
        )
    return found


def _are_pixels(x):
    """Whether integers may be those of an image, rather than ids."""
    if x.dtype == "uint8":
        return True
    is_image = x.ndim >= 4 and x.shape[-1] in (1, 3, 4)
    return x.dtype.kind in "iu" and is_image and np.ptp(x) > _LEAST_RANGE


def _by_colour(x):
    """Forms of pixels that treat each colour in a way of its own.

    Those that are in such a form are tried in all others, too.
    """
    found = []
    for given in _PIXEL_FORMS:
        pixels = _to_pixels(x, given)
        is_given = -1 < pixels.min() and pixels.max() < 256
        if is_given and np.ptp(pixels) > _LEAST_RANGE:
            all_forms = _PIXEL_FORMS if given in _BY_COLOUR else _BY_COLOUR
            others = [form for form in all_forms if form != given]
            found += [_preprocessed(given, wanted) for wanted in others]
    return found


def _preprocessed(given, wanted):
    return Form(
        f"{_pixels(given)}, which the teacher knows in another form",
        f"Give it {_pixels(wanted)}.",
        lambda x: _from_pixels(_to_pixels(x, given), wanted),
    )


def _pixels(form):
    """A form in words."""
    if form in (_PIXELS, _SHARES):
        return f"pixels from 0 to {form}"
    return (
        "pixels from 0 to 255 as keras.applications.imagenet_utils."
        f'preprocess_input(x, mode="{form}") makes them'
    )


def _from_pixels(pixels, form):
    """Pixels from 0 to 255, as floats, in another form."""
    if form == _PIXELS:
        return pixels
    if form == _SHARES:
        return pixels / 255
    return imagenet_utils.preprocess_input(pixels.copy(), "channels_last", form)


def _to_pixels(x, form):
    """The inverse of `_from_pixels`, a line for each channel."""
    black, white = (
        _from_pixels(np.full((1, 3), value), form) for value in (0.0, 255.0)
    )
    pixels = (x - black) / (white - black) * 255
    return pixels[..., ::-1] if form == "caffe" else pixels


def _ranges(x):
    """Other scales that are in common use."""
    finite = x[np.isfinite(x)].astype("float64")
    low, high = finite.min(), finite.max()
    if high <= low:
        return []
    mean, deviation = finite.mean(), finite.std()
    scales = []
    # Pixels keep their zero: an image may have no white in it.
    if low >= 0:
        white = 255.0 if high > 2 else 1.0
        scales += [(1 / 255 if high > 2 else 255.0, 0.0), (2 / white, -1.0)]
    elif low >= -1 and high <= 1:
        scales += [(0.5, 0.5), (127.5, 127.5)]
    for bottom, top in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        factor = (top - bottom) / (high - low)
        scales.append((factor, bottom - low * factor))
    scales.append((1 / deviation, -mean / deviation))
    return [
        _scaled(factor, added, low, high)
        for factor, added in _without_repeats(scales, mean, deviation)
    ]


def _without_repeats(scales, mean, deviation):
    """Those that differ from each other, and from the inputs as they are."""
    kept = [(1.0, 0.0)]
    for factor, added in scales:
        near = (
            abs(factor - f) < 0.1 * abs(f)
            and abs((factor - f) * mean + added - a) < 0.1 * abs(f) * deviation
            for f, a in kept
        )
        if not any(near):
            kept.append((factor, added))
    return kept[1:]


def _scaled(factor, added, low, high):
    formula = f"{factor:.4g} * x"
    if abs(added) > 1e-6:
        formula += f" {'+' if added > 0 else '-'} {abs(added):.4g}"
    return Form(
        "on another scale than the teacher's",
        f"Give it {formula}, from {factor * low + added:.3g} to "
        f"{factor * high + added:.3g}.",
        lambda x: factor * x + added,
    )


def _token_ids(x):
    shape = ((1, "below"), (2, "below"), (-1, "above"), (-2, "above"))
    return [
        Form(
            f"token ids that are {abs(step)} {where} those it was trained on",
            f"Use the teacher's own vocabulary: x {step:+d} on tokens.",
            # 0 is padding, and an embedding has no row beyond the last.
            lambda x, step=step: np.where(
                x > 0, np.clip(x + step, 0, max(x.max(), 0)), x
            ),
        )
        for step, where in shape
    ]


def _turned(x):
    found = [
        Form(
            "upside down",
            "Flip them: x[:, ::-1].",
            lambda x: x[:, ::-1],
        ),
        Form(
            "mirrored",
            "Mirror them: x[:, :, ::-1].",
            lambda x: x[:, :, ::-1],
        ),
        Form(
            "turned by 180 degrees",
            "Turn them: x[:, ::-1, ::-1].",
            lambda x: x[:, ::-1, ::-1],
        ),
    ]
    if x.shape[1] == x.shape[2]:
        found += [
            Form(
                "with height and width exchanged",
                "Exchange the axes: x.swapaxes(1, 2).",
                lambda x: x.swapaxes(1, 2),
            ),
            *(
                Form(
                    f"turned by {90 * turns} degrees",
                    f"Turn them: numpy.rot90(x, {turns}, (1, 2)).",
                    lambda x, turns=turns: np.rot90(x, turns, (1, 2)),
                )
                for turns in (1, 3)
            ),
        ]
    return found


def best_form(x, right, rare):
    """The form in which a teacher gets more right, if there is one.

    Args:
        x: [n, ...] NumPy array, inputs in random order.
        right: function from inputs of the same rows, the first ones of `x`,
            to [rows, labels] floats: whether the teacher is right.
        rare: [n, labels] booleans, which labels are not the commonest.

    Returns:
        A dict: "name", "remedy", "before", "after" (accuracies), "examples";
        `None` if no form is better beyond doubt.
    """
    few, more = x[:_FEW], x[:_MORE]
    least = right(few).mean() + _WORTH_A_LOOK
    leaders = _best_first(forms(x), few, right)[:_FINALISTS]
    finalists = [form for hits, form in leaders if hits.mean() >= least]
    ranked = _best_first(finalists, more, right)
    if not ranked:
        return None
    (after, best), before = ranked[0], right(more)
    # In many a wrong form, a teacher predicts the commonest label alone.
    if not (after - before)[rare[: len(after)]].sum() > 0:
        return None
    gain = (after - before).mean(1)
    error = max(gain.std(), 1 / len(gain)) / np.sqrt(len(gain))
    if gain.mean() < max(_LEAST_GAIN, _ERRORS * error):
        return None
    return {
        "name": best.name,
        "remedy": best.remedy,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "examples": len(gain),
    }


def _best_first(candidates, x, right):
    """What is right in each form, and the form, that of the most first."""
    found = []
    for form in candidates:
        # A model may refuse, say, ids outside its vocabulary, in any way.
        with contextlib.suppress(Exception):
            found.append((right(_as(form.change(x), x)), form))
    # The first of equals, as `sorted` keeps their order.
    return sorted(found, key=lambda pair: -pair[0].mean())


def _as(values, like):
    """In the type of the inputs, and laid out as TensorFlow wants it.

    Integers on another scale stay floats.
    """
    is_scaled = values.dtype.kind == "f" and like.dtype.kind != "f"
    dtype = "float32" if is_scaled else like.dtype
    return np.ascontiguousarray(values.astype(dtype))
