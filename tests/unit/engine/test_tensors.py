"""Safetensors files: wholeness, finiteness, metadata."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensor_files import file_bytes, with_header, write

from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header, rewrite_metadata

ONE = struct.pack("<f", 1.0)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


class TestHeader:
    def test_a_whole_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.safetensors", {"a": ("F32", ONE), "b": ("BF16", b"\0\0" * 9)}, {"title": "x"})
        header = read_header(path)
        assert dict(header.metadata) == {"title": "x"}
        assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
            "a": ("F32", (1,)),
            "b": ("BF16", (9,)),
        }
        assert header.main_dtype() == "BF16"

    def test_a_file_without_tensors(self, tmp_path: Path) -> None:
        header = read_header(write(tmp_path / "a.safetensors", {}))
        assert (dict(header.tensors), header.main_dtype()) == ({}, None)

    def test_a_file_cut_anywhere_is_broken(self, tmp_path: Path) -> None:
        whole = file_bytes({"a": ("F32", ONE * 3), "b": ("F16", b"\0\0" * 2)}, {"title": "x"})
        path = tmp_path / "a.safetensors"
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(BrokenFileError) as caught:
                read_header(path)
            assert str(path) in caught.value.message

    def test_a_file_that_is_too_long_is_broken(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(file_bytes({"a": ("F32", ONE)}) + b"\0")
        with pytest.raises(BrokenFileError, match="bytes instead of"):
            read_header(path)

    def test_missing_files_and_directories(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing.safetensors", tmp_path):
            with pytest.raises(BrokenFileError, match="cannot be read"):
                read_header(path)

    @pytest.mark.parametrize(
        "content",
        [
            with_header([]),
            with_header("text"),
            with_header({"a": 5}),
            with_header({"a": []}),
            with_header({"a": {}}),
            with_header({"__metadata__": ["a"]}),
            with_header({"__metadata__": {"a": 1}}),
            with_header({"a": entry(data_offsets=["0", "4"])}, ONE),
            with_header({"a": entry(data_offsets=[0])}, ONE),
            with_header({"a": entry(data_offsets=[0.0, 4.0])}, ONE),
            with_header({"a": entry(data_offsets=[-4, 4])}, ONE),
            with_header({"a": entry(data_offsets=[4, 0])}, b""),
            with_header({"a": entry(shape=[2])}, ONE),
            with_header({"a": entry(shape="1")}, ONE),
            with_header({"a": entry(shape=[-1])}, ONE),
            with_header({"a": entry(dtype=7)}, ONE),
            with_header({"a": entry(data_offsets=[0, 3])}, b"abc"),
            (8).to_bytes(8, "little") + b"\xff\xfe\x00\x80{}{}",
            (60_000).to_bytes(8, "little") + b"[" * 60_000,
            (2**63).to_bytes(8, "little") + b"{}",
            b"PK\x03\x04 some zip file",
            b"<html>404</html>",
            b"",
        ],
    )
    def test_what_is_no_safetensors_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        with pytest.raises(BrokenFileError):
            read_header(path)

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
                )
            ),
        )
    )
    def test_any_json_is_a_header_or_broken(self, entries: object) -> None:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(with_header(entries))
            file.flush()
            try:
                header = read_header(Path(file.name))
            except BrokenFileError:
                return
            assert all(tensor.begin == tensor.end for tensor in header.tensors.values())


def pack(letter: str) -> Callable[[float], bytes]:
    return lambda value: struct.pack(f"<{letter}", value)


def bits(width: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=width, max_size=width)


def as_float(dtype: str, raw: bytes) -> float:
    """The number by the standard library's own reading; a bfloat16 is the upper half of a float32."""
    match dtype:
        case "F64":
            return float(struct.unpack("<d", raw)[0])
        case "F32":
            return float(struct.unpack("<f", raw)[0])
        case "F16":
            return float(struct.unpack("<e", raw)[0])
        case _:
            return float(struct.unpack("<f", b"\0\0" + raw)[0])


WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INFINITY = {
    "F64": struct.pack("<d", math.inf),
    "F32": struct.pack("<f", math.inf),
    "F16": struct.pack("<e", math.inf),
    "BF16": b"\x80\x7f",
}


def bad_tensor(dtype: str, raw: bytes) -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory) / "a.safetensors", {"first": ("F32", ONE), "it": (dtype, raw)})
        return first_non_finite(path, read_header(path))


class TestFiniteness:
    @pytest.mark.parametrize("dtype", list(WIDTH))
    @given(data=st.data())
    def test_any_bits_are_judged_as_ieee_does(self, dtype: str, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(bits(WIDTH[dtype]), min_size=1, max_size=8))
        finite = all(math.isfinite(as_float(dtype, raw)) for raw in numbers)
        assert bad_tensor(dtype, b"".join(numbers)) == (None if finite else "it")

    @pytest.mark.parametrize("dtype", ["F16", "BF16"])
    def test_every_16_bit_number(self, dtype: str, tmp_path: Path) -> None:
        every = [number.to_bytes(2, "little") for number in range(65_536)]
        path = tmp_path / "a.safetensors"
        finite = [raw for raw in every if math.isfinite(as_float(dtype, raw))]
        write(path, {"it": (dtype, b"".join(finite))})
        assert first_non_finite(path, read_header(path)) is None
        rest = [raw for raw in every if not math.isfinite(as_float(dtype, raw))]
        assert len(rest) == {"F16": 2048, "BF16": 256}[dtype]
        for raw in rest[::37]:
            assert bad_tensor(dtype, raw) == "it"

    @pytest.mark.parametrize(
        ("dtype", "raw"),
        [
            ("F32", struct.pack("<f", 3.4028234e38)),
            ("F32", struct.pack("<f", -3.4028234e38)),
            ("F32", struct.pack("<f", 1e-45)),
            ("F64", struct.pack("<d", 1.7976931348623157e308)),
            ("F64", struct.pack("<d", 5e-324)),
            ("F16", struct.pack("<e", 65504.0)),
            ("F16", struct.pack("<e", 6e-8)),
            ("BF16", b"\x7f\x7f"),
            ("BF16", b"\x01\x00"),
        ],
    )
    def test_the_largest_and_smallest_numbers_are_finite(self, dtype: str, raw: bytes) -> None:
        assert bad_tensor(dtype, raw * 3) is None

    @pytest.mark.parametrize("dtype", list(WIDTH))
    @pytest.mark.parametrize("position", [0, 1, 2, 500, 998, 999])
    def test_one_bad_number_among_many(self, dtype: str, position: int) -> None:
        numbers = [b"\0" * WIDTH[dtype]] * 1000
        for bad in (INFINITY[dtype], INFINITY[dtype][:-1] + bytes([INFINITY[dtype][-1] | 0x80])):
            numbers[position] = bad
            assert bad_tensor(dtype, b"".join(numbers)) == "it"

    @example(payload=1, negative=False)
    @example(payload=2**52 - 1, negative=True)
    @given(payload=st.integers(1, 2**52 - 1), negative=st.booleans())
    def test_every_payload_of_a_nan(self, payload: int, negative: bool) -> None:
        raw = ((2047 << 52) | payload | (negative << 63)).to_bytes(8, "little")
        assert bad_tensor("F64", raw) == "it"

    def test_integers_and_fp8_are_not_judged(self) -> None:
        assert bad_tensor("I64", b"\xff" * 8) is None
        assert bad_tensor("F8_E4M3", b"\xff" * 8) is None


class TestMetadata:
    @given(
        changes=st.dictionaries(
            st.text(max_size=8), st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4
        )
    )
    def test_the_tensors_stay_byte_for_byte(self, changes: dict[str, str]) -> None:
        changes = {key: value for key, value in changes.items() if not any(0xD800 <= ord(c) < 0xE000 for c in key)}
        raw = {"a": ("F32", bytes(range(80))), "b": ("BF16", bytes(range(100, 106)))}
        with tempfile.TemporaryDirectory() as directory:
            source = write(Path(directory) / "source", raw, {"title": "old", "author": "me"})
            target = Path(directory) / "target"
            rewrite_metadata(source, target, changes)
            header = read_header(target)
            content = target.read_bytes()
            assert dict(header.metadata) == {"title": "old", "author": "me", **changes}
            assert header.data_begins % 8 == 0
            for name, (_, data) in raw.items():
                tensor = header.tensors[name]
                begin = header.data_begins + tensor.begin
                assert content[begin : begin + len(data)] == data

    def test_a_file_without_metadata_gets_some(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a", {"a": ("F32", ONE)})
        rewrite_metadata(source, tmp_path / "b", {"title": "new"})
        assert dict(read_header(tmp_path / "b").metadata) == {"title": "new"}

    def test_an_existing_file_is_not_replaced(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a", {"a": ("F32", ONE)})
        (tmp_path / "b").write_text("precious")
        with pytest.raises(FileExistsError):
            rewrite_metadata(source, tmp_path / "b", {})
        assert (tmp_path / "b").read_text() == "precious"

    def test_the_header_is_json_that_others_read(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a", {"a": ("F32", ONE)})
        rewrite_metadata(source, tmp_path / "b", {"title": "夜"})
        content = (tmp_path / "b").read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert json.loads(content[8 : 8 + length])["__metadata__"] == {"title": "夜"}
