"""Names of cards, as typed, as rented, as the driver says them."""

from __future__ import annotations

import pytest

from wan_train.launch.gpu_names import is_card, names_for, parse_gpus, same_card
from wan_train.launch.model import GpuWant


def test_kinds_with_and_without_a_number() -> None:
    assert parse_gpus("RTX5090:2, H100") == (GpuWant(name="RTX5090", count=2), GpuWant(name="H100", count=1))
    assert parse_gpus("RTX_4090") == (GpuWant(name="RTX 4090", count=1),)


@pytest.mark.parametrize(
    "text", ["", "RTX5090:0", "RTX5090:x", "RTX5090:", ":2", "H100,,", "RTX5090:17", 'a"b', "\x1b[2J"]
)
def test_what_is_no_kind(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("want", "name", "is_it"),
    [
        ("RTX5090", "RTX 5090", True),
        ("rtx 5090", "RTX 5090", True),
        ("H100", "H100 SXM", True),
        ("H100 PCIE", "H100 SXM", False),
        ("RTX4090", "RTX 4090D", False),
        ("RTX4070", "RTX 4070 Ti", False),
        ("RTX6000", "RTX 6000Ada", False),
        ("RTX PRO 6000", "RTX PRO 6000 WS", True),
        ("A10", "A100 SXM4", False),
    ],
)
def test_a_want_is_served_by_its_card_alone(want: str, name: str, is_it: bool) -> None:
    assert is_card(want, name) is is_it


def test_a_want_is_searched_under_every_form() -> None:
    assert names_for("H100") == ("H100 NVL", "H100 PCIE", "H100 SXM")
    assert names_for("RTX 9999") == ("RTX 9999",)


@pytest.mark.parametrize(
    ("rented", "driver", "same"),
    [
        ("RTX 5090", "NVIDIA GeForce RTX 5090", True),
        ("RTX 5090", "NVIDIA GeForce RTX 5090 Laptop GPU", False),
        ("RTX 5090", "NVIDIA GeForce RTX 4090", False),
        ("RTX 4090D", "NVIDIA GeForce RTX 4090 D", True),
        ("H100 SXM", "NVIDIA H100 80GB HBM3", True),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("RTX 6000Ada", "NVIDIA RTX 6000 Ada Generation", True),
        ("RTX A6000", "NVIDIA RTX A6000", True),
        ("RTX PRO 6000 WS", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", True),
        ("L40S", "NVIDIA L40S", True),
        ("L40S", "NVIDIA L40", False),
        ("RTX 5090", "", False),
    ],
)
def test_the_drivers_name_is_compared_with_the_rented_one(rented: str, driver: str, same: bool) -> None:
    assert same_card(rented, driver) is same
