"""How the miniature world looks: the parameters of an appearance and the ranges that each is drawn from.

The pretraining ranges overlap those of no domain, so that a diffusion model pretrained on `render_random` has seen none
of the domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

Interval = tuple[float, float]

SOURCE_DOMAIN = "clean"


@dataclass(frozen=True)
class Appearance:
    """How a scene looks; light, weather, then camera. Shares run from 0 to 1 unless said otherwise."""

    light: float  # brightness of daylight, 1 = noon
    warmth: float  # blue (-) to orange (+) daylight
    tint: float  # magenta (-) to green (+)
    saturation: float  # factor on colourfulness, 1 = as painted
    hue: float  # rotation of all paints, degrees
    contrast: float  # exponent on the finished picture's brightness
    sun: float  # strength of directional light and of cast shadows
    clouds: float  # share of the sky that is cloud
    haze: float  # extinction per metre
    haze_level: float  # brightness of the haze relative to daylight
    wet: float  # mirror strength of the ground
    streaks: float  # density of falling rain
    cover: float  # snow lying on what looks up
    flakes: float  # density of falling snow
    lamps: float  # strength of lamps, headlights and lit windows
    texture: float  # amplitude of surface texture
    noise: float  # standard deviation of sensor noise
    blur: float  # standard deviation in pixels at 128 rows
    vignette: float  # darkening of the corners


PARAMETERS: tuple[str, ...] = tuple(parameter.name for parameter in fields(Appearance))

_ABSENT: Mapping[str, Interval] = {
    "tint": (-0.01, 0.01), "hue": (-5.0, 5.0), "wet": (0.0, 0.01), "streaks": (0.0, 0.01), "cover": (0.0, 0.01),
    "flakes": (0.0, 0.01), "lamps": (0.0, 0.05), "haze": (0.0, 0.0008), "vignette": (0.0, 0.04),
}  # fmt: skip

DOMAIN_RANGES: Mapping[str, Mapping[str, Interval]] = {
    "clean": {
        **_ABSENT, "light": (0.98, 1.06), "warmth": (-0.02, 0.02), "saturation": (1.10, 1.25), "contrast": (0.97, 1.03),
        "sun": (0.45, 0.55), "clouds": (0.0, 0.1), "haze_level": (0.94, 1.0), "texture": (0.02, 0.05),
        "noise": (0.0, 0.003), "blur": (0.0, 0.2),
    },
    "night": {
        **_ABSENT, "light": (0.18, 0.24), "warmth": (-0.34, -0.25), "saturation": (0.55, 0.68),
        "contrast": (0.84, 0.92), "sun": (0.0, 0.05), "clouds": (0.45, 0.55), "haze_level": (0.45, 0.52),
        "lamps": (0.85, 1.15), "texture": (0.08, 0.10), "noise": (0.020, 0.028), "blur": (0.45, 0.6),
        "vignette": (0.06, 0.09),
    },
    "fog": {
        **_ABSENT, "light": (0.88, 0.95), "warmth": (-0.05, -0.02), "saturation": (0.55, 0.68),
        "contrast": (0.97, 1.03), "sun": (0.0, 0.05), "clouds": (0.9, 1.0), "haze": (0.032, 0.055),
        "haze_level": (0.7, 0.8), "texture": (0.02, 0.05), "noise": (0.006, 0.010), "blur": (0.45, 0.6),
    },
    "rain": {
        **_ABSENT, "light": (0.54, 0.62), "warmth": (-0.12, -0.09), "saturation": (0.68, 0.8), "contrast": (0.84, 0.92),
        "sun": (0.0, 0.05), "clouds": (0.9, 1.0), "haze": (0.008, 0.011), "haze_level": (0.7, 0.8), "wet": (0.45, 0.62),
        "streaks": (0.55, 0.85), "texture": (0.08, 0.10), "noise": (0.006, 0.010), "blur": (0.45, 0.6),
        "vignette": (0.06, 0.09),
    },
    "snow": {
        **_ABSENT, "light": (0.88, 0.95), "warmth": (-0.09, -0.05), "saturation": (0.68, 0.8), "contrast": (0.84, 0.92),
        "sun": (0.0, 0.05), "clouds": (0.9, 1.0), "haze": (0.008, 0.011), "haze_level": (0.94, 1.0),
        "cover": (0.55, 0.75), "flakes": (0.55, 0.85), "texture": (0.08, 0.10), "noise": (0.006, 0.010),
        "blur": (0.0, 0.2),
    },
    "photo": {
        **_ABSENT, "light": (0.78, 0.86), "warmth": (0.09, 0.14), "tint": (0.025, 0.045), "saturation": (0.68, 0.8),
        "contrast": (1.1, 1.22), "sun": (0.62, 0.75), "clouds": (0.55, 0.7), "haze": (0.002, 0.003),
        "haze_level": (0.94, 1.0), "texture": (0.15, 0.20), "noise": (0.022, 0.034), "blur": (0.65, 0.85),
        "vignette": (0.28, 0.36),
    },
}  # fmt: skip
"""Per domain and parameter the interval it is drawn from; only `clean` may be trained on."""

PRETRAINING_RANGES: Mapping[str, tuple[Interval, ...]] = {
    "light": ((0.27, 0.50), (0.66, 0.75), (1.1, 1.3)),
    "warmth": ((-0.22, -0.15), (0.03, 0.07), (0.17, 0.30)),
    "tint": ((-0.10, -0.02), (0.06, 0.10)),
    "saturation": ((0.35, 0.52), (0.84, 1.06), (1.3, 1.5)),
    "hue": ((-28.0, -7.0), (7.0, 28.0)),
    "contrast": ((0.68, 0.8), (1.05, 1.08), (1.26, 1.45)),
    "sun": ((0.08, 0.42), (0.8, 0.95)),
    "clouds": ((0.14, 0.42), (0.74, 0.86)),
    "haze": ((0.001, 0.0018), (0.004, 0.007), (0.013, 0.027)),
    "haze_level": ((0.55, 0.66), (0.83, 0.91)),
    "wet": ((0.02, 0.05), (0.1, 0.38)),
    "streaks": ((0.02, 0.05), (0.1, 0.45)),
    "cover": ((0.02, 0.05), (0.1, 0.45)),
    "flakes": ((0.02, 0.05), (0.1, 0.45)),
    "lamps": ((0.08, 0.2), (0.3, 0.75)),
    "texture": ((0.055, 0.075), (0.105, 0.14), (0.22, 0.30)),
    "noise": ((0.0035, 0.0055), (0.012, 0.019)),
    "blur": ((0.23, 0.42), (0.9, 1.1)),
    "vignette": ((0.045, 0.055), (0.11, 0.24), (0.4, 0.48)),
}
"""Per parameter the intervals of the pretraining pictures, one of which is chosen first; all lie outside every
domain's."""


def random_appearance(rng: np.random.Generator) -> Appearance:
    """Draw an appearance for pretraining from `PRETRAINING_RANGES`."""
    chosen = {
        name: intervals[int(rng.integers(len(intervals)))] for name, intervals in PRETRAINING_RANGES.items()
    }
    return Appearance(**{name: float(rng.uniform(*chosen[name])) for name in PARAMETERS})


def domain_appearance(domain: str, rng: np.random.Generator) -> Appearance:
    """Draw an appearance of one of the `APPEARANCES`."""
    return Appearance(**{name: float(rng.uniform(*DOMAIN_RANGES[domain][name])) for name in PARAMETERS})
