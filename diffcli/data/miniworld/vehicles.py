"""The vehicles of the miniature world: cars, trucks, buses and trams, seen from behind or from the front."""

from collections.abc import Sequence

import numpy as np

from diffcli.data.miniworld.scene import (
    BLACK,
    BUS,
    CAR,
    FAR,
    GLASS,
    PAINTS,
    ROAD,
    TRAIN,
    TRUCK,
    WARM_GLOW,
    Colour,
    Part,
    Scene,
    ellipse,
    pick,
    rectangle,
    stroke,
    tint,
    uniform,
)


def draw_vehicle(
    scene: Scene, kind: int, x: float, direction: int, z: float, rng: np.random.Generator
) -> None:
    """A vehicle centred at x; direction 1 shows its back, -1 its front."""
    match kind:
        case 13:
            _draw_car(scene, x, direction, z, rng)
        case 14:
            _draw_truck(scene, x, direction, z, rng)
        case 15:
            _draw_coach(scene, BUS, x, direction, z, 11.0, rng)
        case _:
            _draw_coach(scene, TRAIN, x, direction, z, 24.0, rng)


def _shadow_and_wheels(
    scene: Scene,
    label: int,
    x: tuple[float, float],
    z: tuple[float, float],
    axles: Sequence[float],
    radius: float,
) -> None:
    under = rectangle(x[0] - 0.25, x[1] + 0.25, z[0] - 0.3, z[1] + 0.2)
    scene.level(0, [under], ROAD, (70, 70, 74), roughness=0.5, shadow=True)
    middle, tyre = (x[0] + x[1]) / 2, 0.26
    half = (x[1] - x[0]) / 2
    tyres = [
        rectangle(-half + 0.05, -half + 0.05 + tyre, 0, radius),
        rectangle(half - 0.05 - tyre, half - 0.05, 0, radius),
    ]
    scene.upright(middle, z[0] + 0.05, tyres, label, BLACK, roughness=0.2)
    visible = x[0] if x[0] > 0.05 else x[1] if x[1] < -0.05 else None
    if visible is None:
        return
    wheels = [
        [(visible, up, along) for along, up in ellipse(z[0] + axle, radius, radius, radius)] for axle in axles
    ]
    scene.fill(wheels, Part(label, BLACK, (0.0, 1 / visible, 0.0), roughness=0.2))
    hubs = [
        [(visible, up, along) for along, up in ellipse(z[0] + axle, radius, radius * 0.5, radius * 0.5)]
        for axle in axles
    ]
    scene.fill(hubs, Part(label, (150, 152, 156), (0.0, 1 / visible, 0.0), roughness=0.2))


def _lamps(
    scene: Scene, label: int, x: float, half: float, y: float, z: float, direction: int, size: float
) -> None:
    """A pair of tail lights (direction 1) or headlights on the face towards the camera."""
    pair = [
        rectangle(-half, -half + size * 1.6, y, y + size),
        rectangle(half - size * 1.6, half, y, y + size),
    ]
    colour, glow = ((190, 24, 24), (255, 40, 30)) if direction > 0 else ((240, 240, 225), (255, 245, 215))
    scene.upright(x, z, pair, label, colour, roughness=0.1, glow=glow)


def _draw_car(scene: Scene, x: float, direction: int, z: float, rng: np.random.Generator) -> None:
    paint, half, length = pick(rng, PAINTS), uniform(rng, 0.86, 0.98), uniform(rng, 3.7, 4.8)
    waist, roof = uniform(rng, 0.78, 0.92), uniform(rng, 1.38, 1.72)
    box, along = (x - half, x + half), (z, z + length)
    _shadow_and_wheels(scene, CAR, box, along, (0.75, length - 0.8), 0.33)
    visible = scene.box(box, (0.28, waist), along, CAR, paint, roughness=0.15)
    rear, front = z + 0.25, z + length * 0.72
    if direction < 0:
        rear, front = z + length * 0.28, z + length - 0.25
    inset = half * 0.82
    if visible is not None:  # the glass house is a trapezium from the side, a narrower one from the end
        inner = visible * 0.985
        house = [
            (inner, waist, rear),
            (inner, waist, front),
            (inner, roof, front - 0.6),
            (inner, roof, rear + 0.45),
        ]
        scene.fill(
            [house], Part(CAR, GLASS, (0.0, 1 / inner, 0.0), facing=-1 if x > 0 else 1, roughness=0.15)
        )
        pillar = (rear + front) / 2
        scene.side(inner, [(pillar - 0.08, pillar + 0.08, waist, roof)], CAR, paint, roughness=0.15)
    scene.level(
        min(roof, scene.camera.height - 0.05),
        [rectangle(x - inset, x + inset, rear + 0.45, front - 0.6)],
        CAR,
        tint(paint, 1.1),
        roughness=0.15,
    )
    screen = [
        (x - half * 0.94, waist, rear),
        (x + half * 0.94, waist, rear),
        (x + inset, roof - 0.06, rear + 0.4),
        (x - inset, roof - 0.06, rear + 0.4),
    ]
    cap = [
        (x - inset, roof - 0.1, rear + 0.4),
        (x + inset, roof - 0.1, rear + 0.4),
        (x + inset, roof, rear + 0.45),
        (x - inset, roof, rear + 0.45),
    ]
    scene.fill([screen], Part(CAR, tint(GLASS, 0.9), (1 / rear, 0.0, 0.0), roughness=0.15))
    scene.fill([cap], Part(CAR, paint, (1 / rear, 0.0, 0.0), roughness=0.15))
    _lamps(scene, CAR, x, half * 0.94, 0.58, z, direction, 0.16)
    scene.upright(x, z, [rectangle(-0.26, 0.26, 0.42, 0.54)], CAR, (226, 226, 220), roughness=0.1)
    scene.upright(x, z, [rectangle(-half, half, 0.28, 0.38)], CAR, tint(paint, 0.5), roughness=0.1)


def _draw_truck(scene: Scene, x: float, direction: int, z: float, rng: np.random.Generator) -> None:
    paint, cargo = (
        pick(rng, PAINTS),
        pick(rng, [(206, 204, 198), (150, 120, 86), (92, 112, 130), (188, 150, 60)]),
    )
    half, length, height = 1.2, uniform(rng, 6.5, 9), uniform(rng, 2.9, 3.7)
    box = (x - half, x + half)
    _shadow_and_wheels(scene, TRUCK, box, (z, z + length), (1.0, length - 3.0, length - 1.0), 0.5)
    cab, bed = (
        ((z + length - 2.0, z + length), (z, z + length - 2.3))
        if direction > 0
        else ((z, z + 2.0), (z + 2.3, z + length))
    )

    def draw_bed() -> None:
        scene.box(box, (0.9, height), bed, TRUCK, cargo, roughness=0.4)
        scene.box(box, (0.55, 0.9), bed, TRUCK, (52, 52, 56), roughness=0.3)
        scene.upright(
            x, bed[0], [rectangle(-0.04, 0.04, 0.95, height - 0.1)], TRUCK, tint(cargo, 0.55), roughness=0.2
        )

    def draw_cab() -> None:
        visible = scene.box((x - half * 0.95, x + half * 0.95), (0.5, 2.6), cab, TRUCK, paint, roughness=0.15)
        scene.upright(
            x, cab[0], [rectangle(-half * 0.85, half * 0.85, 1.5, 2.35)], TRUCK, GLASS, roughness=0.15
        )
        if visible is not None:
            scene.side(visible, [(cab[0] + 0.3, cab[1] - 0.5, 1.5, 2.3)], TRUCK, GLASS, roughness=0.15)

    for draw in (draw_cab, draw_bed) if direction > 0 else (draw_bed, draw_cab):
        draw()
    _lamps(scene, TRUCK, x, half * 0.94, 0.62, z, direction, 0.2)


def _draw_coach(
    scene: Scene, kind: int, x: float, direction: int, z: float, length: float, rng: np.random.Generator
) -> None:
    """A bus, or a tram on its rails: long boxes with a band of windows."""
    tram = kind == TRAIN
    paints: tuple[Colour, ...] = ((196, 36, 40), (236, 190, 40), (40, 92, 168), (60, 140, 80))
    paint, half, height = pick(rng, paints), (1.2 if tram else 1.27), (3.5 if tram else 3.1)
    box, along = (x - half, x + half), (z, z + length)
    if tram:
        rails = [rectangle(x + s * 0.72 - 0.06, x + s * 0.72 + 0.06, 0.6, FAR) for s in (-1, 1)]
        scene.level(0, rails, ROAD, (60, 58, 58), roughness=0.2)
        _shadow_and_wheels(scene, kind, box, along, (), 0.3)
    else:
        _shadow_and_wheels(scene, kind, box, along, (2.2, length - 2.6), 0.48)
    visible = scene.box(box, (0.3, height), along, kind, paint, roughness=0.2)
    if visible is not None:
        scene.side(
            visible,
            [(*along, 0.3, 0.8 if tram else 0.55)],
            kind,
            (236, 236, 230) if tram else tint(paint, 0.6),
            roughness=0.2,
        )
        panes = [(p, p + 1.25, 1.35, 2.5) for p in np.arange(z + 0.4, z + length - 1.3, 1.5)]
        scene.side(visible, panes, kind, GLASS, roughness=0.15, glow=tint(WARM_GLOW, 0.35))
        doors = [(p, p + 1.0, 0.45, 2.5) for p in np.arange(z + 2.6, z + length - 2, 7.0)]
        scene.side(visible, doors, kind, tint(GLASS, 0.7), roughness=0.15)
    face = rectangle(-half * 0.85, half * 0.85, 1.25 if tram else 1.4, 2.7 if tram else 2.5)
    scene.upright(x, z, [face], kind, tint(GLASS, 0.95), roughness=0.15, glow=tint(WARM_GLOW, 0.2))
    scene.upright(
        x,
        z,
        [rectangle(-half * 0.6, half * 0.6, height - 0.5, height - 0.2)],
        kind,
        (40, 36, 30),
        roughness=0.1,
        glow=(200, 120, 20),
    )
    if tram:
        scene.upright(x, z, [rectangle(-half, half, 0.3, 0.75)], kind, (236, 236, 230), roughness=0.2)
        scene.upright(
            x,
            z + 6,
            [stroke((-0.5, height), (0, height + 0.9), 0.09), stroke((0.5, height), (0, height + 0.9), 0.09)],
            kind,
            BLACK,
            roughness=0.1,
        )
    _lamps(scene, kind, x, half * 0.92, 0.9, z, direction, 0.22)
