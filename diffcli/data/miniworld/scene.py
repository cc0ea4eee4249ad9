"""The drawing board of the miniature street scenes: camera, parts, and shapes in world coordinates.

A scene is drawn once, back to front, as a map of *part ids*. A part is one surface (a wall, a window, a wheel)
with its class, its own colour and the plane it lies in; `diffcli.data.miniworld` turns the parts into a picture
for a domain. Labels and pictures of all domains therefore agree in every pixel by construction.

World coordinates are metres: x to the right, y up, z forward; the camera stands at (0, height, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = range(11)
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(11, 19)
IGNORE = 255

SUPERSAMPLING = 2
"""Parts are drawn at twice the picture's size, so that edges in the picture are smooth."""

FAR = 110.0
"""Distance in metres at which the street ends."""

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float, float]]
Outline = Sequence[tuple[float, float]]

BLACK: Colour = (22, 22, 26)
GLASS: Colour = (58, 78, 98)
STEEL: Colour = (118, 120, 124)
SKIN: Colour = (205, 160, 130)
WARM_GLOW: Colour = (255, 205, 130)

FACADES: tuple[Colour, ...] = (
    (176, 112, 88), (198, 178, 142), (150, 146, 142), (208, 196, 176), (136, 96, 82), (166, 156, 128), (186, 148, 120),
    (122, 124, 134),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (188, 30, 34), (32, 64, 160), (226, 226, 228), (38, 38, 44), (146, 150, 156), (30, 100, 74),
    (220, 170, 40), (96, 40, 90),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (46, 52, 88), (150, 46, 52), (80, 108, 72), (202, 190, 170), (44, 44, 48), (206, 132, 54), (94, 130, 176),
)  # fmt: skip
SIGN_FACES: tuple[Colour, ...] = ((206, 32, 36), (26, 82, 176), (240, 202, 40), (236, 236, 236))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `focal` and `centre` in image widths, `horizon` in image heights, `height` in metres."""

    focal: float
    horizon: float
    centre: float
    height: float

    def project(self, points: Points, size: tuple[int, int]) -> NDArray[np.float64]:
        """World points (N, 3) to pixel coordinates (N, 2) of an image of `size` (height, width)."""
        x, y, z = np.asarray(points, dtype=np.float64).T
        height, width = size
        scale = width * self.focal / z
        return np.stack(
            [width * self.centre + scale * x, height * self.horizon + scale * (self.height - y)], axis=1
        )

    def rays(self, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Slopes x/z (1, W) and -y/z (H, 1) of the ray through each pixel: inverse depth of a plane is linear
        in them."""
        height, width = size
        across = (np.arange(width, dtype=np.float32) + 0.5 - width * self.centre) / (width * self.focal)
        down = (np.arange(height, dtype=np.float32) + 0.5 - height * self.horizon) / (width * self.focal)
        return across[None, :], down[:, None]


@dataclass(frozen=True)
class Part:
    """One surface: class, own colour, plane and the few facts that light and weather need.

    `plane` (a, b, c) gives the inverse depth 1/z = a + b x/z + c (-y/z). `facing` is -1 or 1 for surfaces that
    look to the left or right, 0 for those that face the camera, 2 for those that look up.
    """

    label: int
    colour: Colour
    plane: tuple[float, float, float] = (1 / FAR, 0.0, 0.0)
    facing: int = 0
    roughness: float = 1.0
    glow: Colour = (0, 0, 0)
    shadow: bool = False


@dataclass
class Scene:
    """A drawn street: the map of part ids at `SUPERSAMPLING` times the picture's size, and the parts."""

    camera: Camera
    ids: NDArray[np.uint16]
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def fill(self, polygons: Sequence[Points], part: Part) -> None:
        """Draw world polygons of one part over what is there."""
        index = self.add(part)
        size = (self.ids.shape[0], self.ids.shape[1])
        corners = [np.round(self.camera.project(polygon, size) * 8).astype(np.int32) for polygon in polygons]
        for corner in corners:
            cv2.fillPoly(self.ids, [corner], index, shift=3)

    def upright(
        self, x: float, z: float, outlines: Sequence[Outline], label: int, colour: Colour, **facts: object
    ) -> None:
        """Draw flat outlines (metres right of and above the foot point) that face the camera at (x, 0, z)."""
        polygons = [[(x + right, up, z) for right, up in outline] for outline in outlines]
        self.fill(polygons, Part(label, colour, (1 / z, 0.0, 0.0), **facts))  # type: ignore[arg-type]

    def side(
        self,
        x: float,
        quads: Sequence[tuple[float, float, float, float]],
        label: int,
        colour: Colour,
        **facts: object,
    ) -> None:
        """Draw rectangles (z near, z far, y low, y high) in the plane at `x` that runs along the street."""
        if abs(x) < 0.05:
            return
        polygons = [
            [(x, low, near), (x, low, far), (x, high, far), (x, high, near)] for near, far, low, high in quads
        ]
        facing = -1 if x > 0 else 1
        self.fill(polygons, Part(label, colour, (0.0, 1 / x, 0.0), facing=facing, **facts))  # type: ignore[arg-type]

    def level(
        self, y: float, outlines: Sequence[Outline], label: int, colour: Colour, **facts: object
    ) -> None:
        """Draw outlines (x, z) in the horizontal plane at height `y` below the camera."""
        polygons = [[(x, y, z) for x, z in outline] for outline in outlines]
        plane = (0.0, 0.0, 1 / (self.camera.height - y))
        self.fill(polygons, Part(label, colour, plane, facing=2, **facts))  # type: ignore[arg-type]

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        label: int,
        colour: Colour,
        **facts: object,
    ) -> float | None:
        """Draw the visible faces of a box; returns the x of the visible side face, if there is one."""
        if y[1] < self.camera.height:
            self.level(y[1], [rectangle(*x, *z)], label, tint(colour, 1.12), **facts)
        visible = x[0] if x[0] > 0.05 else x[1] if x[1] < -0.05 else None
        if visible is not None:
            self.side(visible, [(*z, *y)], label, colour, **facts)
        middle = (x[0] + x[1]) / 2
        self.upright(
            middle, z[0], [rectangle(x[0] - middle, x[1] - middle, *y)], label, tint(colour, 0.9), **facts
        )
        return visible


def rectangle(left: float, right: float, low: float, high: float) -> Outline:
    """Corners of an upright rectangle."""
    return [(left, low), (right, low), (right, high), (left, high)]


def steps(start: float, stop: float, step: float) -> list[float]:
    """Numbers from start to before stop."""
    return [float(value) for value in np.arange(start, stop, step)]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, corners: int = 12) -> Outline:
    """A regular outline around (x, y)."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(x + radius_x * float(np.cos(a)), y + radius_y * float(np.sin(a))) for a in angles]


def stroke(start: tuple[float, float], end: tuple[float, float], width: float) -> Outline:
    """A straight line of a given width as an outline."""
    (x0, y0), (x1, y1) = start, end
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
    dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]


def tint(colour: Colour, factor: float) -> Colour:
    """A lighter (factor above 1) or darker colour."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """One of the colours, a little lighter or darker."""
    return tint(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.85, 1.12)))


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between low and high."""
    return float(rng.uniform(low, high))
