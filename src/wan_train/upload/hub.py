"""The Hugging Face hub as a target: one commit for all due files, verified by the hub's own checksums."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wan_train.base.huggingface import Answer, Token, answer_of, token_of, variable_problem
from wan_train.base.text import one_line
from wan_train.upload.card import CARD
from wan_train.upload.destinations import HubTarget
from wan_train.upload.store import Payload, Stored, StoreError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 60.0
"""For one response; the library itself would wait forever."""
_MOST_PATHS = 500
"""In one request; the hub refuses more than 1,000."""
_CHECK_BRANCH = "wan-train-check"
_CHECK_FILE = ".wan-train-check"
_NEW_TOKEN = "Make one with write access at https://huggingface.co/settings/tokens, then: `export HF_TOKEN=...`"  # noqa: S105  not a token
_UNAUTHORIZED, _FORBIDDEN, _MISSING, _TOO_MANY = 401, 403, 404, 429
_FULL = frozenset({402, 413, 507})
_SAYS_FULL = re.compile(r"quota|storage|limit (?:reached|exceeded)", re.IGNORECASE)
_TRANSIENT_FROM = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """A file on the hub: with its `sha256` if it is in LFS, else with git's own digest only."""

    sha256: str | None
    blob: str

    def holds(self, payload: Payload) -> bool:
        return self.sha256 == payload.sha256 if self.sha256 is not None else self.blob == payload.blob

    def is_of(self, digests: frozenset[str]) -> bool:
        return (self.sha256 or self.blob) in digests


@dataclass(slots=True, kw_only=True)
class HubStore:
    """One repository. Token, endpoint and proxies come from `environ`, as the hub's own client finds them."""

    target: HubTarget
    run_id: str
    environ: Mapping[str, str]

    def check(self) -> None:
        """Write and remove a small file on a separate branch, so that the repository's history stays unchanged."""
        self._token()
        from huggingface_hub import CommitOperationAdd

        repo = self.target.repo
        self._create()
        self._ask(lambda api: api.create_branch(repo, branch=_CHECK_BRANCH, exist_ok=True))
        content = [CommitOperationAdd(_CHECK_FILE, b"wan-train can write here.\n")]
        try:
            self._ask(lambda api: api.create_commit(repo, content, commit_message="A check", revision=_CHECK_BRANCH))
        finally:
            self._ask(lambda api: api.delete_branch(repo, branch=_CHECK_BRANCH))

    def put(self, payloads: Sequence[Payload], ours: frozenset[str]) -> Iterator[Stored]:
        """See the protocol. Make one commit, or none if the hub has everything.

        Files go into the target's folder. If other files have their names, all go into a folder named after the run.
        """
        self._token()
        from huggingface_hub import CommitOperationAdd

        folders = [self.target.folder, "/".join(part for part in (self.target.folder, self.run_id) if part)]
        remote = self._remote([_at(folder, payload.name) for folder in folders for payload in payloads])
        files = [payload for payload in payloads if payload.name != CARD]
        cards = [payload for payload in payloads if payload.name == CARD]  # a repository often has its own card
        places = {**self._places(files, folders, remote, ours), **self._places(cards, folders, remote, ours)}
        due = [payload for payload in payloads if not _holds(remote, places[payload.name], payload)]
        if due:
            for payload in due:
                payload.check()
            operations = [
                CommitOperationAdd(
                    places[each.name], each.source if isinstance(each.source, bytes) else str(each.source)
                )
                for each in due
            ]
            message = f"{self.run_id}: {len(due)} file{'' if len(due) == 1 else 's'} by wan-train"
            self._ask(lambda api: api.create_commit(self.target.repo, operations, commit_message=message))
            remote = self._remote([places[payload.name] for payload in payloads])
            for payload in due:
                payload.check()
        wrong = [payload for payload in payloads if not _holds(remote, places[payload.name], payload)]
        yield from (Stored(payload=each, where=places[each.name]) for each in payloads if each not in wrong)
        if wrong:
            reason = f"the hub's copy differs from the uploaded file: {one_line(places[wrong[0].name])}"
            raise StoreError(self.target, reason, hint=None, final=False)

    def _places(
        self, payloads: Sequence[Payload], folders: Sequence[str], remote: Mapping[str, _Remote], ours: frozenset[str]
    ) -> dict[str, str]:
        """Return the path of each payload, in the first folder where no other file has one of their names."""
        for folder in folders:
            places = {payload.name: _at(folder, payload.name) for payload in payloads}
            if not any(
                place in remote and not remote[place].holds(payload) and not remote[place].is_of(ours)
                for payload, place in ((each, places[each.name]) for each in payloads)
            ):
                return places
        raise StoreError(
            self.target,
            f"files with the same names already exist there and in {one_line(folders[-1])}",
            hint=f"Give it a folder of its own: --upload {self.target}/FOLDER",
        )

    def _remote(self, paths: Sequence[str]) -> dict[str, _Remote]:
        """Return the hub's files at these paths. Create the repository if it is missing."""
        found: dict[str, _Remote] = {}
        for begin in range(0, len(paths), _MOST_PATHS):
            some = list(paths[begin : begin + _MOST_PATHS])
            try:
                infos = self._ask(lambda api, some=some: api.get_paths_info(self.target.repo, some))  # type: ignore[misc]  # bound in the loop
            except _MissingError:
                self._create()
                return {}
            for info in infos:
                blob, lfs = getattr(info, "blob_id", None), getattr(info, "lfs", None)
                if blob is not None:  # else it is a folder
                    found[info.path] = _Remote(sha256=lfs.sha256 if lfs is not None else None, blob=blob)
        return found

    def _create(self) -> None:
        private = not self.target.public
        self._ask(lambda api: api.create_repo(self.target.repo, private=private, exist_ok=True))

    def _ask(self, ask: Callable[[HfApi], _T]) -> _T:
        """Call the library once. Raise StoreError for any exception."""
        token = self._token()
        api = _api(token, self.environ)
        try:
            return ask(api)
        except Exception as error:  # noqa: BLE001  httpx's, the hub's or Python's, by version; `_explain` rewords them
            raise self._explain(api, token, error) from None

    def _token(self) -> Token:
        problem = variable_problem(self.environ)
        if problem is not None:  # huggingface_hub cannot be imported with it
            raise StoreError(self.target, problem.reason, hint=problem.hint)
        token = token_of(self.environ)
        if token is None:
            raise StoreError(self.target, "there is no token for the Hugging Face hub", hint=_NEW_TOKEN)
        return token

    def _explain(self, api: HfApi, token: Token, error: Exception) -> StoreError:
        answer = answer_of(error)
        said = one_line(str(getattr(error, "server_message", None) or ""))
        status = answer.status
        words = f"HTTP {status}" + (f": {said}" if said else "")
        if status in _FULL or (status == _FORBIDDEN and _SAYS_FULL.search(said)):
            hint = "Free some space or get more: https://huggingface.co/settings/billing"
            return StoreError(self.target, f"no space left for this account ({words})", hint=hint)
        if status == _UNAUTHORIZED:
            return StoreError(
                self.target, f"the hub refuses the token from {token.source} (HTTP {status})", hint=_NEW_TOKEN
            )
        if status == _FORBIDDEN:
            return self._forbidden(api, token, words)
        if status == _MISSING:
            return _MissingError(self.target, f"not found on the hub ({words})", hint=None)
        if status is None and "OfflineMode" in answer.words:
            return StoreError(self.target, "HF_HUB_OFFLINE is set", hint="`unset HF_HUB_OFFLINE`")
        if status is not None and status < _TRANSIENT_FROM and status != _TOO_MANY:
            return StoreError(self.target, f"the hub rejected the request ({words})", hint=None)
        reason = words if status is not None else _without_status(answer, error)
        hint = "Check the network, HF_ENDPOINT and proxies."
        return StoreError(self.target, reason, hint=hint, final=False, retry_after=answer.retry_after)

    def _forbidden(self, api: HfApi, token: Token, words: str) -> StoreError:
        """Return why a token may not write: it belongs to another account, or has no write access."""
        owner = self.target.repo.partition("/")[0]
        try:
            account: Mapping[str, Any] = api.whoami()
        except Exception:  # noqa: BLE001  it only adds detail; see `_ask`
            account = {}
        name = account.get("name")
        names = [name, *(each.get("name") for each in account.get("orgs") or ())]
        if isinstance(name, str) and owner not in names:
            reason = f"the repository is {owner}'s, and the token from {token.source} is {one_line(name)}'s"
            hint = f"Use --upload hf:{one_line(name)}/{self.target.repo.partition('/')[2]}, or a token of {owner}'s."
            return StoreError(self.target, reason, hint=hint)
        reason = f"the token from {token.source} may not write there ({words})"
        return StoreError(self.target, reason, hint=_NEW_TOKEN)


class _MissingError(StoreError):
    """The hub answered 404."""


def _api(token: Token, environ: Mapping[str, str]) -> HfApi:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings quote addresses
    huggingface_hub.get_session().timeout = _TIMEOUT_SECONDS
    endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None
    return huggingface_hub.HfApi(endpoint=endpoint, token=token.value, library_name="wan-train")


def _without_status(answer: Answer, error: Exception) -> str:
    """Quote only the library's own message (ValueError): it is short and has no address. Client exceptions have one."""
    return one_line(str(error)) if type(error) is ValueError else one_line(answer.words)


def _holds(remote: Mapping[str, _Remote], place: str, payload: Payload) -> bool:
    return place in remote and remote[place].holds(payload)


def _at(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
