"""What stands and moves on the miniature streets: trees, lamps, signs, people and cycles; `vehicles` draws the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffcli.data.miniworld.scene import (
    BICYCLE,
    BLACK,
    BUS,
    CAR,
    CLOTHES,
    LIGHT,
    MOTORCYCLE,
    PAINTS,
    PERSON,
    POLE,
    RIDER,
    SIGN,
    SIGN_FACES,
    SKIN,
    STEEL,
    TRAIN,
    TRUCK,
    VEGETATION,
    WARM_GLOW,
    Outline,
    Scene,
    ellipse,
    pick,
    rectangle,
    stroke,
    tint,
    uniform,
)
from diffcli.data.miniworld.vehicles import draw_vehicle


@dataclass(frozen=True)
class Street:
    """Cross-section of a street: x of the kerbs and of the building lines, left and right; terrain strips."""

    kerb: tuple[float, float]
    front: tuple[float, float]
    verge: tuple[float, float]
    crossing: float | None


def draw_tree(scene: Scene, x: float, z: float, height: float, rng: np.random.Generator) -> None:
    """A trunk and a crown in three shades."""
    colour = pick(rng, [(58, 104, 44), (80, 118, 50), (96, 124, 60), (66, 92, 52)])
    trunk = rectangle(-0.03 * height, 0.03 * height, 0, height * 0.55)
    scene.upright(x, z, [trunk], VEGETATION, (92, 72, 54), roughness=1.2)
    for shade in (0.72, 1.0, 1.2):
        offset = rng.uniform(-0.12, 0.12, size=2) * height
        spread = height * (0.42 - 0.14 * (shade - 0.72))
        wobble = spread * rng.uniform(0.72, 1.05, size=14)
        angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        lift = height * (0.62 + 0.1 * shade)
        crown = [
            (offset[0] + r * np.cos(a), lift + offset[1] * 0.5 + 0.85 * r * np.sin(a))
            for r, a in zip(wobble, angles, strict=True)
        ]
        scene.upright(x, z, [crown], VEGETATION, tint(colour, shade), roughness=2.2)


Item = tuple[float, Callable[[Scene], None]]


def street_objects(street: Street, rng: np.random.Generator) -> list[Item]:
    """Everything that stands or moves on the street, each with its distance."""
    items: list[Item] = []

    def put(z: float, draw: Callable[..., None], *arguments: object) -> None:
        own = rng.spawn(1)[0]
        items.append((z, lambda scene: draw(scene, *arguments, z, own)))

    for side, sign in ((0, -1), (1, 1)):
        kerb, width = street.kerb[side], abs(street.front[side] - street.kerb[side])
        _furnish(put, kerb, sign, width, rng)
        parked = rng.random() < 0.6
        z = uniform(rng, 4, 12)
        while parked and z < 60:
            if rng.random() < 0.62:
                put(z, draw_vehicle, CAR, kerb - sign * 1.15, sign)
            z += uniform(rng, 5.5, 8)
    if street.crossing:
        for side, sign in ((0, -1), (1, 1)):
            put(street.crossing - 0.5, _draw_traffic_light, street.kerb[side] + sign * 0.6)
    lanes = [
        0.2,
        *np.arange(-3.4, street.kerb[0] + 1.4, -3.2)[:2].tolist(),
        *np.arange(3.4, street.kerb[1] - 1.4, 3.2).tolist(),
    ]
    for number, lane in enumerate(lanes):
        _drive(put, float(lane), -1 if lane < -1 else 1, number == 0, rng)
    if rng.random() < 0.55:
        put(
            uniform(rng, 6, 18),
            _draw_cyclist,
            uniform(rng, *sorted((street.kerb[1] - 2.6, street.kerb[1] - 1.0))),
            rng.random() < 0.45,
        )
    if rng.random() < 0.25:
        put(uniform(rng, 6, 16), _draw_cyclist, street.kerb[0] + uniform(rng, 1.0, 2.6), rng.random() < 0.45)
    return items


def _furnish(
    put: Callable[..., None], kerb: float, sign: int, width: float, rng: np.random.Generator
) -> None:
    """Lamps, signs, trees, parked cycles and people on one pavement."""
    at_kerb, lamps, trees = kerb + sign * 0.55, rng.random() < 0.8, rng.random() < 0.45
    for z in np.arange(uniform(rng, 5, 16), 70, uniform(rng, 13, 24)):
        if lamps:
            put(float(z), _draw_lamp, at_kerb, sign)
    for z in np.arange(uniform(rng, 7, 18), 60, uniform(rng, 8, 14)):
        if trees:
            put(float(z), _draw_street_tree, kerb + sign * 0.9)
    for _ in range(int(rng.integers(0, 4))):
        put(uniform(rng, 5, 32), _draw_sign, at_kerb + sign * uniform(rng, 0, 0.5))
    for _ in range(int(rng.poisson(1.6))):
        put(uniform(rng, 5, 34), _draw_person, kerb + sign * uniform(rng, 0.9, max(1.2, width - 0.4)))
    for _ in range(int(rng.poisson(0.5))):
        put(uniform(rng, 5, 18), _draw_cycle, kerb + sign * uniform(rng, 0.6, 1.6), rng.random() < 0.38)


def _drive(
    put: Callable[..., None], lane: float, direction: int, own: bool, rng: np.random.Generator
) -> None:
    """Moving vehicles in one lane, mostly cars."""
    z = uniform(rng, 9 if own else 6, 34)
    kinds, chances = (
        (CAR, TRUCK, BUS, TRAIN),
        ((0.7, 0.12, 0.1, 0.08) if not own else (0.86, 0.08, 0.06, 0.0)),
    )
    while z < 80:
        kind = int(rng.choice(kinds, p=chances))
        put(z, draw_vehicle, kind, lane, direction)
        z += {CAR: 4, TRUCK: 9, BUS: 12, TRAIN: 26}[kind] + uniform(rng, 8, 34)


def _draw_lamp(scene: Scene, x: float, sign: int, z: float, rng: np.random.Generator) -> None:
    height, colour = uniform(rng, 5.0, 7.0), pick(rng, [STEEL, (72, 84, 78), (146, 148, 150)])
    arm = stroke((0, height), (-sign * 1.5, height + 0.25), 0.14)
    scene.upright(x, z, [rectangle(-0.1, 0.1, 0, height), arm], POLE, colour, roughness=0.2)
    head = rectangle(-sign * 1.5 - 0.35, -sign * 1.5 + 0.35, height + 0.1, height + 0.32)
    scene.upright(x, z, [head], POLE, tint(colour, 1.2), roughness=0.1, glow=WARM_GLOW)


def _draw_street_tree(scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    draw_tree(scene, x, z, uniform(rng, 4.5, 7.5), rng)


def _draw_sign(scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    height, size, face = uniform(rng, 2.2, 3.0), uniform(rng, 0.42, 0.6), pick(rng, SIGN_FACES)
    scene.upright(x, z, [rectangle(-0.07, 0.07, 0, height)], POLE, STEEL, roughness=0.2)
    corners = int(rng.choice([3, 4, 8, 14]))
    turn = np.pi / 2 if corners == 3 else np.pi / corners
    angles = turn + np.arange(corners) * 2 * np.pi / corners

    def plate(radius: float) -> Outline:
        return [(radius * float(np.cos(a)), height + radius * float(np.sin(a))) for a in angles]

    scene.upright(x, z, [plate(size)], SIGN, face, roughness=0.1)
    scene.upright(
        x,
        z,
        [plate(size * 0.6)],
        SIGN,
        (236, 236, 236) if face[0] > 150 and face[2] < 100 else tint(face, 0.75),
        roughness=0.1,
    )


def _draw_traffic_light(scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    """A mast with its arm over the road and two heads."""
    inward = -1.0 if x > 0 else 1.0
    scene.upright(
        x,
        z,
        [rectangle(-0.09, 0.09, 0, 5.2), stroke((0, 5.1), (inward * 2.6, 5.1), 0.14)],
        POLE,
        (84, 88, 86),
        roughness=0.2,
    )
    heads, lit = ((0.0, 2.7), (inward * 2.6, 4.6)), int(rng.integers(3))
    scene.upright(
        x,
        z,
        [rectangle(dx - 0.27, dx + 0.27, y - 0.62, y + 0.62) for dx, y in heads],
        LIGHT,
        BLACK,
        roughness=0.1,
    )
    for lens, colour in enumerate(((230, 36, 30), (250, 180, 40), (40, 220, 110))):
        on = lens == lit
        discs = [ellipse(dx, y + 0.38 - 0.38 * lens, 0.17, 0.17, 8) for dx, y in heads]
        scene.upright(
            x,
            z,
            discs,
            LIGHT,
            colour if on else tint(colour, 0.3),
            roughness=0.0,
            glow=colour if on else (0, 0, 0),
        )


def _draw_person(scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    height, step = uniform(rng, 1.55, 1.9), uniform(rng, 0.03, 0.28)
    top, legs, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), tint(SKIN, uniform(rng, 0.5, 1.1))
    hip, shoulder = height * 0.5, height * 0.84
    strides = [stroke((-0.08, hip), (-0.08 - step, 0), 0.17), stroke((0.08, hip), (0.08 + step, 0), 0.17)]
    scene.upright(x, z, strides, PERSON, legs, roughness=0.5)
    torso = [(-0.17, hip - 0.08), (0.17, hip - 0.08), (0.24, shoulder), (-0.24, shoulder)]
    arms = [
        stroke((-0.23, shoulder - 0.04), (-0.3 - step * 0.3, hip), 0.11),
        stroke((0.23, shoulder - 0.04), (0.3 + step * 0.3, hip), 0.11),
    ]
    scene.upright(x, z, [torso, *arms], PERSON, top, roughness=0.5)
    scene.upright(x, z, [ellipse(0, height * 0.92, 0.12, 0.15, 10)], PERSON, skin, roughness=0.2)
    scene.upright(
        x,
        z,
        [[(-0.13, height * 0.93), (0.13, height * 0.93), (0.09, height * 1.01), (-0.09, height * 1.01)]],
        PERSON,
        BLACK,
        roughness=0.2,
    )


def _draw_cycle(scene: Scene, x: float, motor: bool, z: float, rng: np.random.Generator) -> None:
    """A bicycle, or a motorcycle with its fat tyres, engine and tank; from the side, foreshortened at random."""
    paint, label, turn = pick(rng, PAINTS), (MOTORCYCLE if motor else BICYCLE), uniform(rng, 0.45, 1.0)
    reach, radius = (0.68, 0.34) if motor else (0.55, 0.36)
    wheels = [ellipse(s * reach * turn, radius, radius * turn, radius) for s in (-1, 1)]
    scene.upright(x, z, wheels, label, BLACK, roughness=0.2)
    rims = [ellipse(s * reach * turn, radius, radius * 0.66 * turn, radius * 0.7) for s in (-1, 1)]
    scene.upright(x, z, rims, label, (130, 132, 136), roughness=0.2)
    if motor:
        body = [[(-0.5, 0.45), (0.3, 0.3), (0.55, 0.75), (0.25, 1.0), (-0.35, 0.85), (-0.75, 0.9)]]
        engine = [rectangle(-0.28 * turn, 0.25 * turn, 0.22, 0.55)]
        scene.upright(x, z, [[(px * turn, py) for px, py in body[0]]], label, paint, roughness=0.15)
        scene.upright(x, z, engine, label, (70, 70, 74), roughness=0.2)
        scene.upright(x, z, [stroke((0.5 * turn, 0.8), (0.3 * turn, 1.2), 0.09)], label, BLACK, roughness=0.2)
        scene.upright(
            x,
            z,
            [ellipse(0.58 * turn, 0.85, 0.1, 0.1, 8)],
            label,
            (236, 236, 220),
            roughness=0.1,
            glow=(255, 245, 215),
        )
        return
    saddle, crank, head = (-0.2 * turn, 0.85), (-0.05 * turn, 0.35), (0.4 * turn, 0.85)
    ends = ((-reach * turn, radius), (reach * turn, radius))
    lines = [
        (ends[0], crank),
        (crank, head),
        (crank, saddle),
        (saddle, head),
        (ends[0], saddle),
        (ends[1], (0.36 * turn, 1.05)),
    ]
    scene.upright(x, z, [stroke(a, b, 0.1) for a, b in lines], label, paint, roughness=0.15)
    scene.upright(
        x,
        z,
        [rectangle(-0.34 * turn, -0.08 * turn, 0.86, 0.95), rectangle(0.22 * turn, 0.5 * turn, 1.03, 1.12)],
        label,
        BLACK,
        roughness=0.2,
    )


def _draw_cyclist(scene: Scene, x: float, motor: bool, z: float, rng: np.random.Generator) -> None:
    _draw_cycle(scene, x, motor, z, rng)
    top, legs = pick(rng, CLOTHES), pick(rng, CLOTHES)
    near = z - 0.05
    scene.upright(
        x,
        near,
        [stroke((-0.15, 0.95), (0.12, 0.72), 0.19), stroke((0.12, 0.72), (0.02, 0.3), 0.15)],
        RIDER,
        legs,
        roughness=0.5,
    )
    scene.upright(
        x,
        near,
        [[(-0.3, 0.92), (0.0, 0.88), (0.24, 1.45), (-0.08, 1.52)], stroke((0.12, 1.4), (0.38, 1.1), 0.12)],
        RIDER,
        top,
        roughness=0.5,
    )
    scene.upright(x, near, [ellipse(0.16, 1.64, 0.13, 0.16, 10)], RIDER, SKIN, roughness=0.2)
    helmet = [(0.0, 1.68), (0.31, 1.68), (0.27, 1.82), (0.1, 1.84)]
    scene.upright(x, near, [helmet], RIDER, pick(rng, PAINTS), roughness=0.1)
