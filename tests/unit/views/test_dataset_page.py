from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from views.datasets import PICTURES, check_of, inventory, inventory_of, items_of, mixed, problem, subset_of
from views.markup import HOSTILE, harmless, parsed, words_of
from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import GUIDE_READING, Problem, Severity, SubsetInventory
from wan_train.dataset.previews import MOST_BYTES, Preview
from wan_train.dataset.scan import Check
from wan_train.views.dataset_page.page import page
from wan_train.views.dataset_page.selection import MOST_CARDS, Contents, Selection, choose, problems_by_item


def ahead_of(check: Check) -> Layout:
    assert check.inventory is not None
    return layout_of(check.inventory, epochs=10, accumulation=1, image_to_video=False)


def page_of(check: Check, *, captions: dict[Path, str] | None = None, jpeg: bytes = b"\xff\xd8") -> str:
    ahead = ahead_of(check)
    selection = choose(ahead, problems_by_item(check, ahead))
    paths = [one.item.path for sizes in selection.datasets for size in sizes for one in size.shown]
    contents = Contents(
        previews={path: Preview(jpeg=jpeg, width=24, height=16) for path in paths}, captions=captions or {}
    )
    return page(check, ahead, selection, contents)


def cards(document: Element) -> list[Element]:
    return [each for each in document.iter("li") if "card" in (each.get("class") or "").split()]


def test_every_file_is_a_card_under_its_size() -> None:
    document = parsed(page_of(check_of(mixed())))
    headings = [words_of(each) for each in document.iter("h3")]
    assert headings[:2] == ["960x960 · 8 pictures", "1280x720 · 5 pictures"]
    assert len(cards(document)) == 20
    assert {words_of(one.find(".//bdi")) for one in cards(document)} >= {"0.png", "16.png", "2.mp4"}  # type: ignore[arg-type]  each has one


def test_the_crop_is_drawn_over_the_picture_in_its_own_pixels() -> None:
    document = parsed(page_of(check_of(inventory_of([(3000, 300)]))))
    (svg,) = [each for each in document.iter() if each.tag.endswith("svg")]
    (rect,) = [each for each in svg.iter() if each.tag.endswith("rect")]
    assert svg.get("viewBox") == "0 0 3000 300"
    # 1920x480 of 4800x480 is two fifths, in the middle.
    assert [float(rect.get(key) or "") for key in ("x", "y", "width", "height")] == [900, 0, 1200, 300]
    assert "60 % cut away, left and right" in words_of(document)


def test_a_picture_that_is_trained_whole_has_no_frame() -> None:
    text = page_of(check_of(inventory_of([(960, 960)])))
    assert "<svg" not in text
    assert "not cropped" in text


def test_counts_and_steps_are_on_top() -> None:
    document = parsed(page_of(check_of(mixed())))
    facts = {words_of(each[0]): words_of(each[1]) for each in document.iter("div") if len(each) and each[0].tag == "dt"}
    ahead = ahead_of(check_of(mixed()))
    assert facts["Files"] == "2020 with caption"
    assert facts["Steps per epoch"] == str(ahead.steps_per_epoch)
    assert facts["Total steps"].startswith(f"{ahead.steps:,}")


def test_problems_are_on_top_and_at_their_pictures() -> None:
    check = check_of(
        inventory_of([(960, 960)] * 3),
        problem(PICTURES / "1.png", "is odd", severity=Severity.STOPS),
        problem(PICTURES / "2.txt", "says nothing"),
        problem(PICTURES / "gone.png", "is gone"),
        problem(None, "is wrong everywhere"),
    )
    document = parsed(page_of(check))
    whole, good, stopping, captioned = words_of(document), *cards(document)
    for what in ("is odd", "says nothing", "is gone", "is wrong everywhere"):
        assert what in whole
    assert "is odd" in words_of(stopping)
    assert "says nothing" in words_of(captioned)
    assert stopping.get("class") == "card stops"
    assert good.get("class") == "card"
    links = {each.get("href") for each in document.iter("a")}
    assert {f"#{stopping.get('id')}", f"#{captioned.get('id')}"} <= links


def test_every_link_leads_to_one_place_of_the_page() -> None:
    found = items_of([(960, 960), (640, 480)])
    twice = inventory(
        SubsetInventory(subset=subset_of(), items=found), SubsetInventory(subset=subset_of(1), items=found)
    )
    document = parsed(page_of(check_of(twice, problem(PICTURES / "0.png"))))
    ids = Counter(each.get("id") for each in document.iter() if each.get("id"))
    assert set(ids.values()) == {1}
    links = [each.get("href") or "" for each in document.iter("a")]
    assert all(link.removeprefix("#") in ids for link in links)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_stay_words(text: str) -> None:
    name = text.replace("/", "|").replace("{", "").replace("\0", "")
    path = PICTURES / f"{name}0.png"
    check = check_of(
        inventory_of([(960, 960)], name=f"{name}{{}}.png"), problem(path, f"is {text}", fix=f"Mend {text}")
    )
    written = page_of(check, captions={path: text})
    assert_harmless(written)
    assert not any(character in written for character in "\x1b\0\x07\u202e\u202c\u2028\ufffe")


@given(text=st.text(), name=st.text(st.characters(exclude_characters="/\0{}"), min_size=1, max_size=40))
def test_any_words_make_a_valid_page(text: str, name: str) -> None:
    path = PICTURES / f"{name}0.png"
    check = check_of(inventory_of([(960, 960)], name=f"{name}{{}}.png"), problem(path, text, fix=text))
    assert_harmless(page_of(check, captions={path: text}))


def assert_harmless(written: str) -> None:
    assert len(cards(harmless(written))) == 1


def test_pictures_have_words_for_those_who_do_not_see_them() -> None:
    document = parsed(page_of(check_of(mixed())))
    pictures = list(document.iter("img"))
    assert len(pictures) == 20
    assert all(each.get("alt") for each in pictures)
    assert document.get("lang") == "en"
    assert len(list(document.iter("h1"))) == 1


def test_lines_of_a_caption_are_kept_and_long_ones_cut() -> None:
    check = check_of(inventory_of([(960, 960), (960, 960)]))
    captions = {PICTURES / "0.png": "one\ntwo", PICTURES / "1.png": "x" * 3000}
    first, second = [words_of(each) for each in cards(parsed(page_of(check, captions=captions)))]
    assert "one\ntwo" in first
    assert "x" * 1000 + "…" in second
    assert "x" * 1001 not in second


def test_a_large_dataset_makes_a_page_of_bounded_size_that_says_so() -> None:
    sizes = [(960, 960)] * 9000 + [(1920, 1080)] * 990 + [(300, 900)] * 10
    troubles = [problem(PICTURES / f"{number}.png") for number in range(8990, 9000)]
    check = check_of(inventory_of(sizes), *troubles)
    captions = {PICTURES / f"{number}.png": "猫" * 4000 for number in range(10_000)}
    written = page_of(check, captions=captions, jpeg=b"x" * MOST_BYTES)
    assert len(written.encode()) < 12_000_000
    document = parsed(written)
    assert len(cards(document)) <= MOST_CARDS
    text = words_of(document)
    assert f"{len(cards(document))} of 10,000 files are shown" in text
    left = sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) more of this size", text))
    assert left + len(cards(document)) == 10_000
    # Those with problems are shown first, and every size is.
    assert sum("harms" in (card.get("class") or "") for card in cards(document)) == 10
    assert sum("300x900" in words_of(card) for card in cards(document)) == 10


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    most=st.integers(1, 200),
    troubled=st.sets(st.integers(0, 40), max_size=5),
)
def test_a_selection_never_shows_more_than_it_may_and_loses_nobody(
    counts: list[int], most: int, troubled: set[int]
) -> None:
    # The trained size of 16 by N*16 without enlargement is itself, so each is a size of its own.
    sizes = [(480 + 16 * place, 400) for place, count in enumerate(counts) for _ in range(count)]
    ahead = ahead_of(check_of(inventory_of(sizes)))
    troubles = {PICTURES / f"{number}.png": [problem(None)] for number in troubled}
    chosen = choose(ahead, troubles, most=most)
    assert chosen.shown <= most
    assert chosen.shown == most or chosen.shown >= min(len(sizes), most - len(counts))
    assert sum(len(each.shown) + each.left for each in chosen.datasets[0]) == len(sizes)
    assert chosen.is_whole == (chosen.shown == len(sizes))


def test_when_not_all_are_shown_the_worst_are() -> None:
    sizes = [(960, 960)] * 20 + [(960, 966)]
    check = check_of(
        inventory_of(sizes),
        problem(PICTURES / "3.png", severity=Severity.NOTE),
        problem(PICTURES / "7.png", severity=Severity.HARMS),
        problem(PICTURES / "9.txt", severity=Severity.STOPS),
    )
    ahead = ahead_of(check)

    def shown(most: int) -> list[str]:
        chosen = choose(ahead, problems_by_item(check, ahead), most=most)
        return [one.item.path.name for size in chosen.datasets[0] for one in size.shown]

    assert shown(1) == ["9.png"]
    assert shown(2) == ["7.png", "9.png"]
    assert shown(4) == ["3.png", "7.png", "9.png", "20.png"]


def test_a_dataset_toml_that_stops_makes_a_page_of_its_problems() -> None:
    stop = Problem(kind=problem(None).kind, severity=Severity.STOPS, key="resolution", what="is 7", fix="Use 960")
    check = Check(
        config=Path("/d/dataset.toml"), is_written=True, reading=GUIDE_READING, inventory=None, problems=(stop,)
    )
    document = parsed(page(check, None, Selection(datasets=()), Contents(previews={}, captions={})))
    assert "resolution: is 7. Use 960." in words_of(document)
    assert cards(document) == []
