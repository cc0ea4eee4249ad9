"""A miniature world of street scenes, rendered on the fly: the door; nothing else imports what lies behind it."""

from diffcli.data.domains import APPEARANCES
from diffcli.data.miniworld.appearances import (
    DOMAIN_RANGES,
    PARAMETERS,
    PRETRAINING_RANGES,
    SOURCE_DOMAIN,
    Appearance,
    domain_appearance,
    random_appearance,
)
from diffcli.data.miniworld.world import render, render_depth, render_random, write_cityscapes

__all__ = [
    "APPEARANCES",
    "DOMAIN_RANGES",
    "PARAMETERS",
    "PRETRAINING_RANGES",
    "SOURCE_DOMAIN",
    "Appearance",
    "domain_appearance",
    "random_appearance",
    "render",
    "render_depth",
    "render_random",
    "write_cityscapes",
]
