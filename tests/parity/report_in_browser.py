#!/usr/bin/env python3
"""The report of a training run in a real browser (chromium, without a window): nothing on the console, every plot drawn
in the colours of its series.

Without chromium this is no pass: exit code 77, which CTest reports as skipped."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zlib

import numpy
import tiny_run

WIDTH = 1000
# Where the plots lie, and the colours that their lines and bars are drawn in; as text at the end of the page.
LOOK = """<script>
const plots = [...document.querySelectorAll('svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const drawn = [...svg.querySelectorAll('path, polyline, circle, rect')].map(mark => getComputedStyle(mark));
  const colours = drawn.flatMap(style => [style.stroke, style.fill]).filter(colour => colour.startsWith('rgb('));
  return {title: svg.getAttribute('aria-label'), x: box.x, y: box.y + window.scrollY, width: box.width,
          height: box.height, colours: [...new Set(colours)]};
});
const found = document.createElement('pre');
found.id = 'found';
found.textContent = JSON.stringify({plots, height: document.documentElement.scrollHeight});
document.body.appendChild(found);
</script>"""


def browser(*options):
    """Its standard output, and what pages wrote to the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               "--force-device-scale-factor=1", f"--user-data-dir={os.getcwd()}/profile", "--enable-logging=stderr",
               *options]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {run.returncode}: {run.stderr[-2000:]}")
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def read_png(path):
    """[height, width, 3] of an 8-bit PNG without interlacing."""
    data = pathlib.Path(path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height = (int.from_bytes(body[i : i + 4], "big") for i in (0, 4))
            depth, colour, _, _, interlace = body[8:]
            assert depth == 8 and colour in (2, 6) and interlace == 0
            channels = 3 if colour == 2 else 4
        packed += body if kind == b"IDAT" else b""
        at += size + 12
    rows = numpy.frombuffer(zlib.decompress(packed), numpy.uint8).reshape(height, 1 + width * channels)
    image = numpy.zeros((height, width * channels), numpy.uint8)
    above = numpy.zeros(width * channels, numpy.uint8)
    for y, (filtering, row) in enumerate(zip(rows[:, 0], rows[:, 1:])):
        image[y] = above = unfilter(filtering, row, above, channels)
    return image.reshape(height, width, channels)[:, :, :3]


def unfilter(filtering, row, above, channels):
    if filtering == 0:
        return row
    if filtering == 2:
        return row + above
    if filtering == 1:
        return numpy.cumsum(row.reshape(-1, channels), axis=0, dtype=numpy.uint8).reshape(-1)
    left, upper_left, result = [0] * channels, [0] * channels, []
    for x, (value, up) in enumerate(zip(row.tolist(), above.tolist())):
        c = x % channels
        if filtering == 3:
            predicted = (left[c] + up) // 2
        else:
            slope = left[c] + up - upper_left[c]
            near = [abs(slope - left[c]), abs(slope - up), abs(slope - upper_left[c])]
            predicted = (left[c], up, upper_left[c])[near.index(min(near))]
        left[c], upper_left[c] = (value + predicted) & 255, up
        result.append(left[c])
    return numpy.array(result, numpy.uint8)


def make_report():
    tiny_run.make_teacher("teacher")
    prompts = [{"id": str(i), "prompt": "word " * (1 + i % 7)} for i in range(60)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    pathlib.Path("student.json").write_text(json.dumps(tiny_run.STUDENT))
    pathlib.Path("recipe.json").write_text(json.dumps({"validation": {"share": 0.3, "every": 4}, "precision": "fp32"}))
    tiny_run.distill("generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", "traces",
                     "--max-new-tokens", 24)  # fmt: skip
    tiny_run.distill("train", "--data", "traces", "--student", "student.json", "--out", "run", "--recipe", "recipe.json",
                     "--steps", 24, "--batch-tokens", 512)  # fmt: skip
    return pathlib.Path("run", "report.html").read_text()


def check_the_check():
    """A page that complains is noticed."""
    pathlib.Path("broken.html").write_text("<script>console.error('broken'); undefined.x</script>")
    _, console = browser("--dump-dom", pathlib.Path("broken.html").absolute().as_uri())
    if len(console) < 2:
        sys.exit(f"errors on the console go unnoticed: {console}")


def main():
    check_the_check()
    report = make_report()
    pathlib.Path("looked.html").write_text(report + LOOK)
    dom, _ = browser("--dump-dom", f"--window-size={WIDTH},2000", pathlib.Path("looked.html").absolute().as_uri())
    found = json.loads(dom.split('<pre id="found">')[1].split("</pre>")[0].replace("&amp;", "&").replace("&lt;", "<"))
    _, console = browser("--screenshot=report.png", f"--window-size={WIDTH},{found['height']}",
                         pathlib.Path("run", "report.html").absolute().as_uri())  # fmt: skip
    if console:
        sys.exit(f"on the console: {console}")
    image = read_png("report.png").astype(int)
    if len(found["plots"]) < 7:
        sys.exit(f"only {len(found['plots'])} plots: {found['plots']}")
    for plot in found["plots"]:
        x, y, width, height = (round(plot[key]) for key in ("x", "y", "width", "height"))
        box = image[y : y + height, x : x + width].reshape(-1, 3)
        if box.shape[0] != width * height or width < 300 or height < 100:
            sys.exit(f"{plot['title']}: {width} x {height} at {x}, {y} of {image.shape}")
        colours = numpy.unique(box, axis=0)
        vivid = [colour for colour in plot["colours"] if len(set(colour[4:-1].split(", "))) > 1]  # no shade of grey
        drawn = {}
        for colour in vivid:
            wanted = numpy.array([int(part) for part in colour[4:-1].split(", ")])
            drawn[colour] = int((abs(box - wanted).max(axis=1) <= 24).sum())
        print(f"{plot['title']}: {len(colours)} colours; pixels of its series: {drawn}")
        if len(colours) < 8 or not drawn or min(drawn.values()) < 20:
            sys.exit("the plot is blank or lacks a series")


if __name__ == "__main__":
    CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
    if CHROMIUM is None:
        print("SKIPPED: the report was looked at in no browser: there is no chromium (scripts/setup.sh --browser)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
        os.chdir("/")
