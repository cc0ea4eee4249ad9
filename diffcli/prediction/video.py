"""Videos, frame by frame: read in order as they are, and written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffcli.drawing.pictures import Pixels
from diffcli.errors import DataError, DiffError
from diffcli.files import write_atomically

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))


def is_video(path: str | Path) -> bool:
    """Whether a file's ending is that of a video."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


class Video:
    """An open video file.

    Raises:
        DataError: it is missing, damaged, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError("cannot be read: no such file", where=str(path))
        with _quiet_opencv():
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
            self._first = self._grab()
        self.decoded = 0
        """Frames so far."""
        if self._first is None:
            self._capture.release()
            raise DataError("no frame of this video can be decoded", where=str(path))
        self.size = (self._first.shape[0], self._first.shape[1])
        """Height and width."""

    @property
    def rate(self) -> float:
        """Frames a second; 25 where the file does not say."""
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        return rate if 0 < rate <= 1000 else 25.0

    @property
    def count(self) -> int:
        """Frames that the file says it holds; at least 1, and not always right."""
        return max(1, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def next_frame(self) -> Pixels | None:
        """The next frame (H,W,3) RGB, upright; None after the last one."""
        frame, self._first = self._first, None
        if frame is None and self.decoded:
            frame = self._grab()
        if frame is not None:
            self.decoded += 1
        return frame

    def close(self) -> None:
        """Let go of the file."""
        self._capture.release()

    def _grab(self) -> Pixels | None:
        found, frame = self._capture.read()
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8) if found else None


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """What is wrong with a video is said by us, in one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's, read when the first video is opened
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def count_frames(path: Path) -> int:
    """Frames that a video says it holds, for the progress bar; 1 where it cannot be opened."""
    try:
        video = Video(path)
    except DataError:
        return 1
    count = video.count
    video.close()
    return count


ENCODERS = ("libx264", "h264_videotoolbox", "libopenh264", "mpeg4")
"""Encoders in the order in which they are tried: H.264, which every player and browser shows, then MPEG-4."""


class VideoFile:
    """A video that is being written; frames (H,W,3) RGB of one size."""

    def __init__(self, path: Path, *, rate: float) -> None:
        self.path, self.rate = path, rate
        self.frames = 0
        """Frames so far."""
        self.encoder = ""
        """Which one it is encoded by, once it has a frame."""
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: Pixels) -> None:
        """Append a frame; sides are cut to even numbers, as the codec wants them.

        Raises:
            DiffError: there is no encoder for it.
        """
        import av

        height, width = (max(2, side // 2 * 2) for side in frame.shape[:2])
        if self._stream is None:
            self._open(width, height)
        self.frames += 1
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def _open(self, width: int, height: int) -> None:
        """Begin the file with the first encoder that takes this size."""
        import av

        self._container = av.open(str(self.path), "w", format="mp4")
        for name in ENCODERS:
            try:
                if "w" not in av.codec.Codec(name, "w").mode:
                    continue
                stream = self._container.add_stream(name, rate=Fraction(self.rate).limit_denominator(1001))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.open()
            except (av.FFmpegError, ValueError):
                continue
            self.encoder, self._stream = name, stream
            return
        raise DiffError(
            f"no video encoder here takes {width}x{height}",
            where=str(self.path),
            hint="--write overlay writes the frames as pictures",
        )

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        if self._container is not None:
            self._container.close()


@contextmanager
def open_video(path: Path, *, rate: float) -> Iterator[VideoFile]:
    """A video file that is there when its last frame is, and not before."""
    with write_atomically(path) as temporary:
        video = VideoFile(temporary, rate=rate)
        try:
            yield video
        finally:
            video.close()
