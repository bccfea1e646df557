"""What a box learns from Vast about itself, and what it is told when Vast does not help."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.vast_api import INSTANCE, KEY, Mood, VastApi, vast_api
from wan_train.box.rental import Rental, read_rental
from wan_train.box.vast import Asking, Power, Vast, VastError


@pytest.fixture
def api() -> Iterator[VastApi]:
    with vast_api() as made:
        yield made


def box(api: VastApi, **changes: str) -> Vast:
    found = Vast.of_this_box({**api.environ(), **changes}, api.address)
    assert found is not None
    return found


def failure(vast: Vast, seconds: float = 5.0) -> str:
    with pytest.raises(VastError) as caught:
        vast.rental(seconds=seconds)
    assert KEY not in repr(caught.value)
    return str(caught.value)


class TestThisBox:
    @pytest.mark.parametrize(
        "environ",
        [
            {},
            {"CONTAINER_ID": INSTANCE},
            {"CONTAINER_API_KEY": KEY},
            {"CONTAINER_ID": "../users", "CONTAINER_API_KEY": KEY},
            {"CONTAINER_ID": "²", "CONTAINER_API_KEY": KEY},
        ],
    )
    def test_a_box_of_somebody_else_asks_nobody(self, environ: dict[str, str]) -> None:
        assert Vast.of_this_box(environ, "https://console.vast.ai") is None

    def test_its_key_is_in_no_text_of_it(self, api: VastApi) -> None:
        assert KEY not in repr(box(api))


class TestRental:
    def test_a_box_learns_its_price_and_end(self, api: VastApi) -> None:
        api.row["end_date"] = 1_800_000_000
        assert box(api).rental() == Rental(per_hour=0.93, ends=1_800_000_000.0, lowest_bid=0.5)
        assert api.asked == [f"GET /api/v0/instances/{INSTANCE}/ key"]

    def test_an_interruptible_box_knows_its_bid(self, api: VastApi) -> None:
        api.row.update(is_bid=True, min_bid=0.85)
        rental = box(api).rental()
        assert (rental.bid, rental.lowest_bid, rental.is_near_the_market) == (0.9, 0.85, True)

    def test_a_bid_far_above_the_market_is_none_to_warn_of(self, api: VastApi) -> None:
        api.row.update(is_bid=True, min_bid=0.5)
        assert not box(api).rental().is_near_the_market

    @pytest.mark.parametrize(
        "answer",
        [None, [], "free", {}, {"instances": []}, {"instances": {"dph_total": "0.93"}}]
        + [{"instances": {"dph_total": value}} for value in (0, -1, True, float("nan"), float("inf"), None)],
    )
    def test_what_has_no_price_is_no_rental(self, answer: object) -> None:
        assert read_rental(answer) is None


class TestFailures:
    def test_a_refused_key(self, api: VastApi) -> None:
        assert failure(box(api, CONTAINER_API_KEY="wrong")) == (
            "Vast refused this box's key (CONTAINER_API_KEY, status 401)"
        )

    def test_a_key_that_no_header_can_carry(self, api: VastApi) -> None:
        vast = box(api, CONTAINER_API_KEY="secret\nkey")
        told = failure(vast)
        assert told == "CONTAINER_API_KEY is not a key"
        assert not api.asked

    def test_an_unknown_box(self, api: VastApi) -> None:
        assert "does not know this box" in failure(box(api, CONTAINER_ID="5"))

    def test_a_broken_server(self, api: VastApi) -> None:
        api.mood = Mood.BREAKS
        assert failure(box(api)) == "Vast answered with status 500"

    def test_html(self, api: VastApi) -> None:
        api.mood = Mood.HTML
        assert failure(box(api)) == "Vast's answer is not JSON"

    def test_an_answer_without_a_price(self, api: VastApi) -> None:
        api.row.clear()
        assert failure(box(api)) == "Vast's answer has no price for this box"

    @pytest.mark.parametrize("mood", [Mood.HANGS, Mood.DRIPS])
    def test_one_that_hangs_or_drips_is_left(self, api: VastApi, mood: Mood) -> None:
        api.mood = mood
        assert failure(box(api), seconds=0.2) == "Vast did not answer within 0.2 s"

    def test_the_key_goes_nowhere_else(self, api: VastApi) -> None:
        api.mood = Mood.REDIRECTS
        assert failure(box(api)) == "Vast answered with status 302"
        assert len(api.asked) == 1

    def test_nobody_there(self) -> None:
        vast = Vast(address="http://127.0.0.1:9", instance=INSTANCE, key=KEY)
        assert failure(vast).startswith("Vast cannot be reached: ")


def refusal(order: Callable[[], None]) -> str:
    with pytest.raises(VastError) as caught:
        order()
    assert KEY not in repr(caught.value)
    return str(caught.value)


class TestPower:
    def test_a_box_stops_itself_and_its_state_proves_it(self, api: VastApi) -> None:
        vast = box(api)
        assert vast.power() is Power.ON
        vast.stop()
        assert vast.power() is Power.GOING
        assert not api.is_running
        assert api.asked[1] == f"PUT /api/v0/instances/{INSTANCE}/ key"

    def test_a_destroyed_box_is_gone_and_may_be_destroyed_again(self, api: VastApi) -> None:
        vast = box(api)
        vast.destroy()
        assert vast.power() is Power.GONE
        vast.destroy()
        assert api.asked[0] == f"DELETE /api/v0/instances/{INSTANCE}/ key"

    def test_an_accepted_stop_that_does_nothing_is_seen(self, api: VastApi) -> None:
        api.mood = Mood.DEAF
        box(api).stop()
        assert box(api).power() is Power.ON

    @pytest.mark.parametrize(
        ("mood", "told"),
        [
            (Mood.REFUSES, "Vast refused: no such ask"),
            (Mood.BREAKS, "Vast answered with status 500"),
            (Mood.BUSY, "Vast answered with status 429"),
            (Mood.HTML, "Vast's answer is not JSON"),
        ],
    )
    def test_an_order_that_was_not_taken(self, api: VastApi, mood: Mood, told: str) -> None:
        api.mood = mood
        assert refusal(box(api).stop) == told
        assert refusal(box(api).destroy) == told
        assert api.is_running

    def test_a_refused_key_stops_nothing(self, api: VastApi) -> None:
        assert "refused this box's key" in refusal(box(api, CONTAINER_API_KEY="wrong").stop)
        assert api.is_running


class TestAsking:
    def test_the_answer_comes_when_it_comes(self, api: VastApi) -> None:
        assert Asking(box(api)).wait() == box(api).rental()

    def test_nobody_waits_for_one_that_hangs(self, api: VastApi) -> None:
        api.mood = Mood.HANGS
        assert Asking(box(api)).answer is None

    def test_a_failure_is_an_answer_too(self, api: VastApi) -> None:
        api.mood = Mood.BREAKS
        assert str(Asking(box(api)).wait()) == "Vast answered with status 500"
