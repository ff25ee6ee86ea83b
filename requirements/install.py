"""Make .venv and install the lock file of its Python into it; called by `make`.

Standard library only, and readable by old Pythons: it runs before all else.
"""

import os
import shutil
import subprocess
import sys
import threading
import time

SUPPORTED = ("3.11", "3.12", "3.13")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
HEARTBEAT_S = 15
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def fail(message):
    """Print one line and leave with the exit code of bad input."""
    sys.stderr.write("make: " + message + "\n")
    sys.exit(2)


def run(what, *command):
    """Run a command, with a line whenever it may have said nothing for a while."""
    print("== " + what, flush=True)
    start = time.monotonic()
    done = threading.Event()

    def beat():
        while not done.wait(HEARTBEAT_S):
            seconds = time.monotonic() - start
            print(f"   ... {what.lower()} ({seconds:.0f} s so far)", flush=True)

    threading.Thread(target=beat, daemon=True).start()
    try:
        code = subprocess.call(command, cwd=ROOT)
    finally:
        done.set()
    if code:
        fail(f"failed: {' '.join(command)}")


def version_of_venv():
    """Return the Python version of a .venv that works, or None."""
    try:
        command = [PYTHON, "-c", "import pip; " + VERSION]
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.decode().strip()


def make_venv():
    """Make .venv with the Python that runs this script."""
    version = ".".join(map(str, sys.version_info[:2]))
    if version not in SUPPORTED:
        fail(
            f"Python {version} at {sys.executable} is not supported: install 3.11, "
            "3.12 or 3.13, or name one: make PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401 - only whether it is there
    except ImportError:
        fail(
            f"Python {version} at {sys.executable} cannot make virtual environments: "
            f"run 'sudo apt install python{version}-venv', then make again"
        )
    shutil.rmtree(VENV, ignore_errors=True)
    run("Making .venv with Python " + version, sys.executable, "-m", "venv", VENV)


def main():
    """Make or keep .venv, install the lock and the project, write the stamp."""
    version = version_of_venv()
    if version not in SUPPORTED:
        make_venv()
        version = version_of_venv()
    lock = os.path.join("requirements", f"py{version}.txt")
    pip = (PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps")
    # Not byte-compiled: Python does that on first import, for what is used.
    run("Installing " + lock, *pip, "--no-compile", "-r", lock)
    run("Installing metarl", *pip, "--no-build-isolation", "--editable", ".")
    with open(os.path.join(VENV, ".installed"), "w", encoding="utf-8") as stamp:
        stamp.write(lock + "\n")
    print("== .venv is ready", flush=True)


if __name__ == "__main__":
    main()
