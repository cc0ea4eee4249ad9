"""A miniature world of street scenes: one clean source domain and five unseen ones, rendered on the fly.

`street` decides what stands where, `appearances` in which light, weather and camera; this module renders it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from diffcli.data.domains import APPEARANCES
from diffcli.data.miniworld.appearances import Appearance, domain_appearance, random_appearance
from diffcli.data.miniworld.scene import SUPERSAMPLING, VEGETATION, WARM_GLOW, Colour, Scene
from diffcli.data.miniworld.street import draw_scene

Image = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


def render(seed: int, index: int, domain: str, *, size: tuple[int, int] = (128, 256)) -> tuple[Image, Image]:
    """Render scene `index` of the world `seed` as it looks in `domain`.

    Returns the image (H, W, 3, RGB) and its label (H, W, train ids 0..18, 255 = ignore). The label depends on
    seed, index and size only. `size` is (height, width), multiples of 64. Raises ValueError
    for an unknown domain or another size.
    """
    if domain not in APPEARANCES:
        raise ValueError(f"unknown domain {domain!r}; the miniature world has {', '.join(APPEARANCES)}")
    rng = np.random.default_rng([seed, index, 1 + APPEARANCES.index(domain)])
    return _render(seed, index, domain_appearance(domain, rng), rng, size)


def render_random(
    seed: int, index: int, *, size: tuple[int, int] = (128, 256)
) -> tuple[Image, Image, Appearance]:
    """Render scene `index` with a pretraining appearance: image and label as from `render`, and the appearance."""
    rng = np.random.default_rng([seed, index, 0])
    appearance = random_appearance(rng)
    return *_render(seed, index, appearance, rng, size), appearance


def write_cityscapes(
    root: Path | str,
    *,
    domain: str,
    split: str,
    count: int,
    seed: int,
    size: tuple[int, int] = (128, 256),
    start: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes `start` .. `start + count - 1` of a domain in the layout of Cityscapes.

    leftImg8bit/<split>/<domain>/<name>_leftImg8bit.png and gtFine/<split>/<domain>/<name>_gtFine_labelTrainIds.png;
    `progress` is called with the number of scenes written so far.
    """
    images = Path(root) / "leftImg8bit" / split / domain
    labels = Path(root) / "gtFine" / split / domain
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, label = render(seed, start + number, domain, size=size)
        name = f"{domain}_{seed:06d}_{start + number:06d}"
        _write_png(images / f"{name}_leftImg8bit.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        _write_png(labels / f"{name}_gtFine_labelTrainIds.png", label)
        if progress:
            progress(number + 1)


def render_depth(seed: int, index: int, *, size: tuple[int, int] = (128, 256)) -> Floats:
    """The distance in metres of every pixel of scene (seed, index): H,W float32, along the camera's axis; the sky inf.

    It belongs to the picture and labels that `render` gives for the scene, in any domain, pixel by pixel.
    """
    scene, ids = _draw(seed, index, size)
    depth = _depth(scene, ids)
    depth[ids == 0] = np.inf
    return depth


def _depth(scene: Scene, ids: NDArray[np.uint16]) -> Floats:
    """Metres from the camera to the plane of each pixel's part; at most 2000."""
    across, down = scene.camera.rays((ids.shape[0], ids.shape[1]))
    planes = np.array([part.plane for part in scene.parts], dtype=np.float32)
    inverse = planes[:, 0][ids] + planes[:, 1][ids] * across + planes[:, 2][ids] * down
    depth: Floats = 1 / np.clip(inverse, 1 / 2000, 2.0)
    return depth


def _write_png(path: Path, pixels: MatLike) -> None:
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise OSError(f"could not encode {path}")
    path.write_bytes(data.tobytes())


def _render(
    seed: int, index: int, appearance: Appearance, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Image, Image]:
    scene, ids = _draw(seed, index, size)
    labels = np.array([part.label for part in scene.parts], dtype=np.uint8)
    return _Picture(scene, ids, appearance, rng).develop(), labels[ids]


def _draw(seed: int, index: int, size: tuple[int, int]) -> tuple[Scene, NDArray[np.uint16]]:
    """The scene, and the part id of every pixel of a picture of `size`."""
    if size[0] % 64 or size[1] % 64 or min(size) <= 0:
        raise ValueError(f"height and width must be multiples of 64, not {size}")
    # Streams of (seed, index) alone and of (seed, index, domain) never coincide: their lengths differ.
    scene = draw_scene(np.random.default_rng([seed, index]), size)
    half = SUPERSAMPLING // 2
    return scene, scene.ids[half::SUPERSAMPLING, half::SUPERSAMPLING]


class _Picture:
    """One scene on its way to a picture: fields on the pixel grid, and the steps that light and weather take."""

    def __init__(
        self, scene: Scene, ids: NDArray[np.uint16], appearance: Appearance, rng: np.random.Generator
    ) -> None:
        self.scene, self.ids, self.look, self.rng = scene, ids, appearance, rng
        self.size = (ids.shape[0], ids.shape[1])
        self.scale = ids.shape[0] / 128
        parts = scene.parts
        self.facing = np.array([part.facing for part in parts], dtype=np.int8)
        self.shadow = np.array([part.shadow for part in parts])
        roughness = np.array([part.roughness for part in parts], dtype=np.float32)
        self.roughness = roughness[ids]
        self.sky = ids == 0
        self.flat = self.facing[ids] == 2
        self.across, _ = scene.camera.rays(self.size)
        self.depth = _depth(scene, ids)

    def develop(self) -> Image:
        """All steps in their physical order: paint, texture, daylight, lamps, water and snow, air, camera."""
        daylight = self._daylight()
        picture = self._texture(self._paint(daylight))
        picture = self._sky(picture, daylight)
        picture = self._lamps(picture)
        picture = self._reflect(picture)
        picture = self._air(picture, daylight)
        picture = self._fall(picture)
        return self._camera(picture)

    def _shrink(self, fine: Floats) -> Floats:
        """Average a field of the supersampled grid over each pixel of the picture."""
        return np.asarray(cv2.resize(fine, self.size[::-1], interpolation=cv2.INTER_AREA), dtype=np.float32)

    def _daylight(self) -> Floats:
        look = self.look
        cast = np.array(
            [1 + look.warmth * 0.6 - look.tint, 1 + look.tint, 1 - look.warmth - look.tint], dtype=np.float32
        )
        return look.light * cast

    def _paint(self, daylight: Floats) -> Floats:
        """Colours of the parts under daylight, with their facing and shadow, averaged over the supersampled grid."""
        look = self.look
        colours = _recolour([part.colour for part in self.scene.parts], look)
        if look.cover > 0.02:
            lying = np.where(self.facing == 2, 1.0, 0.0) * min(1.0, look.cover * 1.15)
            leafy = np.array([part.label == VEGETATION for part in self.scene.parts]) * look.cover * 0.45
            share = np.maximum(lying, leafy)[:, None].astype(np.float32)
            colours = colours * (1 - share) + np.float32(0.92) * share
        towards = self.rng.choice([-1, 1])
        shade = np.select(
            [self.facing == 2, self.facing == towards, self.facing == -towards], [0.15, 0.25, -0.55], -0.12
        )
        shade = 1 + look.sun * np.where(self.shadow, -0.85, shade) - np.where(self.shadow, 0.35, 0.0)
        fine = (colours * shade[:, None].astype(np.float32) * daylight)[self.scene.ids]
        return self._shrink(fine)

    def _texture(self, picture: Floats) -> Floats:
        """Multiply surface texture in: on the ground in perspective, elsewhere on the pixel grid."""
        grain = _tile(np.random.default_rng(0).integers(0, 2**31).item())
        height, width = self.size
        x, y = self.rng.integers(0, 256, size=2)
        wall = np.tile(np.roll(grain, (x, y), (0, 1)), (1 + height // 256, 1 + width // 256))[:height, :width]
        metres_x = (self.across * self.depth * 24 + 64 * x).astype(np.float32)
        metres_z = np.broadcast_to(self.depth * 10, self.size).astype(np.float32)
        ground = cv2.remap(grain, metres_x % 255, metres_z % 255, cv2.INTER_LINEAR)
        near = np.clip(14 / self.depth, 0.15, 1.0)  # far ground is seen too flat to show its texture
        texture = np.where(self.flat, ground * near, wall) * self.roughness * self.look.texture
        if self.look.cover > 0.02:  # lying snow is patchy
            texture = texture + np.where(self.flat, np.minimum(ground, 0) * near * 0.14 * self.look.cover, 0)
        result: Floats = picture * (1 + texture.clip(-0.8, 0.8))[..., None]
        return result

    def _sky(self, picture: Floats, daylight: Floats) -> Floats:
        """Gradient from zenith to horizon with clouds, in place of the sky's flat colour."""
        look, height = self.look, self.size[0]
        blue = _recolour([(92, 148, 235), (184, 214, 247), (219, 222, 227), (153, 158, 168)], look)
        rise = np.clip(np.linspace(0, 2.2, height, dtype=np.float32), 0, 1)[:, None, None]
        clear = blue[0] * (1 - rise) + blue[1] * rise
        billows = _smooth_noise(self.rng, (5, 7), self.size) + 0.5 * _smooth_noise(
            self.rng, (12, 14), self.size
        )
        mask = np.clip((billows + 3.4 * look.clouds - 2.0) * 1.2, 0, 1)[..., None]
        grey = blue[2] * (1 - 0.25 * mask) + blue[3] * 0.25 * mask
        sky = (clear * (1 - mask) + grey * mask) * daylight
        share = self._shrink((self.scene.ids == 0).astype(np.float32))[..., None]
        flat = _recolour([self.scene.parts[0].colour], look)[0] * daylight * (1 - 0.12 * look.sun)
        result: Floats = picture + share * (sky - flat)
        return result

    def _lamps(self, picture: Floats) -> Floats:
        """Light the near ground by our own headlights, and add glowing parts with their halo."""
        strength = self.look.lamps
        if strength < 0.06:
            return picture
        reach = np.exp(-self.depth / 22) * np.exp(-((self.across * 1.3) ** 2)) * (~self.sky)
        lit = picture * (
            1
            + (strength * 2.6 * reach)[..., None]
            * np.array([1.0, 0.93, 0.78], dtype=np.float32)
            * (1.15 - self.look.light)
        )
        glow = np.array([part.glow for part in self.scene.parts], dtype=np.float32) / 255
        source = self._shrink(glow[self.scene.ids])
        halo = _blur(source, 1.2 * self.scale) + 1.6 * _blur(source, 5 * self.scale)
        # street lamps fill the whole street with a little of their own colour
        fill = np.array(WARM_GLOW, dtype=np.float32) / 255 * np.exp(-self.depth / 60)[..., None] * 0.5
        base = picture / max(self.look.light, 1e-3)
        ambient = strength * 0.10 * (1.1 - self.look.light) * base * fill
        result: Floats = (lit + ambient + strength * (0.9 * source + 0.55 * halo)).astype(np.float32)
        return result

    def _reflect(self, picture: Floats) -> Floats:
        """Let wet ground mirror what stands behind it, blurred downwards."""
        if self.look.wet < 0.015:
            return picture
        height = self.size[0]
        horizon = int(height * self.scene.camera.horizon)
        rows = np.clip(2 * horizon - np.arange(height), 0, height - 1)
        mirror = _blur(picture[rows], 1.5 * self.scale, 6 * self.scale)
        share = np.where(self.flat, self.look.wet, 0).astype(np.float32)
        share = _blur(share, 0.7 * self.scale)[..., None]
        return picture * (1 - 0.35 * share) * (1 - share) + mirror * share

    def _air(self, picture: Floats, daylight: Floats) -> Floats:
        """Mix the haze's colour in with distance."""
        distance = np.where(self.sky, 160, self.depth).astype(np.float32)
        clear = np.exp(-self.look.haze * distance)[..., None]
        grey = (
            np.float32(self.look.haze_level * 0.92) * daylight * np.array([0.98, 1.0, 1.02], dtype=np.float32)
        )
        result: Floats = picture * clear + grey * (1 - clear)
        return result

    def _fall(self, picture: Floats) -> Floats:
        """Draw falling rain and snow before the lens."""
        (height, width), look = self.size, self.look
        layer = np.zeros(self.size, dtype=np.float32)
        if look.streaks > 0.015:
            slant = self.rng.normal(0, 0.15)
            for _ in range(int(look.streaks * 260)):
                x, y, length = (
                    self.rng.uniform(0, width),
                    self.rng.uniform(-10, height),
                    self.rng.uniform(5, 16) * self.scale,
                )
                ends = np.round(np.array([x, y, x + slant * length, y + length]) * 8).astype(int).tolist()
                cv2.line(
                    layer,
                    (ends[0], ends[1]),
                    (ends[2], ends[3]),
                    self.rng.uniform(0.12, 0.4),
                    1,
                    cv2.LINE_8,
                    3,
                )
            layer = _blur(layer, 0.45 * self.scale)
        if look.flakes > 0.015:
            snow = np.zeros(self.size, dtype=np.float32)
            for _ in range(int(look.flakes * 300)):
                x, y = self.rng.uniform(0, width), self.rng.uniform(0, height)
                radius = self.rng.uniform(0.35, 1.5) ** 1.5 * self.scale
                cv2.circle(
                    snow,
                    (int(x * 8), int(y * 8)),
                    int(radius * 8),
                    self.rng.uniform(0.4, 1.0),
                    -1,
                    cv2.LINE_8,
                    3,
                )
            layer = np.maximum(layer, _blur(snow, 0.5 * self.scale))
        share = np.minimum(layer, 0.92)[..., None]
        result: Floats = picture * (1 - share) + (0.25 + 0.7 * min(look.light, 1.0)) * share
        return result

    def _camera(self, picture: Floats) -> Image:
        """Blur, vignette, tone curve, sensor noise, 8 bits."""
        (height, width), look = self.size, self.look
        if look.blur * self.scale > 0.15:
            picture = _blur(picture, look.blur * self.scale)
        rows, columns = (
            np.linspace(-1, 1, height, dtype=np.float32),
            np.linspace(-1, 1, width, dtype=np.float32),
        )
        corner = 1 - look.vignette * (rows[:, None] ** 2 + columns[None, :] ** 2) / 2
        picture = np.clip(picture * corner[..., None], 0, 1) ** np.float32(look.contrast)
        sensor = self.rng.standard_normal((height, width, 3), dtype=np.float32)
        shot = 0.5 + np.sqrt(picture)  # brighter pixels count more photons and vary more
        picture = picture + look.noise * sensor * shot
        return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _blur(picture: Floats, sigma: float, sigma_down: float = 0.0) -> Floats:
    """Gaussian blur, the same in both directions unless `sigma_down` is given."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigmaX=sigma, sigmaY=sigma_down), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> Floats:
    """Normal noise on a coarse grid, interpolated to `size` (height, width)."""
    coarse = rng.standard_normal(cells).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _recolour(paints: Sequence[Colour], look: Appearance) -> Floats:
    """RGB paints in 0..255 to colours (N, 3) in 0..1, hue rotated and saturation scaled about their grey."""
    colours = np.array(paints, dtype=np.float32) / 255
    angle = np.deg2rad(look.hue)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle) / np.sqrt(3))
    # Rodrigues' rotation about the grey axis
    rotation = cosine * np.eye(3) + (1 - cosine) / 3 + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    grey = colours.mean(axis=1, keepdims=True)
    turned = (colours - grey) @ rotation.T.astype(np.float32)
    result: Floats = np.clip(grey + look.saturation * turned, 0, 1).astype(np.float32)
    return result


@cache
def _tile(seed: int) -> Floats:
    """A tile (256, 256) of noise over several octaves that repeats without seams, mean 0, standard deviation 1."""
    rng = np.random.default_rng(seed)
    tile = np.zeros((256, 256), dtype=np.float32)
    for cells, weight in ((256, 0.8), (128, 0.9), (64, 0.8), (32, 0.6), (16, 0.5)):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        around = np.pad(coarse, 1, mode="wrap")
        factor = 256 // cells
        octave = cv2.resize(around, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        tile += weight * octave[factor:-factor, factor:-factor]
    result: Floats = (tile - tile.mean()) / tile.std()
    return result
