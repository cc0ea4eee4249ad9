"""Class names of Mapillary Vistas and what they are called in Cityscapes. Data, no behaviour."""

from collections.abc import Mapping

VISTAS_1_2: tuple[str, ...] = tuple(
    """
    animal--bird animal--ground-animal construction--barrier--curb construction--barrier--fence
    construction--barrier--guard-rail construction--barrier--other-barrier construction--barrier--wall
    construction--flat--bike-lane construction--flat--crosswalk-plain construction--flat--curb-cut
    construction--flat--parking construction--flat--pedestrian-area construction--flat--rail-track
    construction--flat--road construction--flat--service-lane construction--flat--sidewalk
    construction--structure--bridge construction--structure--building construction--structure--tunnel
    human--person human--rider--bicyclist human--rider--motorcyclist human--rider--other-rider
    marking--crosswalk-zebra marking--general nature--mountain nature--sand nature--sky nature--snow
    nature--terrain nature--vegetation nature--water object--banner object--bench object--bike-rack
    object--billboard object--catch-basin object--cctv-camera object--fire-hydrant object--junction-box
    object--mailbox object--manhole object--phone-booth object--pothole object--street-light
    object--support--pole object--support--traffic-sign-frame object--support--utility-pole
    object--traffic-light object--traffic-sign--back object--traffic-sign--front object--trash-can
    object--vehicle--bicycle object--vehicle--boat object--vehicle--bus object--vehicle--car
    object--vehicle--caravan object--vehicle--motorcycle object--vehicle--on-rails
    object--vehicle--other-vehicle object--vehicle--trailer object--vehicle--truck
    object--vehicle--wheeled-slow void--car-mount void--ego-vehicle void--unlabeled
    """.split()
)
"""The 66 classes of version 1.2 in the order of their ids, for trees without config.json."""

VISTAS_2_0: tuple[str, ...] = tuple(
    """
    animal--bird animal--ground-animal construction--barrier--ambiguous
    construction--barrier--concrete-block construction--barrier--curb construction--barrier--fence
    construction--barrier--guard-rail construction--barrier--other-barrier
    construction--barrier--road-median construction--barrier--road-side construction--barrier--separator
    construction--barrier--temporary construction--barrier--wall construction--flat--bike-lane
    construction--flat--crosswalk-plain construction--flat--curb-cut construction--flat--driveway
    construction--flat--parking construction--flat--parking-aisle construction--flat--pedestrian-area
    construction--flat--rail-track construction--flat--road construction--flat--road-shoulder
    construction--flat--service-lane construction--flat--sidewalk construction--flat--traffic-island
    construction--structure--bridge construction--structure--building construction--structure--garage
    construction--structure--tunnel human--person--individual human--person--person-group
    human--rider--bicyclist human--rider--motorcyclist human--rider--other-rider marking--continuous--dashed
    marking--continuous--solid marking--continuous--zigzag marking--discrete--ambiguous
    marking--discrete--arrow--left marking--discrete--arrow--other marking--discrete--arrow--right
    marking--discrete--arrow--split-left-or-straight marking--discrete--arrow--split-right-or-straight
    marking--discrete--arrow--straight marking--discrete--crosswalk-zebra marking--discrete--give-way-row
    marking--discrete--give-way-single marking--discrete--hatched--chevron
    marking--discrete--hatched--diagonal marking--discrete--other-marking marking--discrete--stop-line
    marking--discrete--symbol--bicycle marking--discrete--symbol--other marking--discrete--text
    marking-only--continuous--dashed marking-only--discrete--crosswalk-zebra
    marking-only--discrete--other-marking marking-only--discrete--text nature--mountain nature--sand
    nature--sky nature--snow nature--terrain nature--vegetation nature--water object--banner object--bench
    object--bike-rack object--catch-basin object--cctv-camera object--fire-hydrant object--junction-box
    object--mailbox object--manhole object--parking-meter object--phone-booth object--pothole
    object--sign--advertisement object--sign--ambiguous object--sign--back object--sign--information
    object--sign--other object--sign--store object--street-light object--support--pole
    object--support--pole-group object--support--traffic-sign-frame object--support--utility-pole
    object--traffic-cone object--traffic-light--cyclists object--traffic-light--general-horizontal
    object--traffic-light--general-single object--traffic-light--general-upright
    object--traffic-light--other object--traffic-light--pedestrians object--traffic-sign--ambiguous
    object--traffic-sign--back object--traffic-sign--direction-back object--traffic-sign--direction-front
    object--traffic-sign--front object--traffic-sign--information-parking
    object--traffic-sign--temporary-back object--traffic-sign--temporary-front object--trash-can
    object--vehicle--bicycle object--vehicle--boat object--vehicle--bus object--vehicle--car
    object--vehicle--caravan object--vehicle--motorcycle object--vehicle--on-rails
    object--vehicle--other-vehicle object--vehicle--trailer object--vehicle--truck
    object--vehicle--vehicle-group object--vehicle--wheeled-slow object--water-valve void--car-mount
    void--dynamic void--ego-vehicle void--ground void--static void--unlabeled
    """.split()
)
"""The 124 classes of version 2.0 in the order of their ids, for trees without config_v2.0.json."""

VISTAS_TO_CITYSCAPES: Mapping[str, str] = {
    vistas: cityscapes
    for cityscapes, names in {
        "road": """
            marking--continuous--dashed marking--continuous--solid marking--continuous--zigzag
            marking--discrete--ambiguous marking--discrete--arrow--left marking--discrete--arrow--other
            marking--discrete--arrow--right marking--discrete--arrow--split-left-or-straight
            marking--discrete--arrow--split-right-or-straight marking--discrete--arrow--straight
            marking--discrete--give-way-row marking--discrete--give-way-single
            marking--discrete--hatched--chevron marking--discrete--hatched--diagonal
            marking--discrete--other-marking marking--discrete--stop-line marking--discrete--symbol--bicycle
            marking--discrete--symbol--other marking--discrete--text marking-only--continuous--dashed
            marking-only--discrete--other-marking marking-only--discrete--text construction--flat--road
            marking--general object--manhole
        """,
        "sidewalk": "construction--barrier--curb construction--flat--sidewalk",
        "building": "construction--structure--building construction--structure--garage",
        "wall": "construction--barrier--wall",
        "fence": "construction--barrier--fence",
        "pole": "object--support--pole object--support--pole-group object--support--utility-pole",
        "traffic light": """
            object--traffic-light object--traffic-light--cyclists object--traffic-light--general-horizontal
            object--traffic-light--general-single object--traffic-light--general-upright
            object--traffic-light--other object--traffic-light--pedestrians
        """,
        "traffic sign": """
            object--traffic-sign--front object--traffic-sign--direction-front
            object--traffic-sign--temporary-front object--traffic-sign--information-parking
        """,
        "vegetation": "nature--vegetation",
        "terrain": "nature--terrain",
        "sky": "nature--sky",
        "person": "human--person human--person--individual human--person--person-group",
        "rider": "human--rider--bicyclist human--rider--motorcyclist human--rider--other-rider",
        "car": "object--vehicle--car",
        "truck": "object--vehicle--truck",
        "bus": "object--vehicle--bus",
        "train": "object--vehicle--on-rails",
        "motorcycle": "object--vehicle--motorcycle",
        "bicycle": "object--vehicle--bicycle",
    }.items()
    for vistas in names.split()
}
"""Vistas class -> Cityscapes class, for both versions; every other class is ignored.

Version 1.2 follows the table that domain generalisation papers share (curbs are sidewalk, lane markings and manholes
are road, zebra crossings and the backs of signs are ignored); the finer classes of 2.0 follow their parents in it.
"""
