"""Geometry of the miniature street scenes: the street itself and what lines it, the same in every domain."""

from itertools import pairwise

import numpy as np

from diffcli.data.miniworld.scene import (
    BUILDING,
    FACADES,
    FAR,
    FENCE,
    GLASS,
    PAINTS,
    ROAD,
    SIDEWALK,
    SKY,
    SUPERSAMPLING,
    TERRAIN,
    VEGETATION,
    WALL,
    WARM_GLOW,
    Camera,
    Part,
    Scene,
    pick,
    rectangle,
    steps,
    tint,
    uniform,
)
from diffcli.data.miniworld.street_objects import Street, draw_tree, street_objects


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draw one random street for a picture of `size` (height, width)."""
    camera = Camera(
        focal=uniform(rng, 0.52, 0.72),
        horizon=uniform(rng, 0.38, 0.47),
        centre=uniform(rng, 0.38, 0.62),
        height=uniform(rng, 1.5, 2.2),
    )
    scene = Scene(camera, np.zeros((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), dtype=np.uint16))
    scene.add(Part(SKY, (120, 165, 225), (1 / 2000, 0.0, 0.0), roughness=0.0))
    street = _random_street(rng)
    _draw_ground(scene, street, rng)
    _draw_backdrop(scene, rng)
    for side in (0, 1):
        _draw_lots(scene, street, side, rng)
    # Objects stand nearer to the middle of the street than the lots, so they hide lots, and near ones hide far ones.
    for _, draw in sorted(street_objects(street, rng), key=lambda item: -item[0]):
        draw(scene)
    return scene


def _random_street(rng: np.random.Generator) -> Street:
    lanes_left, lanes_right = rng.integers(1, 3, size=2)
    kerb = (-1.8 - 3.2 * float(lanes_left), 1.8 + 3.2 * float(lanes_right - 1))
    if rng.random() < 0.25:
        kerb = (kerb[0] - 4.0, kerb[1])
    pavement = rng.uniform(2.0, 4.5, size=2)
    verge = np.where(rng.random(2) < 0.3, rng.uniform(1.0, 3.0, size=2), 0.0)
    front = (kerb[0] - float(pavement[0] + verge[0]), kerb[1] + float(pavement[1] + verge[1]))
    crossing = uniform(rng, 14, 45) if rng.random() < 0.45 else None
    return Street(kerb, front, (float(verge[0]), float(verge[1])), crossing)


def _draw_ground(scene: Scene, street: Street, rng: np.random.Generator) -> None:
    near, grass = 0.6, pick(rng, [(96, 128, 62), (122, 126, 74), (132, 112, 80)])
    asphalt = pick(rng, [(88, 88, 92), (104, 102, 100), (78, 80, 88)])
    paving = pick(rng, [(158, 150, 144), (172, 160, 150), (140, 140, 146)])
    scene.level(0, [rectangle(-300, 300, near, FAR * 3)], TERRAIN, grass, roughness=1.6)
    (left, right), (front_left, front_right) = street.kerb, street.front
    scene.level(0, [rectangle(front_left - 1, front_right + 1, near, FAR)], SIDEWALK, paving, roughness=0.8)
    for kerb, verge, sign in ((left, street.verge[0], -1), (right, street.verge[1], 1)):
        if verge:
            scene.level(
                0,
                [rectangle(kerb + sign * 0.5, kerb + sign * (0.5 + verge), near, FAR)],
                TERRAIN,
                grass,
                roughness=1.6,
            )
    scene.level(
        0, [rectangle(left - 0.25, right + 0.25, near, FAR)], SIDEWALK, tint(paving, 1.15), roughness=0.4
    )
    scene.level(0, [rectangle(left, right, near, FAR)], ROAD, asphalt, roughness=0.7)
    if street.crossing:
        z = street.crossing
        scene.level(0, [rectangle(-90, 90, z, z + 8)], ROAD, asphalt, roughness=0.7)
        zebra = [rectangle(x, x + 0.6, z - 3.5, z - 0.8) for x in steps(left + 0.4, right - 0.8, 1.2)]
        scene.level(0, zebra, ROAD, (214, 214, 210), roughness=0.5)
    dashes = [
        rectangle(x - 0.08, x + 0.08, z, z + 3) for x in steps(1.8, right - 1, 3.2) for z in steps(2, 60, 8)
    ]
    dashes += [rectangle(-1.88, -1.72, 1, FAR)] + [
        rectangle(x - 0.08, x + 0.08, z, z + 3) for x in steps(-5, left + 1, -3.2) for z in steps(4, 60, 8)
    ]
    scene.level(0, dashes, ROAD, (208, 208, 202), roughness=0.5)


def _draw_backdrop(scene: Scene, rng: np.random.Generator) -> None:
    """What closes the view at the end of the street: roofs, and trees before them."""
    for _ in range(7):
        x, width, height = uniform(rng, -90, 90), uniform(rng, 10, 26), uniform(rng, 5, 18)
        scene.upright(x, FAR, [rectangle(-width / 2, width / 2, 0, height)], BUILDING, pick(rng, FACADES))
    for _ in range(6):
        x, radius = uniform(rng, -70, 70), uniform(rng, 4, 8)
        crown = [
            (radius * 1.4 * np.cos(a), max(0.0, radius * (0.7 + np.sin(a))))
            for a in np.linspace(0, 2 * np.pi, 12)
        ]
        scene.upright(
            x, FAR - 2, [crown], VEGETATION, pick(rng, [(62, 98, 48), (84, 110, 54)]), roughness=2.0
        )


def _draw_lots(scene: Scene, street: Street, side: int, rng: np.random.Generator) -> None:
    """Fill one side of the street, from its far end to the camera."""
    x, sign = street.front[side], (-1, 1)[side]
    edges = [1.2]
    while edges[-1] < FAR - 10:
        edges.append(edges[-1] + uniform(rng, 9, 22))
    greenness = uniform(rng, 0.0, 0.75)
    for near, far in reversed(list(pairwise(edges))):
        state = rng.spawn(1)[0]  # a lot's own stream: what is drawn in one does not shift the others
        if street.crossing and near < street.crossing + 8 and far > street.crossing:
            near_end, far_end = street.crossing + 8.5, street.crossing - 0.5
            if far - near_end > 3:
                _draw_building(scene, x, sign, near_end, far, state)
            if far_end - near > 3:
                _draw_building(scene, x, sign, near, far_end, state)
            continue
        kind = state.random()
        if kind > greenness:
            _draw_building(scene, x, sign, near, far, state)
        else:
            _draw_garden(scene, x, sign, near, far, state)


def _draw_building(
    scene: Scene, x: float, sign: int, near: float, far: float, rng: np.random.Generator
) -> None:
    colour, storey = pick(rng, FACADES), uniform(rng, 2.9, 3.6)
    floors = int(rng.integers(2, 7))
    height, depth = floors * storey + 0.6, 12.0
    left, right = sorted((x, x + sign * depth))
    scene.box((left, right), (0, height), (near, far), BUILDING, colour)
    windows: list[tuple[float, float, float, float]] = []
    bay = uniform(rng, 2.4, 3.6)
    for low in np.arange(0, floors) * storey + 1.0:
        windows += [
            (z, z + bay * 0.5, low, low + storey * 0.5) for z in np.arange(near + 0.7, far - bay * 0.6, bay)
        ]
    lit = rng.random(len(windows)) < 0.25
    scene.side(
        x,
        [w for w, on in zip(windows, lit, strict=True) if not on],
        BUILDING,
        tint(GLASS, 0.9),
        roughness=0.3,
    )
    scene.side(
        x,
        [w for w, on in zip(windows, lit, strict=True) if on],
        BUILDING,
        GLASS,
        roughness=0.3,
        glow=tint(WARM_GLOW, 0.55),
    )
    scene.side(x, [(near, far, height - 0.5, height)], BUILDING, tint(colour, 0.7))
    if rng.random() < 0.5:
        shop = pick(rng, PAINTS)
        scene.side(x, [(near + 0.5, far - 0.5, 2.5, 3.0)], BUILDING, shop, glow=tint(shop, 0.3))
    if near > 3:  # the gable that looks at the camera
        panes = [
            rectangle(c - 0.6, c + 0.6, low, low + 1.5)
            for c in np.arange(-depth / 2 + 1.5, depth / 2 - 1, 3)
            for low in np.arange(0, floors) * storey + 1.0
        ]
        scene.upright((left + right) / 2, near, panes, BUILDING, tint(GLASS, 0.85), roughness=0.3)


def _draw_garden(
    scene: Scene, x: float, sign: int, near: float, far: float, rng: np.random.Generator
) -> None:
    """An open lot: grass and trees, mostly behind a wall, a fence or a hedge."""
    for z in np.sort(rng.uniform(near, far, size=3))[::-1]:
        draw_tree(scene, x + sign * uniform(rng, 2.5, 9), float(z) + 1.0, uniform(rng, 4.5, 9), rng)
    kind, height = rng.random(), uniform(rng, 1.1, 2.3)
    if kind < 0.33:
        colour = pick(rng, [(168, 160, 150), (150, 104, 86), (190, 184, 172)])
        scene.side(x, [(near, far, 0, height)], WALL, colour)
        scene.side(x, [(near, far, height - 0.18, height)], WALL, tint(colour, 0.75))
        joints = [(z, z + 0.1, 0, height) for z in np.arange(near + 2, far, 2.5)]
        scene.side(x, joints, WALL, tint(colour, 0.8))
    elif kind < 0.70:
        colour = pick(rng, [(112, 92, 70), (72, 78, 84), (190, 188, 184), (60, 92, 72)])
        scene.side(x, [(near, far, 0.1, height)], FENCE, tint(colour, 0.62), roughness=0.6)
        posts = [(z, z + 0.22, 0, height + 0.1) for z in np.arange(near, far, 0.6)]
        scene.side(x, posts, FENCE, colour, roughness=0.5)
        scene.side(x, [(near, far, height * 0.8, height * 0.8 + 0.12)], FENCE, tint(colour, 1.1))
    elif kind < 0.85:
        scene.side(
            x, [(near, far, 0, height)], VEGETATION, pick(rng, [(52, 90, 44), (74, 100, 46)]), roughness=2.2
        )
