"""The syntax of upload targets: `hf:USER/REPO[/FOLDER]` or `rclone:REMOTE:PATH`. A target holds no secret."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line, visible

_HUB = "hf:"
_PUBLIC_HUB = "hf-public:"
_RCLONE = "rclone:"
# huggingface_hub's own rule (`validate_repo_id`) for each half.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
# rclone: "remote names may contain number, letter, _, -, ., +, @ and space" (https://rclone.org/docs/).
_REMOTE = re.compile(r"[\w.+@][\w.+@ -]*")
SCHEMES = (_HUB, _PUBLIC_HUB, _RCLONE)
_FORMS = "Use hf:USER/REPO[/FOLDER], hf-public:USER/REPO[/FOLDER] or rclone:REMOTE:PATH."


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTarget:
    """A model repository on the Hugging Face hub; a new one is private unless `public`. `folder` may be empty."""

    repo: str
    folder: str = ""
    public: bool = False

    def __str__(self) -> str:
        place = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return f"{_PUBLIC_HUB if self.public else _HUB}{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RcloneTarget:
    """A folder as rclone names it: `REMOTE:PATH`, or the path of a local folder."""

    place: str

    def __str__(self) -> str:
        return f"{_RCLONE}{self.place}"

    @property
    def remote(self) -> str | None:
        """The remote's name in rclone's configuration; None for a local folder."""
        head, colon, _ = self.place.partition(":")
        return head if colon and "/" not in head else None

    def below(self, *names: str) -> str:
        """Return a path below the target in rclone's syntax."""
        rest = "/".join(name for name in names if name)
        if not rest:
            return self.place
        joint = "" if self.place.endswith((":", "/")) else "/"
        return f"{self.place}{joint}{rest}"


Target = HubTarget | RcloneTarget


def parse(text: str) -> Target:
    """Parse a target that the user typed. Raise BadInputError."""
    if visible(text) != text:
        raise _unusable(text, "it contains control characters")
    for word in (_HUB, _PUBLIC_HUB):
        if text.startswith(word):
            return _hub(text, text.removeprefix(word), public=word == _PUBLIC_HUB)
    if text.startswith(_RCLONE):
        return _rclone(text, text.removeprefix(_RCLONE))
    raise _unusable(text, "it must begin with hf:, hf-public: or rclone:", _FORMS)


def parse_all(texts: Iterable[str]) -> tuple[Target, ...]:
    """Parse targets in order, without duplicates. Raise BadInputError."""
    return tuple(dict.fromkeys(parse(text) for text in texts))


def _hub(text: str, place: str, *, public: bool) -> HubTarget:
    user, _, rest = place.strip("/").partition("/")
    repo, _, folder = rest.partition("/")
    for name in (user, repo):
        if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
            raise _unusable(text, f"{one_line(name)!r} is not a name on the hub" if name else "USER/REPO is missing")
    if any(part in {"", ".", "..", ".git"} for part in folder.split("/")) and folder:
        raise _unusable(text, f"{one_line(folder)!r} is not a folder of a repository")
    return HubTarget(repo=f"{user}/{repo}", folder=folder, public=public)


def _rclone(text: str, place: str) -> RcloneTarget:
    if not place:
        raise _unusable(text, "the remote is missing")
    if place.startswith(":") or ("," in place.partition(":")[0] and "/" not in place.partition(":")[0]):
        # Such a target would put keys into records and argument lists.
        hint = "Set the remote up with `rclone config`, or by RCLONE_CONFIG_ variables, and use its name."
        raise _unusable(text.partition(",")[0], "it configures a remote on the fly", hint)
    target = RcloneTarget(place=place)
    if target.remote is None and not place.startswith("/"):
        hint = f"Use rclone:REMOTE:{shlex.quote(place)}, or an absolute local path."
        raise _unusable(text, "it names no remote", hint)
    if target.remote is not None and not _REMOTE.fullmatch(target.remote):
        raise _unusable(text, f"{one_line(target.remote)!r} is not a name of a remote")
    if ".." in place.partition(":")[2].split("/") or ".." in place.split("/"):
        raise _unusable(text, "its path contains `..`")
    return RcloneTarget(place=place.rstrip("/") or "/")


def _unusable(text: str, why: str, hint: str = _FORMS) -> BadInputError:
    return BadInputError(f"{one_line(text)!r} cannot be uploaded to: {why}", hint=hint)
