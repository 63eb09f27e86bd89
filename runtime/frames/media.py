"""Opening a video file or URL through PyAV, so that nothing is opened but what the user named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OPEN_SECONDS, READ_SECONDS = 15.0, 15.0  # how long a server may be silent
FILE = "file:"  # before a path: without it, FFmpeg reads a file's name such as `http:host?a.mp4` as a URL
# Containers that hold their frames. Playlists (concat, hls, dash and others) open other files, and are left out.
CONTAINERS = (
    *("3gp", "aac", "ac3", "aiff", "apng", "asf", "av1", "avi", "dv", "eac3", "flac", "flv", "gif", "h261", "h263"),
    *("h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mp3", "mp4", "mpeg", "mpegts", "mpegvideo", "mxf"),
    *("nut", "obu", "ogg", "rm", "vc1", "vvc", "wav", "webm", "wtv", "yuv4mpegpipe"),
)
NETWORK = (
    *("crypto", "data", "ftp", "gopher", "gophers", "hls", "http", "httpproxy", "https", "mmsh", "mmst", "rtmp"),
    *("rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "sctp", "srt", "srtp", "tcp", "tls", "udp"),
)


def is_url(address: str) -> bool:
    """Whether an address is a URL of the network, and not a path or `file:PATH`."""
    return "://" in address and not address.startswith(FILE)


def media_options(address: str) -> dict[str, str]:
    """FFmpeg's options: a file opens no URL and no other file, a URL opens no file."""
    if is_url(address):
        return {"protocol_whitelist": ",".join(NETWORK)}
    return {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}


def open_media(address: str) -> Any:
    """An input container of PyAV. `address`: a path, `file:PATH`, or a URL; a path with `://` needs the prefix.

    Raises av.FFmpegError when it cannot be opened.
    """
    import av

    # From PyAV 19 on that is always so.
    tolerant: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    return av.open(
        address if is_url(address) or address.startswith(FILE) else FILE + address,
        options=media_options(address),
        **tolerant,
        timeout=(OPEN_SECONDS, READ_SECONDS) if is_url(address) else None,
    )


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of some streams. Raises av.FFmpegError where the file is damaged."""
    while True:
        try:
            yield from container.demux(*streams)
            return
        except IndexError:  # a packet of a stream that has begun since the file was opened, which PyAV does not know
            continue
