"""The user's folder: how its settings become a layout and an encoding of labels."""

from collections.abc import Sequence
from dataclasses import replace

from diffcli.config.domain import FolderDomain
from diffcli.data.domains import DOMAINS, DomainSpec, LabelEncoding, LabelFiles, Layout
from diffcli.data.patterns import ID, SPLIT, from_parts


def folder_spec(config: FolderDomain, classes: Sequence[str]) -> DomainSpec:
    """The domain `folder` with the layouts that the settings mean.

    A folder's name (images) stands for images/{split}, {split}/images and images, in this order; a pattern, or a list
    file, for itself.
    """
    encoding = encoding_of(config, classes)
    images, labels = config.images, config.labels

    def layout(image_folder: str, label_folder: str) -> Layout:
        return Layout(
            from_parts(image_folder, config.image_prefix, config.image_suffix),
            (LabelFiles(from_parts(label_folder, config.label_prefix, config.label_suffix), encoding),),
            config.list_file or "",
        )

    if config.list_file or any(mark in images + labels for mark in (ID, SPLIT)):
        layouts: tuple[Layout, ...] = (layout(images, labels),)
    else:
        layouts = (
            layout(f"{images}/{SPLIT}", f"{labels}/{SPLIT}"),
            layout(f"{SPLIT}/{images}", f"{SPLIT}/{labels}"),
            layout(images, labels),
        )
    return replace(DOMAINS["folder"], layouts=layouts)


def encoding_of(config: FolderDomain, classes: Sequence[str]) -> LabelEncoding:
    """How label_ids and label_colors read the files; without either the files hold train ids."""
    if config.label_ids is None and config.label_colors is None:
        return LabelEncoding(ids={i: i for i in range(len(classes))}, setting="train ids")
    ids, colors = dict(config.label_ids or {}), dict(config.label_colors or ())
    return LabelEncoding(
        ids={value: train_id for value, train_id in ids.items() if value != "*"},
        colors=tuple((color, train_id) for color, train_id in colors.items() if color != "*"),
        other_ids=ids.get("*"),
        other_colors=colors.get("*"),
        setting="label_colors" if config.label_ids is None else "label_ids",
    )
