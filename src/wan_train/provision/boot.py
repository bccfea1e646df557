"""What a rented box runs when it starts: `wan-train resume --all`, then the guardian.

Vast stops an outbid box without notice, keeps its files, and starts the container again when the bid wins. Its own
images run supervisord, which reads `/etc/supervisor/conf.d`; in other images `/root/onstart.sh` runs at each start
(vast-ai/docs: guides/reference/faq/instances.mdx; vast-ai/base-image: ROOT/etc/vast_boot.d).
"""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.files import can_be_written, write_whole
from wan_train.base.settings import Settings
from wan_train.provision.steps import Finding, State, Step, ready, warning
from wan_train.provision.work import Work

_BEGIN, _END = "# >>> wan-train >>>", "# <<< wan-train <<<"
_CALL = "from wan_train.cli.main import main; main()"

# Constant, and without a log file of its own: one line that supervisord cannot use, such as a log in a missing folder,
# keeps supervisord and the box's Jupyter from starting. startsecs=0: without open duties it exits with success at once.
# A killed one is restarted. Trainings run in their own sessions, so stopping this group spares them.
_PROGRAM = """\
[program:wan-train-resume]
command=/bin/sh {script}
autostart=true
autorestart=unexpected
startsecs=0
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile=NONE
"""

# At each start, /.provisioning exists from supervisord's start until the image's own provisioning ends.
_SCRIPT = """\
#!/bin/sh
# Written by `wan-train provision`: resumes unfinished runs when this box starts, and does what is due after them.
mkdir -p {logs} && exec >>{logs}/boot.log 2>&1
date
while [ -e {marker} ]; do sleep 2; done
{exports}{python} -c {call} resume --all
until {python} -m wan_train.guardian.program; do sleep 5; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """The boot unit. `root` is `/`; `variables` are what `resume` needs to find the runs and the trainer's caches."""

    logs: Path
    variables: Mapping[str, str]
    root: Path = Path("/")

    def step(self) -> Step:
        return Step("boot", "Resume after a restart", self.check, apply=self.apply)

    def check(self) -> Finding:
        files = self._files()
        # Exports are ignored: another shell may lack HF_HOME or a setting; the box starts with the recorded ones.
        wrong = [path for path, content in files.items() if _without_exports(_read(path)) != _without_exports(content)]
        if not wrong:
            return ready(f"unfinished runs resume when the box starts ({next(iter(files))})")
        detail = "unfinished runs do not resume when the box starts"
        closed = next((path.parent for path in wrong if not can_be_written(path.parent)), None)
        if closed is not None:
            return warning(
                f"{detail}: {closed} cannot be written",
                "Provision as root, or run `wan-train resume --all` after each start of the box.",
            )
        return Finding(State.MISSING, detail)

    def apply(self, work: Work) -> None:
        for path, content in self._files().items():
            work.say(f"writing {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            # A symbolic link stays one: Vast's images keep /root/onstart.sh as a link.
            write_whole(path.resolve(), content.encode(errors="surrogateescape"), mode=_mode(path))

    def _files(self) -> dict[Path, str]:
        """The wanted content by path. The on-start script keeps its own lines and gets ours."""
        if self._has_supervisor():
            script = self.root / "opt/supervisor-scripts/wan-train-resume.sh"
            program = _PROGRAM.format(script=shlex.quote(str(script)).replace("%", "%%"))
            return {self.root / "etc/supervisor/conf.d/wan-train-resume.conf": program, script: self._script()}
        script, onstart = self.root / "root/wan-train-resume.sh", self.root / "root/onstart.sh"
        line = f"setsid /bin/sh {shlex.quote(str(script))} </dev/null >/dev/null 2>&1 &"
        return {onstart: _with_block(_read(onstart) or "#!/bin/bash\n", line), script: self._script()}

    def _script(self) -> str:
        return _SCRIPT.format(
            logs=shlex.quote(str(self.logs)),
            marker=shlex.quote(str(self.root / ".provisioning")),
            exports="".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(self.variables.items())),
            python=shlex.quote(sys.executable),
            call=shlex.quote(_CALL),
        )

    def _has_supervisor(self) -> bool:
        """Whether supervisord runs or was set up before. An image launched without its entrypoint never starts it."""
        folder = self.root / "etc/supervisor/conf.d"
        return folder.is_dir() and (
            (folder / "wan-train-resume.conf").exists() or _answers(self.root / "var/run/supervisor.sock")
        )


def is_vast(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this is a Vast.ai container. In images other than Vast's own, SSH shells lack its variables."""
    marks = (root / "root/hasbooted", root / "root/.vast_containerlabel")
    return bool(environ.get("VAST_CONTAINERLABEL")) or any(map(_is_there, marks))


def _is_there(mark: Path) -> bool:
    try:
        return mark.exists()
    except PermissionError:  # not root, so not in Vast's own set-up
        return False


def variables(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of this shell needed when the box starts: our settings and the location of the hub's cache."""
    caches = {name: environ[name] for name in ("HF_HOME", "HF_HUB_CACHE") if environ.get(name)}
    return {**caches, **settings.environment(), "WAN_TRAIN_WORKSPACE": str(settings.workspace)}


def _without_exports(text: str | None) -> list[str]:
    return [line for line in (text or "").splitlines() if not line.startswith("export ")]


def _with_block(text: str, line: str) -> str:
    """The script with our block once, before its own lines: the last of them may never return."""
    before, found, rest = text.partition(f"{_BEGIN}\n")
    if found:
        text = before + rest.partition(f"{_END}\n")[2]
    first, newline, others = text.partition("\n")
    if not first.startswith("#!"):
        first, newline, others = "", "", text
    return f"{first}{newline}{_BEGIN}\n{line}\n{_END}\n{others}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777 if path.exists() else 0o755 if path.suffix == ".sh" else 0o644


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (OSError, ValueError):
            return False
        return True
