"""The element `diffseg`: video/x-raw BGR in, the overlay or the labels out. GStreamer's Python loader imports it.

GST_PLUGIN_PATH=runtime/hosts/gstreamer PYTHONPATH=... gst-inspect-1.0 diffseg
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")

from gi.repository import GLib, GObject, Gst, GstBase, GstVideo  # noqa: E402 - after the choice of their versions

if TYPE_CHECKING:
    from runtime.hosts.gstreamer.filter import FrameFilter

_OUTPUTS = {"overlay": ("BGR",), "labels": ("GRAY16_LE", "GRAY8")}  # the property output → its formats, the best first
_FORMATS = tuple(form for forms in _OUTPUTS.values() for form in forms)
_SIZES = "width=(int)[1,65535], height=(int)[1,65535], framerate=(fraction)[0/1,2147483647/1]"
_TAKES = Gst.Caps.from_string(f"video/x-raw, format=BGR, {_SIZES}")
_GIVES = Gst.Caps.from_string(f"video/x-raw, format={{ {', '.join(_FORMATS)} }}, {_SIZES}")


class DiffSeg(GstBase.BaseTransform):
    """One frame in, one picture of the same size and time out."""

    __gstmetadata__ = (
        "DiffSeg",
        "Filter/Effect/Video",
        "Segments of every frame, without labels or training",
        "DiffSeg",
    )
    __gsttemplates__ = (
        Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, _TAKES),
        Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, _GIVES),
    )
    engine = GObject.Property(type=str, default="", nick="Engine", blurb="Engine file; the embedded one if empty")
    device = GObject.Property(type=str, default="auto", nick="Device", blurb="auto, cpu, cuda or cuda:N")
    threshold = GObject.Property(
        type=str,
        default="",
        nick="Threshold",
        blurb="KL threshold, several with commas, or auto; the engine's if empty",
    )
    temporal = GObject.Property(
        type=bool, default=False, nick="Temporal", blurb="Labels are identities, which stay with their objects"
    )
    output = GObject.Property(
        type=str, default="overlay", nick="Output", blurb="overlay (BGR) or labels (GRAY16_LE, GRAY8)"
    )

    def __init__(self) -> None:
        super().__init__()
        self._filter: FrameFilter | None = None
        self._size, self._form = (0, 0), "BGR"

    def do_start(self) -> bool:
        """Open the engine."""
        try:
            from runtime.errors import as_one_line
            from runtime.hosts.gstreamer.filter import FrameFilter
        except ImportError as error:
            return self._fail(f"{error}; name the folders of diffseg and of what it needs in PYTHONPATH")
        if self.output not in _OUTPUTS:
            return self._fail(f"output: expected {' or '.join(_OUTPUTS)}, found {self.output!r}")
        try:
            self._filter = FrameFilter(self.engine or "", self.device or "auto", self.threshold or "", self.temporal)
        except Exception as error:  # what GStreamer shows of an exception is a traceback
            return self._fail(str(as_one_line(error, "diffseg")))
        return True

    def do_stop(self) -> bool:
        """Let go of the engine."""
        if self._filter is not None:
            self._filter.close()
            self._filter = None
        return True

    def do_transform_caps(self, direction: Any, caps: Any, wanted: Any) -> Any:
        """The same size and rate on the other side, in its formats."""
        # Whether there is such an output is said where the element starts.
        forms = ("BGR",) if direction == Gst.PadDirection.SRC else _OUTPUTS.get(self.output, _FORMATS)
        other = Gst.Caps.new_empty()
        for form in forms:
            for index in range(caps.get_size()):
                structure = caps.get_structure(index).copy()
                structure.set_value("format", form)
                structure.remove_field("colorimetry")
                structure.remove_field("chroma-site")
                other.append_structure(structure)
        return other.intersect_full(wanted, Gst.CapsIntersectMode.FIRST) if wanted else other

    def do_set_caps(self, taken: Any, given: Any) -> bool:
        """Take the size of the frames, and what is to come out."""
        frames, pictures = (GstVideo.VideoInfo.new_from_caps(caps) for caps in (taken, given))
        self._size, self._form = (frames.height, frames.width), pictures.finfo.name
        return True

    def do_get_unit_size(self, caps: Any) -> tuple[bool, int]:
        """Bytes of a frame or of a picture."""
        return True, GstVideo.VideoInfo.new_from_caps(caps).size

    def do_transform(self, taken: Any, given: Any) -> Any:
        """Make the picture of a frame."""
        try:
            assert self._filter is not None
            picture = self._filter(taken.extract_dup(0, taken.get_size()), *self._size, self._form)
            with given.map(Gst.MapFlags.WRITE) as memory:
                memory.data[: len(picture)] = picture
        except Exception as error:
            self._fail(str(error))
            return Gst.FlowReturn.ERROR
        return Gst.FlowReturn.OK

    def _fail(self, text: str) -> bool:
        """Report an error of the element, in one line."""
        line = " ".join(text.split())
        error = GLib.Error.new_literal(Gst.LibraryError.quark(), line, Gst.LibraryError.FAILED)
        self.post_message(Gst.Message.new_error(self, error, ""))
        return False


GObject.type_register(DiffSeg)
__gstelementfactory__ = ("diffseg", Gst.Rank.NONE, DiffSeg)
