"""Makes small real files of many kinds and prints `{label: base64 of the content}`, with the label that each must get."""

import base64
import csv
import io
import json
import sys
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[2]


def archive():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ["README.md", "Cargo.toml"]:
            file.writestr(name, name * 50)
    return out.getvalue()


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.add(REPOSITORY / "Makefile", "Makefile")
    return out.getvalue()


def picture(kind):
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def sound():
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.sin(np.arange(8000) / 10) * 20000).astype("<i2").tobytes())
    return out.getvalue()


def table():
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "name", "price", "quantity", "country"])
    for row in range(60):
        writer.writerow([row, f"article {row}", f"{row * 1.25:.2f}", row % 7, ["FR", "IT", "DE"][row % 3]])
    return out.getvalue().encode()


HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Order</title><link rel="stylesheet" href="site.css"></head>
<body><h1>Your order</h1><p>Thank you for <b>order 1234</b>.</p><ul><li>one tea pot</li><li>two cups</li></ul>
<form action="/pay" method="post"><input type="text" name="card"><button>Pay</button></form></body></html>
"""

SVG = """<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100" viewBox="0 0 100 100">
<circle cx="50" cy="50" r="40" stroke="black" stroke-width="3" fill="red"/><rect x="10" y="10" width="30" height="30"/>
<path d="M 10 10 L 90 90 L 10 90 Z" fill="none" stroke="blue"/><text x="20" y="35">label</text></svg>
"""

C = """#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int main(int argc, char **argv) {
    int *numbers = malloc(sizeof(int) * (size_t)argc);
    for (int i = 1; i < argc; i++) numbers[i - 1] = atoi(argv[i]);
    qsort(numbers, (size_t)argc - 1, sizeof(int), compare);
    for (int i = 0; i < argc - 1; i++) printf("%d\\n", numbers[i]);
    free(numbers);
    return 0;
}
"""

SAMPLES = {
    "python": (REPOSITORY / "tests/python/mlflow_oracle.py").read_bytes(),
    "rust": (REPOSITORY / "runtime/src/http/mod.rs").read_bytes(),
    "shell": (REPOSITORY / "guest-examples/setup.sh").read_bytes(),
    "markdown": (REPOSITORY / "guest-examples/filetype/README.md").read_bytes(),
    "json": json.dumps([{"id": i, "tags": ["a", "b"], "price": i / 4, "name": f"article {i}"} for i in range(40)],
                       indent=2).encode(),
    "html": HTML.encode(),
    "svg": SVG.encode(),
    "c": C.encode(),
    "csv": table(),
    "zip": archive(),
    "tar": tar(),
    "png": picture("PNG"),
    "jpeg": picture("JPEG"),
    "gif": picture("GIF"),
    "pdf": picture("PDF"),
    "wav": sound(),
    "elf": Path(sys.executable).resolve().read_bytes()[:100_000],
}

print(json.dumps({label: base64.b64encode(content).decode() for label, content in SAMPLES.items()}))
