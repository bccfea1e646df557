"""What stays, what goes and what is made: by example, and by property over folders in any state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_train.caching.decide import WORDS, Decision, Folder, Reason, Wanted, begun, decide
from wan_train.caching.index import CacheFile, CacheIndex, Entry
from wan_train.engine.caches import CacheKind, Contents, clip_name, parse, picture_name, text_name

BOOT = "this boot"
BUCKET = (96, 64)
LATENTS = {"latents_1x8x12_bfloat16": (16, 1, 8, 12)}
TEXT = {"varlen_t5_bfloat16": (7, 4096)}
CAPTION = "a cat"
PARTS = ("picture", "size", "model", "precision", "trainer")


def picture(number: int, **parts: str) -> Wanted:
    name = picture_name(f"p{number}", 640, 480)
    made_from = {"picture": f"sha {number}", "size": "96x64", "model": "vae", "precision": "bfloat16", "trainer": "t"}
    return Wanted(
        key=name, stem=f"p{number}", name=name, bucket=BUCKET, newest_ns=100, made_from={**made_from, **parts}
    )


def caption(number: int, words: str = CAPTION) -> Wanted:
    name = text_name(f"p{number}")
    made_from = {"caption": words, "model": "t5", "precision": "bfloat16", "trainer": "t"}
    return Wanted(key=name, stem=f"p{number}", name=name, captions=(words,), made_from=made_from)


def folder(*items: Wanted, kind: CacheKind = CacheKind.LATENTS, is_clip: bool = False, i2v: bool = False) -> Folder:
    return Folder(
        path=Path("/cache"), kind=kind, is_clip=is_clip, image_to_video=i2v, element="bfloat16", items=tuple(items)
    )


def contents(
    mtime_ns: int = 200, shapes: Mapping[str, tuple[int, ...]] | None = LATENTS, words: str | None = None
) -> Contents:
    return Contents(size=1000, mtime_ns=mtime_ns, shapes=shapes, caption=words)


def index_of(*items: Wanted, files: Mapping[str, Contents] | None = None) -> CacheIndex:
    """As it is after these items were cached and put on record."""
    known = {
        item.key: {name: CacheFile(size=1000, mtime_ns=200) for name in (files or {item.key: None})} for item in items
    }
    return CacheIndex(entries={item.key: Entry(made_from=item.made_from, files=known[item.key]) for item in items})


def look(place: Folder, index: CacheIndex, found: Mapping[str, Contents], **more: bool) -> Decision:
    return decide(place, index, found, boot=BOOT, **more)


class TestPictures:
    def test_on_record_and_unchanged(self) -> None:
        one = picture(1)
        # Older than its picture by the clock: the record knows better.
        assert look(folder(replace(one, newest_ns=999)), index_of(one), {one.key: contents()}).is_settled

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            ("picture", Reason.PICTURE),
            ("size", Reason.SIZE),
            ("model", Reason.MODEL),
            ("precision", Reason.PRECISION),
            ("trainer", Reason.TRAINER),
        ],
    )
    def test_any_part_that_differs(self, part: str, reason: Reason) -> None:
        before, now = picture(1), picture(1, **{part: "another"})
        decision = look(folder(now), index_of(before), {now.key: contents()})
        assert decision.make == {now.key: reason}
        assert decision.remove == {now.key: reason}

    def test_first_frame(self) -> None:
        one, t2v = picture(1), contents()
        i2v = contents(shapes={**LATENTS, "latents_image_1x8x12_bfloat16": (20, 1, 8, 12)})
        assert look(folder(one, i2v=True), index_of(one), {one.key: t2v}).make == {one.key: Reason.TASK}
        assert look(folder(one, i2v=True), index_of(one), {one.key: i2v}).is_settled
        assert look(folder(one), index_of(one), {one.key: i2v}).is_settled

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            (contents(), None),
            (contents(mtime_ns=100), Reason.UNPROVED),
            (contents(shapes=None), Reason.BROKEN),
            (contents(shapes={"latents_1x8x8_bfloat16": (16, 1, 8, 8)}), Reason.SIZE),
            (contents(shapes={"latents_1x8x12_float16": (16, 1, 8, 12)}), Reason.PRECISION),
            (contents(shapes=TEXT), Reason.UNPROVED),
        ],
    )
    def test_made_by_hand(self, found: Contents, reason: Reason | None) -> None:
        one = picture(1)
        for index in (CacheIndex(), index_of(one, files={one.key: contents()})):
            elsewhere = replace(found, size=found.size + 1)  # not the file that is on record
            decision = look(folder(one), index, {one.key: elsewhere})
            assert decision.make == ({} if reason is None else {one.key: reason})

    def test_of_a_picture_that_is_gone(self) -> None:
        one, gone = picture(1), picture(2)
        decision = look(folder(one), index_of(one, gone), {one.key: contents(), gone.key: contents()})
        assert decision.remove == {gone.key: Reason.NO_ITEM}
        assert not decision.make
        assert set(decision.keep) == {one.key}

    def test_what_an_interrupted_caching_left(self) -> None:
        one, other = picture(1), picture(2)
        place = folder(one, other)
        pending = begun(look(place, CacheIndex(), {}), place, CacheIndex(), boot=BOOT)
        found = {one.key: contents(), other.key: contents(shapes=None)}
        assert look(place, pending, found).make == {other.key: Reason.BROKEN}
        # After a power cut a file may have its length and not its contents.
        later = decide(place, pending, found, boot="next boot")
        assert later.make == {one.key: Reason.UNFINISHED, other.key: Reason.BROKEN}

    def test_a_picture_replaced_while_it_was_cached(self) -> None:
        one = picture(1)
        pending = begun(look(folder(one), CacheIndex(), {}), folder(one), CacheIndex(), boot=BOOT)
        now = folder(picture(1, picture="another"))
        assert look(now, pending, {one.key: contents()}, finished=True).make == {one.key: Reason.PICTURE}

    def test_a_file_of_another_name(self) -> None:
        one = picture(1)
        found = {one.key: contents(), "lora_wan.safetensors": contents(shapes=None)}
        decision = look(folder(one), index_of(one), found)
        assert decision.foreign == ("lora_wan.safetensors",)
        assert not decision.remove


class TestCaptions:
    @pytest.mark.parametrize("on_record", [True, False])
    def test_other_words(self, on_record: bool) -> None:
        before, now = caption(1), caption(1, "a dog")
        index = index_of(before) if on_record else CacheIndex()
        found = {now.key: contents(shapes=TEXT, words=CAPTION)}
        assert look(folder(now, kind=CacheKind.TEXT), index, found).make == {now.key: Reason.CAPTION}
        assert look(folder(before, kind=CacheKind.TEXT), index, found).is_settled

    def test_rehearsed_ones_are_of_another_precision(self) -> None:
        one = caption(1)
        found = {one.key: contents(shapes={"varlen_t5_float32": (7, 64)}, words=CAPTION)}
        assert look(folder(one, kind=CacheKind.TEXT), CacheIndex(), found).make == {one.key: Reason.PRECISION}


class TestClips:
    FIRST, SECOND = (clip_name("c", start, 5, BUCKET) for start in (0, 5))
    SHAPES: Mapping[str, tuple[int, ...]] = {"latents_2x8x12_bfloat16": (16, 2, 8, 12)}

    def clip(self, cuts: frozenset[str] | None) -> Wanted:
        return Wanted(key="c", stem="c", name=None, bucket=BUCKET, cuts=cuts, newest_ns=100, made_from={"cuts": "head"})

    def found(self, *names: str) -> dict[str, Contents]:
        return {name: contents(shapes=self.SHAPES) for name in names}

    def test_by_hand_only_when_all_parts_are_there(self) -> None:
        place = folder(self.clip(frozenset({self.FIRST, self.SECOND})), is_clip=True)
        assert look(place, CacheIndex(), self.found(self.FIRST, self.SECOND)).is_settled
        assert look(place, CacheIndex(), self.found(self.FIRST)).make == {"c": Reason.UNPROVED}
        unknown = folder(self.clip(None), is_clip=True)
        assert look(unknown, CacheIndex(), self.found(self.FIRST, self.SECOND)).make == {"c": Reason.UNPROVED}

    def test_after_caching_what_is_there_is_all_there_is(self) -> None:
        place = folder(self.clip(None), is_clip=True)
        pending = begun(look(place, CacheIndex(), {}), place, CacheIndex(), boot=BOOT)
        assert look(place, pending, self.found(self.FIRST)).make == {"c": Reason.UNFINISHED}
        done = look(place, pending, self.found(self.FIRST), finished=True)
        assert done.is_settled
        assert look(place, CacheIndex(entries=done.keep), self.found(self.FIRST)).is_settled
        assert look(place, pending, {}, finished=True).is_settled  # too short for any part

    def test_of_another_resolution(self) -> None:
        place = folder(self.clip(None), is_clip=True)
        wide = clip_name("c", 0, 5, (192, 128))
        known = index_of(self.clip(None), files=self.found(self.FIRST))
        decision = look(place, known, self.found(self.FIRST, wide))
        assert decision.remove == {self.FIRST: Reason.SIZE, wide: Reason.SIZE}

    def test_caches_of_pictures_among_them_are_ours_to_remove(self) -> None:
        place = folder(self.clip(None), is_clip=True)
        known = index_of(self.clip(None), files=self.found(self.FIRST))
        decision = look(place, known, {**self.found(self.FIRST), picture_name("p", 64, 64): contents()})
        assert decision.remove == {picture_name("p", 64, 64): Reason.NO_ITEM}


STEMS = st.sampled_from(["p1", "p2", "p 3", "ü", "a_0064x0064", "c_00000-005_0096x0064"])
NAMES = STEMS.map(lambda stem: picture_name(stem, 640, 480)) | st.sampled_from(
    ["x_wan.safetensors", "_wan.safetensors", clip_name("c", 0, 5, BUCKET)]
)
ITEMS = st.lists(STEMS, unique=True).map(
    lambda stems: tuple(
        replace(
            picture(0, picture=stem), stem=stem, key=picture_name(stem, 640, 480), name=picture_name(stem, 640, 480)
        )
        for stem in stems
    )
)
FILES = st.builds(
    contents,
    mtime_ns=st.sampled_from([50, 200]),
    shapes=st.sampled_from([None, LATENTS, TEXT, {"latents_1x1x1_bfloat16": (16, 1, 1, 1)}]),
)
ENTRIES = st.builds(
    Entry,
    made_from=st.sampled_from([picture(0, picture=stem).made_from for stem in ("p1", "p2", "ü", "old")]),
    files=st.dictionaries(NAMES, st.just(CacheFile(size=1000, mtime_ns=200)), max_size=1),
    begun=st.sampled_from([None, BOOT, "another"]),
)


@settings(max_examples=150)
@given(ITEMS, st.dictionaries(NAMES, ENTRIES), st.dictionaries(NAMES, FILES))
def test_of_any_folder(items: tuple[Wanted, ...], entries: dict[str, Entry], found: dict[str, Contents]) -> None:
    place, index = folder(*items), CacheIndex(entries=entries)
    decision = look(place, index, found)
    wanted = {item.key for item in items}
    if not wanted:
        assert not decision.remove, "an empty dataset loses nothing"
        return
    # Each item is kept or made, never both; each file is kept, removed or a stranger.
    assert decision.keep.keys() | decision.make.keys() == wanted
    assert not decision.keep.keys() & decision.make.keys()
    kept = {name for entry in decision.keep.values() for name in entry.files}
    assert kept | decision.remove.keys() | set(decision.foreign) == found.keys()
    assert not kept & decision.remove.keys()
    assert not decision.remove.keys() & set(decision.foreign)
    # Only what is named like a cache may go, and nothing that cannot be trained stays.
    assert all(parse(name, is_clip=False) or parse(name, is_clip=True) for name in decision.remove)
    assert all(found[name].shapes == LATENTS for name in kept)
    # What is missing is made; after that there is nothing left to do.
    assert all((name in found) != (reason is Reason.NEW) for name, reason in decision.make.items())
    pending = begun(decision, place, index, boot=BOOT)
    left = {name: file for name, file in found.items() if name not in decision.remove}
    after = {**left, **{item.key: contents() for item in items if item.key in decision.make}}
    assert look(place, pending, after, finished=True).make == {}
    assert look(place, pending, after, finished=True).remove == {}


def test_each_reason_has_words() -> None:
    assert set(WORDS) == set(Reason)
