"""Makes what the examples are asked about, all of it drawn or spoken by this script, with what must be found in it.

    example_inputs.py pictures       {label.jpeg or label.png: base64 of the file}
    example_inputs.py sounds         {name: {"wav": base64 of a WAV file, "speech": [[from, to in seconds], ...]}}
    example_inputs.py texts          {name: {"image": base64 of a file, "lines": [{"text", "box": [left, top, right, bottom]}]}}
    example_inputs.py golden FOLDER  writes the golden requests of the examples below FOLDER
"""

import base64
import io
import json
import math
import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 192  # of a picture to be classified, in pixels


def file_of(image, form="JPEG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def at(centre, radius, angle):
    """The point in this direction, clockwise from the top."""
    return centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)


def traffic_light():
    image = Image.new("RGB", (SIZE, SIZE), (140, 180, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((92, 150, 100, SIZE), fill=(60, 60, 60))
    draw.rounded_rectangle((66, 20, 126, 152), 12, fill=(25, 25, 25))
    for y, colour in [(45, (220, 30, 30)), (86, (60, 50, 10)), (127, (10, 50, 20))]:
        draw.circle((96, y), 18, fill=colour)
    return image


def analog_clock():
    image = Image.new("RGB", (SIZE, SIZE), (200, 190, 170))
    draw, middle, font = ImageDraw.Draw(image), (SIZE / 2, SIZE / 2), ImageFont.load_default(18)
    draw.circle(middle, 80, fill=(250, 250, 245), outline=(40, 30, 20), width=8)
    for minute in range(60):
        angle, is_hour = minute * math.tau / 60, minute % 5 == 0
        ends = at(middle, 58 if is_hour else 66, angle), at(middle, 72, angle)
        draw.line(ends, fill=(20, 20, 20), width=4 if is_hour else 1)
    for hour in range(1, 13):
        draw.text(at(middle, 48, hour * math.tau / 12), str(hour), anchor="mm", fill="black", font=font)
    draw.line((middle, (70, 60)), fill="black", width=6)
    draw.line((middle, (140, 66)), fill="black", width=4)
    return image


def crossword():
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw, random = ImageDraw.Draw(image), np.random.default_rng(3)
    for y in range(0, SIZE, 16):
        for x in range(0, SIZE, 16):
            draw.rectangle((x, y, x + 16, y + 16), outline="black", fill="black" if random.random() < 0.2 else "white")
    return image


def soccer_ball():
    image = Image.new("RGB", (SIZE, SIZE), (60, 140, 60))
    draw, middle = ImageDraw.Draw(image), (SIZE / 2, SIZE / 2)
    draw.circle(middle, 66, fill="white", outline="black", width=2)

    def pentagon(centre, radius, turn):
        draw.polygon([at(centre, radius, turn + corner * math.tau / 5) for corner in range(5)], fill="black")

    pentagon(middle, 22, 0)
    for corner in range(5):
        angle = corner * math.tau / 5
        pentagon(at(middle, 52, angle), 16, angle + math.pi)
        draw.line((at(middle, 22, angle), at(middle, 52, angle)), fill="black", width=2)
    return image


def pictures():
    drawn = [traffic_light, analog_clock, crossword, soccer_ball]
    named = {draw.__name__.replace("_", " "): draw() for draw in drawn}
    jpeg = {f"{name}.jpeg": file_of(image, quality=85) for name, image in named.items()}
    return jpeg | {f"{name}.png": file_of(image, "PNG") for name, image in named.items()}


# A voice: the harmonics of a pitch, weighted by the resonances (hertz, width, strength) of the vowel that a mouth forms.
VOWELS = {
    "a": [(730, 90, 1), (1090, 110, 0.5), (2440, 170, 0.2)],
    "e": [(530, 70, 1), (1840, 120, 0.4), (2480, 160, 0.2)],
    "i": [(270, 60, 1), (2290, 150, 0.3), (3010, 200, 0.2)],
    "o": [(570, 80, 1), (840, 90, 0.5), (2410, 160, 0.1)],
    "u": [(300, 60, 1), (870, 90, 0.4), (2240, 150, 0.1)],
    "m": [(250, 60, 1), (1000, 100, 0.1)],
}
HISSES = {"s": (3500, 7500), "t": (2000, 6000), "k": (1000, 3000)}


def faded(samples, rate, seconds):
    fade = np.minimum(np.arange(len(samples)), np.arange(len(samples))[::-1]) / (seconds * rate)
    return samples / np.abs(samples).max() * np.minimum(1, fade)


def voiced(sound, pitch, rate, seconds):
    time = np.arange(int(rate * seconds)) / rate
    phase = math.tau * np.cumsum(pitch * (1 + 0.05 * np.sin(math.tau * 4 * time) - 0.1 * time / time[-1])) / rate
    samples = np.zeros_like(time)
    for harmonic in range(1, int(min(7000, rate / 2.2) / pitch)):
        strength = sum(gain / (1 + ((harmonic * pitch - hertz) / width) ** 2) for hertz, width, gain in VOWELS[sound])
        samples += strength / harmonic**0.7 * np.sin(harmonic * phase)
    return faded(samples, rate, 0.02)


def hissed(sound, rate, seconds, random):
    low, high = HISSES[sound]
    spectrum = np.fft.rfft(random.standard_normal(int(rate * seconds)))
    hertz = np.fft.rfftfreq(int(rate * seconds), 1 / rate)
    spectrum[(hertz < low) | (hertz > min(high, rate / 2.1))] = 0
    return faded(np.fft.irfft(spectrum, int(rate * seconds)), rate, 0.01)


def sentence(pitch, rate, random):
    parts = []
    for letters in ["se", "ta", "si", "ko", "mu", "sa"]:
        consonant, vowel = letters
        if consonant in HISSES:
            parts.append(np.zeros(int(rate * 0.03)))
            parts.append(0.06 * hissed(consonant, rate, 0.09 if consonant == "s" else 0.03, random))
        else:
            parts.append(0.1 * voiced(consonant, pitch, rate, 0.07))
        parts.append(0.3 * voiced(vowel, pitch, rate, 0.16))
    return np.concatenate(parts)


def recording(plan, rate, random):
    """Of silences (seconds) and sentences (pitch), with where the sentences are, in seconds."""
    parts, spoken, now = [], [], 0
    for kind, value in plan:
        part = sentence(value, rate, random) if kind == "pitch" else np.zeros(int(rate * value))
        if kind == "pitch":
            spoken.append([now / rate, (now + len(part)) / rate])
        parts.append(part)
        now += len(part)
    samples = np.concatenate(parts)
    return samples + 0.002 * random.standard_normal(len(samples)), spoken


def wav(samples, rate, channels=1):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat((samples * 32767).astype("<i2"), channels).tobytes())
    return out.getvalue()


def sounds():
    random = np.random.default_rng(7)
    talk = [("pause", 0.8), ("pitch", 120), ("pause", 0.9), ("pitch", 210), ("pause", 0.7)]
    made = {}
    for name, rate, channels, plan in [
        ("talk", 16_000, 1, talk),
        ("stereo, 44.1 kHz", 44_100, 2, talk),
        ("telephone", 8_000, 1, talk),
        ("to its end", 16_000, 1, [("pause", 0.5), ("pitch", 150)]),
        ("nobody", 16_000, 1, [("pause", 2.0)]),
    ]:
        samples, spoken = recording(plan, rate, random)
        made[name] = {"wav": wav(samples, rate, channels), "speech": spoken}
    return made


def page(lines, size, turn=0, upside_down=()):
    """A white page with lines `(text, left, top, font size)`; each number in `upside_down` is a line that stands so."""
    image, written = Image.new("RGB", size, "white"), []
    for number, (text, left, top, height) in enumerate(lines):
        font = ImageFont.load_default(height)
        box = ImageDraw.Draw(image).textbbox((left, top), text, font=font)
        line = Image.new("RGB", (math.ceil(box[2] - box[0]) + 4, math.ceil(box[3] - box[1]) + 4), "white")
        ImageDraw.Draw(line).text((2 - box[0] + left, 2 - box[1] + top), text, fill=(20, 20, 60), font=font)
        if number in upside_down:
            line = line.rotate(180)
        image.paste(line, (left, top))
        written.append({"text": text, "box": [left, top, left + line.width, top + line.height]})
    if turn:
        image = image.rotate(turn, Image.BICUBIC, fillcolor="white")
    return image, written


LETTER = [
    ("Tessera 2026", 40, 30, 48),
    ("Invoice No. 4711", 40, 120, 30),
    ("Total: 1,234.50 EUR", 380, 120, 30),
    ("Every model endpoint is a component.", 40, 200, 26),
    ("Thank you for your order!", 40, 260, 26),
]


def texts():
    made = {}
    for name, drawn, form in [
        ("letter", page(LETTER, (720, 340)), "PNG"),
        ("photo", page(LETTER, (720, 340)), "JPEG"),
        ("tilted", page(LETTER, (720, 340), turn=4), "PNG"),
        ("upside down", page(LETTER[1:4], (720, 340), upside_down=[0, 2]), "PNG"),
        ("small", page([("Hello Rust", 10, 8, 24)], (160, 44)), "PNG"),
        ("empty", page([], (320, 200)), "PNG"),
    ]:
        image, lines = drawn
        options = {"quality": 95} if form == "JPEG" else {}
        made[name] = {"image": file_of(image, form, **options), "lines": lines}
    return made


def golden(folder):
    random = np.random.default_rng(7)
    samples, _ = recording([("pause", 0.5), ("pitch", 150), ("pause", 0.6)], 8_000, random)
    (folder / "vad/golden/request.wav").write_bytes(wav(samples, 8_000))
    (folder / "imagenet/golden/request.jpg").write_bytes(file_of(traffic_light(), quality=85))
    (folder / "ocr/golden/request.png").write_bytes(file_of(page([("Hello Rust", 10, 8, 24)], (160, 44))[0], "PNG"))


def encoded(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value))


if __name__ == "__main__":
    kinds = {"pictures": pictures, "sounds": sounds, "texts": texts}
    match sys.argv[1:]:
        case ["golden", folder]:
            golden(Path(folder))
        case [kind] if kind in kinds:
            print(json.dumps(kinds[kind](), default=encoded))
        case _:
            sys.exit(__doc__)
