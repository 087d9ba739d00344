"""A browser of the Chromium family with real keys and real pixels, over its debugging pipe: no driver is needed."""

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--hide-scrollbars",
)
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "ArrowRight": (39, "")}
# the browser reads commands from its descriptor 3 and answers on 4
START = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 90  # seconds; a busy machine starts it slowly


def find():
    """Its path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def tab(browser, profile):
    """A Tab of a browser that is ended afterwards."""
    commands, answers = os.pipe(), os.pipe()
    pipes = [str(commands[0]), str(answers[1])]
    call = [sys.executable, "-c", START, *pipes, browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(call, pass_fds=(commands[0], answers[1]), stderr=subprocess.DEVNULL) as process:
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Tab(commands[1], answers[0])
        finally:
            process.terminate()
            os.close(commands[1])
            os.close(answers[0])


class Tab:
    """One page: what a person sees of it and does with it."""

    def __init__(self, commands, answers):
        self.commands, self.answers, self.rest, self.count, self.session = commands, answers, b"", 0, None
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def ask(self, method, **params):
        """Send a command; its result."""
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        command = {"id": self.count, "method": method, "params": params, **session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            message = self._message(until)
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
        raise TimeoutError(method)

    def _message(self, until):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], max(0, until - time.monotonic()))
            part = os.read(self.answers, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser says nothing")
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def show(self, path, width, height, mobile):
        """Load a file at a window's or a phone's size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && [...document.images].every(i => i.complete)")

    def run(self, script):
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Wait until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < until, script
            time.sleep(0.05)

    def press(self, key):
        """Press and release a key of the keyboard."""
        code, text = KEYS[key]
        same = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **same)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **same)

    def photo(self):
        """What is on the screen, [height, width, rgb]."""
        data = base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
