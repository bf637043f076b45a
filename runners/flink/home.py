"""The Java side: found, or assembled once by Maven.

It lies in the folder that METERLINE_FLINK_HOME names, or in the user's cache under the hash of `pom.xml`, so that
another version of Meterline has another one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

POM = Path(__file__).parent / "pom.xml"
JAVA = (11, 17)
# Beam's job server sends every jar of its class path along with each job, 270 MB, and Flink keeps a copy in five
# places; only what lies under this name is left out. All of the cluster has these jars already.
JARS = Path("gradle") / "wrapper"


class FlinkError(Exception):
    """Flink cannot be used: something is missing, or a part of the cluster does not answer.

    Args:
      code: The exit code of a command that it ends.
    """

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.code = code


def home() -> Path:
    named = os.environ.get("METERLINE_FLINK_HOME")
    if named:
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "meterline" / f"flink-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def java() -> Path:
    """The Java to run Flink with.

    Raises:
      FlinkError: there is none, or of a version that Beam's Flink runner does not run on.
    """
    wanted = " or ".join(map(str, JAVA))
    named = os.environ.get("JAVA_HOME")
    found = Path(named) / "bin" / "java" if named else shutil.which("java")
    if not found or not Path(found).exists():
        where = f"JAVA_HOME is {named}, which has no bin/java" if named else "there is no java on the PATH"
        raise FlinkError(
            f"Flink needs Java {wanted}, and {where}. Install one (Debian: apt install openjdk-17-jre-headless)"
        )
    asked = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', asked.stderr + asked.stdout)
    if version is None or int(version[1]) not in JAVA:
        said = version[1] if version else (asked.stderr or asked.stdout).strip()
        raise FlinkError(f"Flink needs Java {wanted}, but {found} is Java {said}. Set JAVA_HOME to a Java {wanted}")
    return Path(found)


def is_assembled(folder: Path) -> bool:
    # The description is put there last.
    kept = folder / "pom.xml"
    return kept.exists() and kept.read_bytes() == POM.read_bytes()


def find_maven() -> str | None:
    """The Maven that assembles the Java side; None where it is assembled already.

    Raises:
      FlinkError: there is none.
    """
    folder = home()
    if is_assembled(folder):
        return None
    if found := shutil.which("mvn"):
        return found
    raise FlinkError(
        "the Java side has to be assembled, and there is no Maven (mvn) on the PATH. Install it (Debian: apt install "
        f"maven), or set METERLINE_FLINK_HOME to a folder where it was assembled before; looked in {folder}"
    )


def assemble(say: Callable[[str], None]) -> Path:
    """The folder with the Java side's jars, which are fetched if they are not there.

    Args:
      say: Told how far it is, now and then.

    Raises:
      FlinkError: Maven is missing, or could not fetch them.
    """
    folder, maven = home(), find_maven()
    if maven is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"assembling Flink and Beam's runner (once, about 270 MB) in {folder}")
    # Made elsewhere and moved at the end: what is there is whole, and two that assemble at once do not meet.
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _fetch(maven, made, say)
        shutil.copyfile(POM, made / "pom.xml")
        if is_assembled(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        made.chmod(0o755)
        made.rename(folder)
    except OSError as error:
        raise FlinkError(f"the Java side cannot be kept in {folder}: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _fetch(maven: str, folder: Path, say: Callable[[str], None]) -> None:
    log = folder.parent / f"{folder.name}.log"
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder / JARS}"]
    with log.open("wb") as output:
        running = subprocess.Popen(
            [maven, "-B", "-f", str(POM), *goal], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        told = time.monotonic()
        try:
            while running.poll() is None:
                time.sleep(0.5)
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    fetched = log.read_bytes().count(b"Downloaded from")
                    jars = len(list((folder / JARS).glob("*.jar")))
                    done = f"{jars} jars in place" if jars else f"{fetched:,} files fetched"
                    say(done if jars or fetched else "working out what is needed")
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
    if running.returncode != 0 or not any((folder / JARS).glob("*.jar")):
        errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
        raise FlinkError("Maven could not assemble the Java side:\n" + "\n".join(errors[:8]) + f"\nall of it: {log}")
    log.unlink()
