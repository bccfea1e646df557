"""What a laptop learns from Vast's account API, and what it says when Vast does not help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.vast_account import KEY, Account, box_row, offer_row, vast_account
from support.vast_api import Mood
from wan_train.base.errors import NotReadyError
from wan_train.box.vast import Api, VastError
from wan_train.launch.market import KEY_FILE, KEY_VARIABLE, Power, VastMarket, account_key
from wan_train.launch.model import GpuWant, Wants


@pytest.fixture
def account() -> Iterator[Account]:
    with vast_account() as made:
        yield made


@dataclass
class Pauses:
    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def market(account: Account, pauses: Pauses | None = None, key: str = KEY) -> VastMarket:
    return VastMarket(api=Api(address=account.address, key=key, key_name=KEY_VARIABLE), pause=pauses or Pauses())


def wants(*gpus: str, spot: bool = False, bid: float | None = None) -> Wants:
    parsed = tuple(GpuWant(name=gpu.partition(":")[0], count=int(gpu.partition(":")[2] or 1)) for gpu in gpus)
    return Wants(gpus=parsed, spot=spot, bid=bid, max_hours=12, disk_gb=150)


class TestKey:
    def test_the_variable_comes_before_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / KEY_FILE
        path.parent.mkdir(parents=True)
        path.write_text("of-the-file\n")
        assert account_key({KEY_VARIABLE: "of-the-variable"}, tmp_path) == "of-the-variable"
        assert account_key({}, tmp_path) == "of-the-file"

    def test_none_is_said_with_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(NotReadyError, match=r"no Vast\.ai key") as caught:
            account_key({}, tmp_path)
        assert KEY_VARIABLE in (caught.value.hint or "")

    def test_a_folder_in_its_place_is_none(self, tmp_path: Path) -> None:
        (tmp_path / KEY_FILE).mkdir(parents=True)
        with pytest.raises(NotReadyError):
            account_key({}, tmp_path)


class TestOffers:
    def test_a_card_and_its_number_are_what_was_asked_for_and_the_cheapest_is_first(self, account: Account) -> None:
        account.offers = [
            offer_row(1, "RTX 5090", 1, 0.60),
            offer_row(2, "RTX 5090", 2, 0.90),
            offer_row(3, "RTX 4090", 1, 0.30),
            offer_row(4, "RTX 5090", 1, 0.45),
        ]
        found = market(account).offers(wants("RTX5090"))
        assert [(offer.id, offer.gpu, offer.gpus, offer.per_hour) for offer in found] == [
            ("4", "RTX 5090", 1, 0.45),
            ("1", "RTX 5090", 1, 0.60),
        ]

    def test_a_search_that_lost_its_filters_brings_no_other_card(self, account: Account) -> None:
        account.filters = False
        account.offers = [
            offer_row(1, "RTX 5090", 2, 0.10),
            offer_row(2, "RTX 5090D", 1, 0.10),
            offer_row(3, "RTX 5090", 1, 0.10, disk_space=20.0),
            offer_row(4, "RTX 5090", 1, 0.10, rentable=False),
            offer_row(5, "RTX 5090", 1, 0.80),
        ]
        assert [offer.id for offer in market(account).offers(wants("RTX 5090:1"))] == ["5"]

    def test_several_kinds_are_one_list(self, account: Account) -> None:
        account.offers = [
            offer_row(1, "H100 SXM", 1, 2.0),
            offer_row(2, "RTX 5090", 2, 0.9),
            offer_row(3, "L4", 1, 0.2),
        ]
        assert [offer.id for offer in market(account).offers(wants("RTX5090:2", "H100"))] == ["2", "1"]

    def test_without_a_kind_every_card_that_can_train_counts(self, account: Account) -> None:
        account.offers = [
            offer_row(1, "RTX 3060", 1, 0.05, gpu_ram=12_288),
            offer_row(2, "RTX 3090", 1, 0.2, gpu_ram=24_576),
        ]
        assert [offer.id for offer in market(account).offers(wants())] == ["2"]

    def test_a_bid_is_a_little_above_the_lowest_and_its_price_has_the_disk(self, account: Account) -> None:
        account.offers = [offer_row(1, "RTX 5090", 1, 0.60, min_bid=0.2)]
        [offer] = market(account).offers(wants("RTX5090", spot=True))
        assert (offer.bid, offer.is_spot, round(offer.per_hour, 3)) == (0.221, True, 0.241)
        assert account.bodies[0]["type"] == "bid"

    def test_a_bid_below_the_lowest_wins_nothing(self, account: Account) -> None:
        account.offers = [offer_row(1, "RTX 5090", 1, 0.60, min_bid=0.2)]
        assert market(account).offers(wants("RTX5090", spot=True, bid=0.19)) == ()
        assert market(account).offers(wants("RTX5090", spot=True, bid=0.25))[0].bid == 0.25

    @pytest.mark.parametrize(
        "change",
        [{"id": None}, {"gpu_name": 5}, {"num_gpus": "1"}, {"dph_total": 0}, {"dph_total": -1}, {"gpu_ram": None}],
    )
    def test_an_offer_that_cannot_be_read_is_left_out(self, account: Account, change: dict[str, object]) -> None:
        account.filters = False
        account.offers = [offer_row(1, "RTX 5090", 1, 0.60) | change]
        assert market(account).offers(wants("RTX5090")) == ()

    def test_hostile_words_are_made_harmless(self, account: Account) -> None:
        account.offers = [offer_row(1, "RTX 5090", 1, 0.60, geolocation="\x1b[2Jhere")]
        assert "\x1b" not in market(account).offers(wants("RTX5090"))[0].where


class TestBoxes:
    def test_all_pages_are_read(self, account: Account) -> None:
        account.page = 2
        account.boxes = [box_row(number, f"wt-{number}") for number in range(5)]
        assert [box.id for box in market(account).boxes()] == ["0", "1", "2", "3", "4"]

    @pytest.mark.parametrize(
        ("said", "meant", "power"),
        [
            ("running", "running", Power.RUNNING),
            ("loading", "running", Power.COMING),
            (None, "running", Power.COMING),
            ("created", "running", Power.COMING),
            ("exited", "running", Power.DOWN),
            ("running", "stopped", Power.DOWN),
            ("something new", "running", Power.UNKNOWN),
        ],
    )
    def test_every_state_has_a_meaning(self, account: Account, said: object, meant: str, power: Power) -> None:
        account.boxes = [box_row(1, "wt-1", actual_status=said, intended_status=meant)]
        assert market(account).boxes()[0].power is power

    def test_a_name_is_not_part_of_another(self, account: Account) -> None:
        account.boxes = [
            box_row(1, "wt-1-ab12-head"),
            box_row(2, "wt-10"),
            box_row(3, "wt-1"),
            box_row(4, "") | {"label": None},
        ]
        assert [box.id for box in market(account).boxes() if box.is_of("wt-1")] == ["1", "3"]

    @pytest.mark.parametrize("mood", [Mood.HTML, Mood.REFUSES])
    def test_no_list_is_not_an_empty_list(self, account: Account, mood: Mood) -> None:
        account.moods = [mood]
        with pytest.raises(VastError):
            market(account).boxes()


class TestStart:
    def test_a_stopped_box_runs_again_and_no_other(self, account: Account) -> None:
        down = {"intended_status": "stopped", "actual_status": "exited"}
        account.boxes = [box_row(1, "wt-1-head", **down), box_row(2, "wt-2-head", **down)]
        market(account).start("wt-1")
        assert [box.power for box in market(account).boxes()] == [Power.RUNNING, Power.DOWN]

    def test_refused(self, account: Account) -> None:
        account.boxes = [box_row(1, "wt-1-head", intended_status="stopped")]
        account.moods = [Mood.WELL, Mood.REFUSES]
        with pytest.raises(VastError, match="no such box"):
            market(account).start("wt-1")


class TestDestroy:
    def test_every_box_of_the_name_ends_and_no_other(self, account: Account) -> None:
        account.boxes = [box_row(1, "wt-1-head"), box_row(2, "wt-1-head"), box_row(3, "wt-2-head"), box_row(4, "mine")]
        market(account).destroy("wt-1")
        assert [row["id"] for row in account.boxes] == [3, 4]

    def test_answered_and_still_there_is_no_end(self, account: Account) -> None:
        account.boxes, account.survives = [box_row(1, "wt-1")], True
        with pytest.raises(VastError, match="still lists 1 of wt-1"):
            market(account).destroy("wt-1")

    def test_what_is_gone_already_is_gone(self, account: Account) -> None:
        market(account).destroy("wt-1")
        assert account.asked.count("GET /api/v1/instances/") == 2

    def test_refused(self, account: Account) -> None:
        account.boxes, account.moods = [box_row(1, "wt-1")], [Mood.WELL, Mood.REFUSES]
        with pytest.raises(VastError, match="Vast refused: no such box"):
            market(account).destroy("wt-1")


class TestFaults:
    def test_too_many_questions_wait_as_long_as_vast_says(self, account: Account) -> None:
        account.moods, pauses = [Mood.BUSY, Mood.BUSY], Pauses()
        assert market(account, pauses).boxes() == ()
        assert pauses.seconds == [3.0, 3.0]

    def test_nobody_waits_an_hour(self, account: Account) -> None:
        account.moods, account.retry_after, pauses = [Mood.BUSY], "3600", Pauses()
        with pytest.raises(VastError, match="status 429"):
            market(account, pauses).boxes()
        assert pauses.seconds == []

    def test_a_broken_server_is_asked_again_and_then_reported(self, account: Account) -> None:
        account.moods, pauses = [Mood.BREAKS, Mood.BREAKS], Pauses()
        assert market(account, pauses).boxes() == ()
        assert pauses.seconds == [1.0, 2.0]
        account.moods = [Mood.BREAKS] * 9
        with pytest.raises(VastError, match="status 500"):
            market(account).boxes()

    def test_a_wrong_key_is_asked_once_and_never_shown(self, account: Account) -> None:
        with pytest.raises(VastError, match="refused the key") as caught:
            market(account, key="a-wrong-secret").boxes()
        assert "a-wrong-secret" not in repr(caught.value)
        assert len(account.asked) == 1
        assert KEY not in repr(market(account))

    def test_the_key_follows_no_redirect(self, account: Account) -> None:
        account.moods = [Mood.REDIRECTS]
        with pytest.raises(VastError, match="status 302"):
            market(account).boxes()
        assert len(account.asked) == 1

    def test_credit(self, account: Account) -> None:
        assert market(account).credit() == 12.5
