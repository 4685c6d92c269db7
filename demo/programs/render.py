"""Render a piece of the Mandelbrot set into a PNG, with nothing but the standard library."""

import struct
import zlib
from pathlib import Path

from witness import result, witnessed

DEPTH = 90


def escape_time(c: complex) -> int:
    z = 0j
    for step in range(DEPTH):
        z = z * z + c
        if z.real * z.real + z.imag * z.imag > 4:
            return step
    return DEPTH


def row(y: int, width: int, height: int, centre: complex, span: float) -> bytes:
    imaginary = centre.imag + (y / height - 0.5) * span * height / width
    steps = (escape_time(complex(centre.real + (x / width - 0.5) * span, imaginary)) for x in range(width))
    return b"\0" + bytes(0 if step == DEPTH else 60 + step * 195 // DEPTH for step in steps)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def render(width_text: str, real: str, imaginary: str, span: str) -> int:
    width = int(width_text)
    height = width * 3 // 4
    centre = complex(float(real), float(imaginary))
    rows = []
    for y in range(height):
        rows.append(row(y, width, height, centre, float(span)))
        if y % 40 == 0:
            print(f"row {y} of {height}", flush=True)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"".join(rows), 9)
    picture = Path("mandelbrot.png")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    size = picture.stat().st_size
    result(f"{width}×{height} pixels, {size:,} bytes of PNG", artifacts=[str(picture.absolute())])
    return 0


witnessed(render)
