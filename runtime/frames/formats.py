"""What an encoded picture tells before it is decoded: its format, and whether it is animated or cut short."""

BYTES, MORE_BYTES = 8, 1 << 20  # of a file: for each pixel, and in any case
TEXTS = (b"zTXt", b"iTXt", b"iCCP")  # parts of a PNG that are compressed, a thousandfold perhaps
MOST_PARTS = 50  # of those; or scans of a JPEG, each of which goes over the whole picture. Usual are ten

HEAD = 32  # bytes that `encoded_picture` needs at most

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Light without an upper limit, where 1 is white and the sky may be 1000.
RADIANCE = (b"#?RADIANCE", b"#?RGBE", b"v/1\x01")
JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")

_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # sizes in bytes


def encoded_picture(head: bytes) -> bool:
    """Whether a stream that begins with `head` is an encoded picture: JPEG, PNG, GIF, WebP, TIFF, BMP and others.

    `head` should have HEAD bytes; a shorter one is of a shorter stream, which is no picture.

        encoded_picture(sys.stdin.buffer.peek(HEAD)[:HEAD])
    """
    if head.startswith((PNG, JPEG, b"GIF87a", b"GIF89a", *TIFF, *RADIANCE, *JPEG_2000)):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if is_avif(head):
        return True
    # Portable anymaps: PBM, PGM, PPM, PAM and PFM.
    return head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3] in (b" ", b"\t", b"\n", b"\r")


def is_avif(head: bytes) -> bool:
    """Whether the file is AVIF, with one frame or several."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does. OpenCV would fill the missing part with grey."""
    if data.startswith(PNG):
        return b"IEND" not in data[-64:] and b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    # Segments before the scan carry their length. A thumbnail's own end marker is inside one of them.
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # padding
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) < 0


def is_animated(data: bytes) -> bool:
    """Whether the file is a GIF, PNG, WebP or AVIF of more than one frame."""
    if data.startswith(b"GIF8"):
        return _has_two_images(data)
    if data.startswith(PNG):
        control = data.find(b"acTL", 0, max(0, data.find(b"IDAT")))
        return control > 0 and int.from_bytes(data[control + 4 : control + 8], "big") > 1
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":
        return len(data) > 20 and bool(data[20] & 2)
    return data[4:12] == b"ftypavis"


def _has_two_images(gif: bytes) -> bool:
    """Whether a second image descriptor comes, going from block to block."""

    def palette_size(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    images = 0
    try:
        position = 13 + palette_size(gif[10])
        while images < 2 and gif[position] in b"!,":
            if gif[position] == ord(","):
                images += 1
                position += 11 + palette_size(gif[position + 9])
            else:
                position += 2
            while gif[position]:  # each block of data follows its length; an empty one is the last
                position += 1 + gif[position]
            position += 1
    except IndexError:  # the file is cut short
        pass
    return images > 1


def pixels_of(head: bytes) -> int:
    """How many pixels a JPEG or PNG picture has, by the beginning of its file; 0 where that does not say."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
    position = 2
    while head.startswith(b"\xff\xd8") and position + 9 <= len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            height, width = (int.from_bytes(head[position + at : position + at + 2], "big") for at in (5, 7))
            return height * width
        else:
            position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return 0


def is_laborious(data: bytes, pixels: int) -> bool:
    """Whether a JPEG or PNG of so many pixels may take much longer to decode than its pixels need.

    That is one of very many bytes, one of very many scans, or one with many compressed texts.
    """
    if len(data) > BYTES * pixels + MORE_BYTES:
        return True
    return sum(map(data.count, (b"\xff\xda",) if data.startswith(JPEG) else TEXTS)) > MOST_PARTS
