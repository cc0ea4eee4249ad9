"""Palettes, masks and overlays."""

import numpy as np

from diffcli.config.settings import ModelConfig
from diffcli.drawing.pictures import blend, class_palette, mask_image


def test_colours_of_own_classes() -> None:
    config = ModelConfig.model_validate(
        {"classes": ["road", "tram", "kiosk"], "inversion": {"class_prompts": {}}}
    )
    palette = class_palette(config)
    assert palette.shape == (256, 3)
    assert tuple(palette[0]) == (128, 64, 128), "a class that Cityscapes names has its colour"
    assert len(np.unique(palette[:3], axis=0)) == 3
    own = config.model_copy(update={"palette": ((1, 2, 3), (4, 5, 6), (7, 8, 9))})
    assert class_palette(own)[2].tolist() == [7, 8, 9]
    many = ModelConfig(classes=tuple(map(str, range(255))), inversion=config.inversion)
    assert len(np.unique(class_palette(many)[:255], axis=0)) > 200


def test_masks_and_overlays() -> None:
    palette = class_palette(ModelConfig())
    mask = np.array([[0, 10], [255, 18]], np.uint8)
    assert np.array_equal(np.asarray(mask_image(mask, palette)), mask)
    image = np.full((2, 2, 3), 100, np.uint8)
    blended = blend(image, mask, palette)
    assert blended[1, 0].tolist() == [100, 100, 100]
    assert blended[0, 0].tolist() == [114, 82, 114]
