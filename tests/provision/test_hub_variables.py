"""Variables with which the hub cannot be asked are named with what to type, before its client stumbles over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from provision_world import World, write_program

from wan_train.base.errors import NotReadyError
from wan_train.base.huggingface import Answer, token_of, variable_problem
from wan_train.provision.hub import Hub, HubError, explain
from wan_train.provision.trainer_steps import tokenizer_step
from wan_train.provision.work import Work

REPO = "Wan-AI/Wan2.1-T2V-14B"
SPOKEN = [
    ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
    ("HF_HUB_ETAG_TIMEOUT", "1.5"),
    ("HF_ENDPOINT", "hf-mirror.com"),
    ("HF_ENDPOINT", "ftp://hf-mirror.com"),
    ("HF_ENDPOINT", "https://"),
    ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ("ALL_PROXY", "socks5://127.0.0.1:1080"),
    ("https_proxy", "socks5h://127.0.0.1:1080"),
    ("HTTP_PROXY", "host:port:3128"),
    ("HTTPS_PROXY", "htp://host:3128"),
    ("HF_TOKEN", "hf_tökenwithumlauts"),
    ("HF_TOKEN", "hf_one\nhf_two"),
]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own: no token, no proxies."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SSL_CERT_FILE", "HF_ENDPOINT", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


@pytest.mark.parametrize(("name", "value"), SPOKEN)
def test_each_is_named_with_its_fix(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(HubError) as caught:
        Hub().describe(REPO, "a.json")
    assert caught.value.final
    assert name in caught.value.reason
    assert f"unset {name}" in (caught.value.hint or "")
    assert "hf_" not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_ENDPOINT": "https://hf-mirror.com/"},
        {"HTTP_PROXY": "proxy.example.org:3128", "https_proxy": "http://me:word@proxy:3128"},
        {"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": "*"},
        {"HF_TOKEN": "hf_abcdefghij"},
        {"HF_ENDPOINT": "", "SSL_CERT_FILE": "", "HTTPS_PROXY": ""},
    ],
)
def test_what_works_is_left_alone(environ: dict[str, str], tmp_path: Path) -> None:
    assert variable_problem({"HF_HOME": str(tmp_path), **environ}) is None


def test_a_token_that_is_refused_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known model is public: without the token it works."""
    refused = Answer(status=401, words="")
    (tmp_path / "token").write_text("hf_fromthefile\n")
    error = explain(REPO, "a.json", refused)
    assert str(tmp_path / "token") in error.reason
    assert "need no token: `hf auth logout`" in (error.hint or "")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_old")
    assert "HUGGING_FACE_HUB_TOKEN" in explain(REPO, "a.json", refused).reason
    monkeypatch.setenv("HF_TOKEN", "hf_new")
    error = explain(REPO, "a.json", refused)
    assert "token from HF_TOKEN" in error.reason
    assert "`unset HF_TOKEN`" in (error.hint or "")
    assert "hf_" not in f"{error.reason} {error.hint}"


def test_no_token_is_no_token(tmp_path: Path) -> None:
    assert token_of({"HF_HOME": str(tmp_path), "HF_TOKEN": " "}) is None
    assert "token from" not in explain(REPO, "a.json", Answer(status=401, words="")).reason


def test_the_tokenizers_own_failure_is_explained(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's Python fetches it, with a library of another age than ours."""
    monkeypatch.setenv("HF_HUB_ENABLE_HF_TRANSFER", "1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    python = tmp_path / "python"
    said = "OSError: Could not find a suitable TLS CA certificate bundle, invalid path: /nowhere"
    write_program(python, f"#!/bin/sh\necho transfer $HF_HUB_ENABLE_HF_TRANSFER\necho '{said}'\nexit 1\n")
    step = tokenizer_step(lambda: python)
    assert step.apply is not None
    with pytest.raises(NotReadyError) as caught:
        step.apply(work)
    assert "transfer 0" in caught.value.message
    assert "REQUESTS_CA_BUNDLE" in caught.value.message
    assert "unset SSL_CERT_FILE REQUESTS_CA_BUNDLE" in (caught.value.hint or "")


def test_a_number_that_is_none_is_not_called_a_bug(world: World) -> None:
    done = world.provision("--check", "--models-only", env={"HF_HUB_DOWNLOAD_TIMEOUT": "abc"})
    assert done.returncode == 3
    assert "HF_HUB_DOWNLOAD_TIMEOUT is 'abc'" in " ".join(done.stdout.split())
    assert "unset HF_HUB_DOWNLOAD_TIMEOUT" in done.stderr
    assert "bug in wan-train" not in done.stderr
