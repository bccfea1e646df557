"""Targets as they are typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.errors import BadInputError
from wan_train.upload.destinations import HubTarget, RcloneTarget, parse, parse_all


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("hf:me/cat", HubTarget(repo="me/cat")),
        ("hf:me/cat/loras/two/", HubTarget(repo="me/cat", folder="loras/two")),
        ("hf-public:me/cat", HubTarget(repo="me/cat", public=True)),
        ("rclone:b2:bucket/loras/", RcloneTarget(place="b2:bucket/loras")),
        ("rclone:drive:", RcloneTarget(place="drive:")),
        ("rclone:/mnt/my volume", RcloneTarget(place="/mnt/my volume")),
    ],
)
def test_targets(text: str, target: HubTarget | RcloneTarget) -> None:
    assert parse(text) == target
    assert parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "me/cat", "hf:cat", "hf:me/", "hf:me/c--t", "hf:me/cat/../x", "hf:me/cat.git", "hf:me/cat/.git",
        "rclone:cat", "rclone::s3,env_auth:b", "rclone:s3,key=x:b", "rclone:b2:a/../b", "rclone:-x:b", "hf:me/\x1b[2J",
    ],
)  # fmt: skip
def test_what_cannot_be_a_target(text: str) -> None:
    with pytest.raises(BadInputError, match="cannot be uploaded to"):
        parse(text)


def test_each_target_once() -> None:
    assert parse_all(["hf:me/a", "hf:me/a/", "hf:me/b"]) == (HubTarget(repo="me/a"), HubTarget(repo="me/b"))


@given(st.text(max_size=30))
def test_any_text_is_a_target_or_bad_input(text: str) -> None:
    for scheme in ("hf:", "rclone:", ""):
        try:
            target = parse(f"{scheme}{text}")
        except BadInputError:
            continue
        assert parse(str(target)) == target


def test_paths_below() -> None:
    assert RcloneTarget(place="b2:").below("run", "", "a") == "b2:run/a"
    assert RcloneTarget(place="b2:x").below("run") == "b2:x/run"
    assert RcloneTarget(place="/").below("run") == "/run"
