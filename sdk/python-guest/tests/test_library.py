"""The library outside a component: what needs no host. `python -m unittest discover -s sdk/python-guest`"""

import struct
import sys
import unittest
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import tessera_guest as tessera  # noqa: E402
from tessera_guest import graph, host, log_writer  # noqa: E402
from tessera_guest.marking import _marked, marked  # noqa: E402


class Tensors(unittest.TestCase):
    def test_values_come_back_as_they_went_in(self):
        for dtype, values in [
            ("fp16", [1.5, -2.0]),
            ("fp32", [1.5, float("-inf")]),
            ("fp64", [1.5, 1e300]),
            ("u8", [0, 255]),
            ("i32", [-(2**31), 2**31 - 1]),
            ("i64", [-(2**63), 2**63 - 1]),
        ]:
            tensor = tessera.Tensor([2, 1], values, dtype)
            self.assertEqual((tensor.values(), len(tensor)), (values, 2), dtype)
            self.assertEqual(tessera.Tensor([2], tensor.data, dtype).values(), values, dtype)

    def test_rows_make_a_matrix(self):
        tensor = tessera.Tensor.of_rows([[1, 2], [3, 4], [5, 6]])
        self.assertEqual((tensor.dims, tensor.rows()), ([3, 2], [[1, 2], [3, 4], [5, 6]]))
        with self.assertRaisesRegex(tessera.InvalidInput, "row 1 has 1 values, row 0 has 2"):
            tessera.Tensor.of_rows([[1, 2], [3]])

    def test_what_does_not_fit_is_refused(self):
        for dims, values, dtype, words in [
            ([2, 3], [0] * 5, "fp32", r"shape \[2, 3\] needs 6 values, but 5 values \(20 bytes of fp32\)"),
            ([1], ["1"], "fp32", "not all values are numbers that fit fp32"),
            ([1], [256], "u8", "not all values are numbers that fit u8"),
            ([1], [1.5], "i64", "not all values are numbers that fit i64"),
            ([2], b"abc", "fp16", "needs 2 values"),
        ]:
            with self.assertRaisesRegex(tessera.InvalidInput, words):
                tessera.Tensor(dims, values, dtype)
        with self.assertRaisesRegex(tessera.ModelError, "there is no element type 'float'; there are fp16"):
            tessera.Tensor([1], [1], "float")


class Requests(unittest.TestCase):
    def test_a_body_is_read_as_what_it_is(self):
        request = tessera.Request("invocations", "Application/JSON; charset=utf-8", '{"a": [1]}')
        self.assertEqual((request.media_type, request.json()), ("application/json", {"a": [1]}))
        self.assertEqual(list(request.chunks()), [b'{"a": [1]}'])

    def test_a_mistake_is_reported_with_its_place(self):
        for body, words in [
            (b"", "the body is empty"),
            (b"a\xff", "not UTF-8 text: invalid byte at offset 1"),
            (b'{"a":\n [1, 2', "failed to parse the JSON body: .* line 2 column"),
            (b"[" * 100_000, "failed to parse the JSON body"),
        ]:
            with self.assertRaisesRegex(tessera.InvalidInput, words):
                tessera.Request(body=body).json()


class Answers(unittest.TestCase):
    def test_what_json_cannot_express_is_an_error(self):
        for value in [object(), float("nan")]:
            with self.assertRaises(tessera.ModelError):
                tessera.Response.json(value)


class OfGraphs(unittest.TestCase):
    def test_outputs_are_unpacked_from_the_two_lists_of_the_host(self):
        # fp32 [1, 1] "y" and i64 [1] "label", whose values begin at a multiple of 16
        heads = [1, 4, 2, 1, 1, 1, ord("y"), 6, 8, 1, 1, 5, int.from_bytes(b"labe", "little"), ord("l")]
        data = struct.pack("<f12xq", 0.5, -7)
        types = Enum("TensorType", "FP16 FP32 FP64 BF16 U8 I32 I64", start=0)
        with mock.patch.object(host, "TensorType", types):
            outputs = dict(graph._unpacked(heads, data))
        self.assertEqual(list(outputs), ["y", "label"])
        self.assertEqual((outputs["y"].dims, outputs["y"].dtype, outputs["y"].data), ([1, 1], "fp32", data[:4]))
        self.assertEqual((outputs["label"].dims, outputs["label"].dtype), ([1], "i64"))
        self.assertEqual(outputs["label"].data, struct.pack("<q", -7))


class Output(unittest.TestCase):
    def test_what_is_printed_becomes_lines_of_the_log(self):
        lines = []
        absent = log_writer.host.logging
        log_writer.host.logging = SimpleNamespace(Level={"INFO": "info"}, log=lambda *line: lines.append(line))
        try:
            writer = log_writer.LogWriter("INFO")
            print("one", 1, file=writer)
            print("two\nthree", end="", file=writer)
            self.assertEqual(lines, [("info", "one 1"), ("info", "two")])
            writer.flush()
            self.assertEqual(lines[2:], [("info", "three")])
        finally:
            log_writer.host.logging = absent


class Endpoints(unittest.TestCase):
    def test_one_class_is_the_endpoint(self):
        _marked.clear()
        with self.assertRaisesRegex(RuntimeError, "no class is marked"):
            marked()

        @tessera.endpoint
        class One:
            def predict(self, request):
                return request

        self.assertIs(marked(), One)

        @tessera.endpoint
        class Other(One):
            pass

        self.assertIs(marked(), Other)
        with self.assertRaisesRegex(TypeError, "needs a method `predict"):
            tessera.endpoint(object)

    def test_methods_that_would_have_to_be_awaited_are_refused(self):
        class Later:
            async def init(self, package):
                pass

            def predict(self, request):
                return request

        with self.assertRaisesRegex(TypeError, "Later.init is `async def`: make it a plain method"):
            tessera.endpoint(Later)

        class Stream:
            async def predict(self, request):
                yield request

        with self.assertRaisesRegex(TypeError, "Stream.predict is `async def`"):
            tessera.endpoint(Stream)

    def test_the_host_is_missed_by_name(self):
        with self.assertRaisesRegex(RuntimeError, "assets.read asks the host"):
            tessera.Package().asset("labels.txt")


if __name__ == "__main__":
    unittest.main()
