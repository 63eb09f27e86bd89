"""Small drawn data sets in the layouts of the official downloads."""

import cv2
import numpy as np

from tools.scenes.draw import draw_scene

HEIGHT, WIDTH = 97, 150  # odd margins, so that a crop that rounds the other way shows


def scene(seed, shape=(HEIGHT, WIDTH)):
    """A frame and its regions 0 … n − 1."""
    drawn = draw_scene(seed, shape, share=0.3, split="test")
    return drawn.frame, drawn.mask.astype(np.int32)


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def save_palette(path, indices):
    """A PNG of palette indices, as Pascal VOC has them."""
    import PIL.Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette([value * 37 % 256 for value in range(768)])
    picture.save(path)


def save_grey(path, indices, bits):
    """A grey PNG of fewer than 8 bits a pixel, which OpenCV cannot write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = indices.shape
    planes = np.unpackbits(indices.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(planes, axis=1))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def save_annotators(path, maps):
    """groundTruth{i}.Segmentation, as BSDS500 has it."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.empty((1, len(maps)), object)
    for index, one in enumerate(maps):
        cells[0, index] = {"Segmentation": one.astype(np.uint16) + 1, "Boundaries": one > 0}
    savemat(path, {"groundTruth": cells})


def coco(root, ids, values=(0, 2, 17, 60, 100, 181, 255)):
    """val2017/ and stuffthingmaps_trainval2017/val2017/; regions get the given fine labels in turn."""
    for seed, name in enumerate(ids):
        frame, mask = scene(seed, (HEIGHT, WIDTH) if seed % 2 else (WIDTH, HEIGHT))
        save(root / "val2017" / f"{name}.jpg", frame)
        fine = np.array(values, np.uint8)[(mask + seed) % len(values)]
        save(root / "stuffthingmaps_trainval2017" / "val2017" / f"{name}.png", fine)
    return root


def cityscapes(root, names=("frankfurt_000000_000294", "lindau_000001_000019")):
    for seed, name in enumerate(names):
        frame, mask = scene(seed + 10)
        city = name.split("_")[0]
        save(root / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png", frame)
        save(root / "gtFine/val" / city / f"{name}_gtFine_labelIds.png", (mask * 5 % 34).astype(np.uint8))
        save(root / "gtFine/val" / city / f"{name}_gtFine_color.png", frame)
    return root


def bsds(root, count=3, annotators=2, folder="BSDS500/data"):
    for seed in range(count):
        frame, mask = scene(seed + 20)
        save(root / folder / f"images/test/{seed}.jpg", frame)
        maps = [mask, mask // 2, mask > 0][:annotators]
        save_annotators(root / folder / f"groundTruth/test/{seed}.mat", [np.asarray(one) for one in maps])
    return root


def indexed(root, images, masks, values, save_mask=save, count=2, ending=".png", suffix=".jpg"):
    """`count` images in one folder and index masks in another; regions get the given values in turn."""
    for seed in range(count):
        frame, mask = scene(seed + 30)
        save(root / images / f"scene{seed}{suffix}", frame)
        save_mask(root / masks / f"scene{seed}{ending}", np.array(values, np.uint8)[mask % len(values)])
    return root
