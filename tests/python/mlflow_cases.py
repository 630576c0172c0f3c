"""The requests of the MLflow comparison: what each model of `mlflow_models.py` is asked.

A case is (model, name, body, content type). A body that is not text or bytes is sent as JSON, in Python's dialect of it
(`NaN`, `Infinity`). `DIFFERENCES` names the cases where Tessera answers otherwise on purpose, with its answer and why.
"""

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
NAN, INF = float("nan"), float("inf")
CASES = []


def ask(model, name, body, content_type=JSON):
    CASES.append((model, name, body, content_type))


def split(columns, *rows, **more):
    return {"dataframe_split": {"columns": list(columns), "data": [list(row) for row in rows], **more}}


def records(*rows):
    return {"dataframe_records": list(rows)}


# ---- the envelope: content types, JSON, which field ----

ROW = [5.1, 3.5, 1.4, 0.2]
ONE = split(["sl", "sw", "pl", "pw"], ROW)

ask("iris", "one row", ONE)
ask("iris", "three rows", split(["sl", "sw", "pl", "pw"], ROW, [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]))
ask("iris", "no rows", split(["sl", "sw", "pl", "pw"]))
ask("iris", "charset utf-8", ONE, "application/json; charset=utf-8")
ask("iris", "charset UTF-8 in capitals", ONE, "application/json;charset=UTF-8")
ask("iris", "charset latin-1", ONE, "application/json; charset=latin-1")
ask("iris", "content type parameter", ONE, "application/json; format=pandas-split")
ask("iris", "content type text/plain", ONE, "text/plain")
ask("iris", "content type in capitals", ONE, "Application/JSON")
ask("iris", "not JSON", "{ not json")
ask("iris", "empty body", "")
ask("iris", "trailing characters", '{"inputs": [1]} x')
ask("iris", "single quotes", "{'inputs': [1]}")
ask("iris", "leading zero", '{"inputs": [01]}')
ask("iris", "trailing comma", '{"inputs": [1,]}')
ask("iris", "control character in a string", '{"inputs": "a\tb"}')
ask("iris", "not UTF-8", b'{"inputs": "\xff\xfe"}')
ask("iris", "a byte order mark", b"\xef\xbb\xbf" + b'{"inputs": {"sl": [1.0], "sw": [1.0], "pl": [1.0], "pw": [1.0]}}')
ask("iris", "a JSON list", [ROW])
ask("iris", "a JSON string", '"text"')
ask("iris", "a JSON number", "5")
ask("iris", "JSON null", "null")
ask("iris", "no input field", {"data": [ROW]})
ask("iris", "empty object", {})
ask("iris", "two input fields", {**ONE, "inputs": [ROW]})
ask("iris", "unknown keys beside the input", {**ONE, "client_request_id": "r1", "usage_context": {"a": 1}, "foo": 3})
ask("iris", "signature_name beside instances", {"instances": [dict(zip(["sl", "sw", "pl", "pw"], ROW))],
                                               "signature_name": "serving_default"})
ask("iris", "params without a schema", {**ONE, "params": {"n": 1}})
ask("iris", "params that are a list, without a schema", {**ONE, "params": [1]})
ask("iris", "duplicate key, the last counts",
    '{"dataframe_records": [{"sl": 9.0, "sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2}]}')
ask("iris", "escaped column name",
    '{"dataframe_records": [{"\\u0073l": 5.1, "sw": 3.5, "pl": 1.4, "pw": 2e-1}]}')

# ---- unified language-model fields ----

ask("iris", "messages", {"messages": [{"role": "user", "content": "hello"}]})
ask("iris", "prompt", {"prompt": "hello"})
ask("iris", "input", {"input": ["a", "b"]})
ask("iris", "input beside a dataframe", {"input": 5, **ONE})
ask("iris", "columns beside input", {"input": 5, "sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2})
ask("iris", "column lists beside input", {"input": [1, 2], "sl": [5.1, 5.2], "sw": [3.5, 3.5], "pl": [1.4, 1.5],
                                         "pw": [0.2, 0.3]})
ask("iris", "column lists of unequal length beside input", {"input": [1, 2], "sl": [5.1], "sw": [3.5, 3.5],
                                                           "pl": [1.4, 1.5], "pw": [0.2, 0.3]})
ask("prompted", "a column called prompt", {"prompt": 1.5, "b": 2})
ask("prompted", "a column called prompt, as lists", {"prompt": [1.5, 2.5], "b": [2, 3]})
ask("prompted", "a column called prompt, as text", {"prompt": "x", "b": 2})
ask("bare", "messages without a signature", {"messages": [{"role": "user", "content": "hello"}]})
ask("bare", "the graph's input among the keys", {"input": 1, "x": [[1.0, 2.0]]})
ask("tensor", "prompt to a tensor model", {"prompt": "hello"})
ask("tensor_named", "prompt to a named tensor model", {"prompt": "hello", "x": [[1.0, 2.0]]})

# ---- dataframe_split ----

ask("iris", "split, other order", split(["pw", "pl", "sw", "sl"], ROW[::-1]))
ask("iris", "split, extra columns", split(["id", "pw", "pl", "sw", "sl", "note"], [7, 0.2, 1.4, 3.5, 5.1, "x"]))
ask("iris", "split, a missing column", split(["sl", "sw", "pl"], ROW[:3]))
ask("iris", "split, a missing and an extra column", split(["sl", "sw", "pl", "zz"], ROW))
ask("iris", "split, two missing columns", split(["sw", "pl"], ROW[:2]))
ask("iris", "split, with index", split(["sl", "sw", "pl", "pw"], ROW, index=[17]))
ask("iris", "split, index of another length", split(["sl", "sw", "pl", "pw"], ROW, index=[0, 1]))
ask("iris", "split, index null", split(["sl", "sw", "pl", "pw"], ROW, index=None))
ask("iris", "split, without columns", {"dataframe_split": {"data": [ROW]}})
ask("iris", "split, without data", {"dataframe_split": {"columns": ["sl"]}})
ask("iris", "split, another key", split(["sl", "sw", "pl", "pw"], ROW, dtype="float"))
ask("iris", "split in a list", {"dataframe_split": [ONE["dataframe_split"]]})
ask("iris", "split, a string", {"dataframe_split": "abc"})
ask("iris", "split, null", {"dataframe_split": None})
ask("iris", "split, more values than columns", split(["sl", "sw", "pl", "pw"], ROW + [1.0]))
ask("iris", "split, fewer values than columns", split(["sl", "sw", "pl", "pw"], ROW[:3]))
ask("iris", "split, a short second row", split(["sl", "sw", "pl", "pw"], ROW, ROW[:2]))
ask("iris", "split, rows are numbers", {"dataframe_split": {"columns": ["sl"], "data": [1.0, 2.0]}})
ask("single", "split, rows are numbers, one column", {"dataframe_split": {"columns": ["x"], "data": [1.0, 2.0]}})
ask("iris", "split, rows are objects", {"dataframe_split": {"columns": ["sl", "sw", "pl", "pw"],
                                                           "data": [dict(zip(["sl", "sw", "pl", "pw"], ROW))]}})
ask("iris", "split, data is an object", {"dataframe_split": {"columns": ["sl", "sw", "pl", "pw"],
                                                            "data": {"sl": [1.0], "sw": [2], "pl": [3], "pw": [4]}}})
ask("iris", "split, data is a number", {"dataframe_split": {"columns": ["sl"], "data": 5}})
ask("iris", "split, data is null", {"dataframe_split": {"columns": ["sl", "sw", "pl", "pw"], "data": None}})
ask("iris", "split, columns is a string", {"dataframe_split": {"columns": "sl", "data": [ROW]}})
ask("iris", "split, the same column twice", split(["sl", "sw", "pl", "pw", "sl"], ROW + [9.0]))
ask("iris", "split, columns are numbers", split([0, 1, 2, 3], ROW))
ask("iris", "split, a row and then a number", {"dataframe_split": {"columns": ["sl", "sw", "pl", "pw"],
                                                                  "data": [ROW, 5]}})
ask("unnamed", "split, without columns", {"dataframe_split": {"data": [[1.5, 2.5]]}})
ask("unnamed", "split, any names", split(["b", "a"], [1.5, 2.5]))
ask("unnamed", "split, extra columns", split(["a", "b", "c"], [1.5, 2.5, 3.5]))
ask("unnamed", "split, too few columns", split(["a"], [1.5]))
ask("unnamed", "split, strings that are numbers", split(["a", "b"], ["1.5", "2.5"]))

# ---- dataframe_records ----

ask("iris", "records", records(dict(zip(["pw", "pl", "sw", "sl"], ROW[::-1]))))
ask("iris", "records, keys in another order", records({"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2},
                                                      {"pw": 0.3, "sl": 4.7, "sw": 3.1, "pl": 1.5}))
ask("iris", "records, a key missing in one", records({"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2},
                                                     {"sl": 4.7, "sw": 3.1, "pl": 1.5}))
ask("iris", "records, a key missing in the first", records({"sl": 5.1, "sw": 3.5, "pl": 1.4},
                                                           {"sl": 4.7, "sw": 3.1, "pl": 1.5, "pw": 0.3}))
ask("iris", "records, a key missing in all", records({"sl": 5.1, "sw": 3.5, "pl": 1.4}))
ask("iris", "records, an object", {"dataframe_records": {"sl": [5.1]}})
ask("iris", "records, a number", {"dataframe_records": 5})
ask("iris", "records, empty", {"dataframe_records": []})
ask("iris", "records, lists", {"dataframe_records": [ROW]})
ask("unnamed", "records, lists", {"dataframe_records": [[1.5, 2.5], [3, 4]]})
ask("unnamed", "records", records({"a": 1, "b": 2.5}, {"a": 3, "b": 4}))
ask("unnamed", "records, numbers", {"dataframe_records": [1, 2]})
ask("iris", "records, an object and then a number", {"dataframe_records": [{"sl": 5.1}, 5]})
ask("iris", "records, null among them", {"dataframe_records": [{"sl": 5.1}, None]})

# ---- inputs and instances against column signatures ----

NAMED = {"sl": [5.1, 4.9], "sw": [3.5, 3.0], "pl": [1.4, 1.4], "pw": [0.2, 0.2]}
ask("iris", "inputs, columns", {"inputs": NAMED})
ask("iris", "inputs, columns and an extra", {"inputs": {**NAMED, "note": ["a", "b"]}})
ask("iris", "inputs, columns and an extra number", {"inputs": {**NAMED, "note": 5}})
ask("iris", "inputs, a missing column", {"inputs": {k: v for k, v in NAMED.items() if k != "pw"}})
ask("iris", "inputs, unequal lengths", {"inputs": {**NAMED, "pw": [0.2]}})
ask("iris", "inputs, two-dimensional columns", {"inputs": {k: [v] for k, v in NAMED.items()}})
ask("iris", "inputs, scalars", {"inputs": {"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2}})
ask("iris", "inputs, a scalar beside lists", {"inputs": {**NAMED, "pw": 0.2}})
ask("iris", "inputs, objects", {"inputs": [dict(zip(["sl", "sw", "pl", "pw"], ROW))]})
ask("iris", "inputs, objects and an extra key", {"inputs": [{**dict(zip(["sl", "sw", "pl", "pw"], ROW)), "note": 1}]})
ask("iris", "inputs, objects and an extra list", {"inputs": [{**dict(zip(["sl", "sw", "pl", "pw"], ROW)), "note": [1]}]})
ask("iris", "inputs, objects, a key missing in one", {"inputs": [{"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2},
                                                                {"sl": 5.1, "sw": 3.5, "pl": 1.4}]})
ask("iris", "inputs, a nested list against names", {"inputs": [ROW]})
ask("iris", "inputs, a number", {"inputs": 5.0})
ask("iris", "inputs, text", {"inputs": "abc"})
ask("iris", "inputs, null", {"inputs": None})
ask("iris", "inputs, true", {"inputs": True})
ask("iris", "inputs, an empty list", {"inputs": []})
ask("iris", "inputs, an empty object", {"inputs": {}})
ask("iris", "inputs, text that is a number", {"inputs": {**NAMED, "pw": ["0.2", "0.3"]}})
ask("iris", "inputs, text that is no number", {"inputs": {**NAMED, "pw": ["a", "b"]}})
ask("iris", "inputs, null in a column", {"inputs": {**NAMED, "pw": [0.2, None]}})
ask("iris", "inputs, ragged column", {"inputs": {**NAMED, "pw": [0.2, [0.3]]}})
ask("iris", "inputs, an object as column", {"inputs": {**NAMED, "pw": {"a": 1}}})
ask("iris", "inputs, an object and then a list", {"inputs": [{"sl": 5.1}, [1.0]]})
ask("single", "inputs, a list for the one column", {"inputs": [1.0, 2.0]})
ask("single", "inputs, a number for the one column", {"inputs": 1.0})
ask("single", "inputs, rows for the one column", {"inputs": [[1.0], [2.0]]})
ask("single", "instances, a list for the one column", {"instances": [1.0, 2.0]})
ask("single", "split, NaN and infinities out", split(["x"], [0.0], [-1.0], [INF], [NAN], [1.0]))
ask("single", "split, null", split(["x"], [None], [1.0]))
ask("single", "split, all null", split(["x"], [None]))
ask("unnamed", "inputs, rows", {"inputs": [[1.5, 2.5], [3, 4]]})
ask("unnamed", "inputs, too few columns", {"inputs": [[1.5], [3]]})
ask("unnamed", "inputs, more columns", {"inputs": [[1.5, 2, 3]]})
ask("unnamed", "inputs, one dimension", {"inputs": [1.5, 2.5]})
ask("unnamed", "inputs, three dimensions", {"inputs": [[[1.5, 2.5]]]})
ask("unnamed", "inputs, an object", {"inputs": {"a": [1.5], "b": [2.5]}})
ask("unnamed", "inputs, objects", {"inputs": [{"a": 1.5, "b": 2.5}]})
ask("unnamed", "inputs, ragged", {"inputs": [[1.5, 2.5], [3]]})
ask("unnamed", "inputs, text", {"inputs": [["1.5", "2.5"]]})
ask("unnamed", "instances, rows", {"instances": [[1.5, 2.5], [3, 4]]})
ask("unnamed", "instances, objects", {"instances": [{"a": 1.5, "b": 2.5}]})
ask("unnamed_mixed", "inputs, rows", {"inputs": [[3, 4.5]]})
ask("unnamed_mixed", "inputs, rows of zero and one", {"inputs": [[1, 0.5]]})
ask("unnamed_mixed", "split, floats", {"dataframe_split": {"data": [[3.9, 4.5]]}})
ask("iris", "instances, objects", {"instances": [{"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2},
                                                {"sl": 4.7, "sw": 3.1, "pl": 1.5, "pw": 0.3}]})
ask("iris", "instances, a key missing in one", {"instances": [{"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2},
                                                             {"sl": 4.7, "sw": 3.1, "pl": 1.5}]})
ask("iris", "instances, an extra key in one", {"instances": [{"sl": 5.1, "sw": 3.5, "pl": 1.4, "pw": 0.2, "note": 1},
                                                            {"sl": 4.7, "sw": 3.1, "pl": 1.5, "pw": 0.2}]})
ask("iris", "instances, a missing key", {"instances": [{"sl": 5.1}]})
ask("iris", "instances, a nested list", {"instances": [ROW]})
ask("iris", "instances, an object and then a list", {"instances": [{"sl": 5.1}, [1.0]]})
ask("iris", "instances, empty", {"instances": []})
ask("iris", "instances, an object", {"instances": NAMED})
ask("iris", "instances, an object of unequal lengths", {"instances": {**NAMED, "pw": [0.2]}})
ask("iris", "instances, text for a number", {"instances": [{"sl": "x", "sw": 3.5, "pl": 1.4, "pw": 0.2}]})

# ---- one type at a time ----

for kind, sends in {
    "ints": [1, 2], "floats": [1.9, -2.9], "text": ["5", " 6 "], "text of floats": ["5.5", "6"], "big": [2**31, 2**40],
    "bigger": [2**63, 2**64 - 1], "huge": [2**70, 1], "null": [None, 1], "all null": [None, None], "true": [True, False],
    "mixed true and number": [True, 2], "true and null": [True, None], "words": ["abc", "d"], "word and number": ["5", 6],
    "empty text": ["", "1"], "lists": [[1], [2]], "objects": [{"a": 1}, {"a": 2}], "NaN": [NAN, 1.0], "Infinity": [INF, 1.0],
    "big float": [3e9, 1.5], "exponent text": ["1e2", "2"], "underscore text": ["1_0", "2"], "nan text": ["nan", "inf"],
    "text and null": ["5", None], "tiny": [1e-5, 1e-310], "float overflow": [1e39, -1e39], "zero and one": [0, 1],
    "negative zero": [-0.0, 0.0], "false text": ["False", "0"], "long literal": [0.1000000000000000055511151231257827, 16777217],
}.items():
    for model in ("longs", "integers", "floats", "flags", "unnamed"):
        ask(model, f"split, {kind}", split(["p", "q"], sends, sends))
        ask(model, f"split, {kind} below each other", split(["p", "q"], *([v, v] for v in sends)))
        ask(model, f"inputs, {kind}", {"inputs": [[v for v in sends]] if model == "unnamed" else
                                       {"p": sends, "q": sends}})
    ask("tensor_rows", f"inputs, {kind}", {"inputs": [sends]})
    ask("tensor_pair", f"inputs, {kind}", {"inputs": {"a": [[1, 2], [3, 4]], "b": sends}})
    ask("bare", f"split, {kind}", split(["p", "q"], sends, sends))
    ask("bare", f"split, {kind} below each other", split(["p", "q"], *([v, v] for v in sends)))
    ask("tensor_rows", f"split, {kind} below each other", split(["p", "q"], *([v, v] for v in sends)))
    ask("bare_double", f"split, {kind}", split(["p", "q"], sends, sends))
    ask("bare_double", f"inputs, {kind}", {"inputs": [sends]})
    ask("small_types", f"inputs, {kind}", {"inputs": {"flag": sends, "tiny": sends, "byte": [[1, 2], [3, 4]],
                                                     "half": [1, 2]}})
    ask("small_types", f"inputs to float16, {kind}", {"inputs": {"flag": [0, 1], "tiny": [1, -2], "byte": [[1, 2], [3, 4]],
                                                               "half": sends}})
for model in ("longs", "integers", "floats", "flags"):
    ask(model, "inputs, objects", {"inputs": [{"p": 1, "q": 0}, {"p": 1, "q": 1}]})
    ask(model, "inputs, objects, larger", {"inputs": [{"p": 3, "q": 4}]})
    ask(model, "inputs, scalars", {"inputs": {"p": 1, "q": 0}})
    ask(model, "inputs, larger scalars", {"inputs": {"p": 7, "q": 0}})
    ask(model, "instances, objects", {"instances": [{"p": 3, "q": 4}, {"p": 5, "q": 6.5}]})
    ask(model, "records, text", records({"p": "3", "q": "4"}))
    ask(model, "records, a key missing in one", records({"p": 3, "q": 4}, {"p": 5}))
    ask(model, "inputs, objects, a key missing in one", {"inputs": [{"p": 3, "q": 4}, {"p": 5}]})
ask("flag_and_number", "bool and float columns", split(["p", "q"], [True, 2.5]))
ask("text", "a string column to the graph", split(["p", "q"], [1.5, "x"]))
ask("text", "numbers for the string column", split(["p", "q"], [1.5, 2.5]))
ask("text", "the string column through inputs", {"inputs": {"p": [1.5], "q": ["x"]}})
ask("optional", "with the optional column", split(["p", "q"], [1.5, 2.5]))
ask("optional", "without the optional column", split(["p"], [1.5]))
ask("optional", "null in the optional column", split(["p", "q"], [1.5, None]))

ROWS = {"flag": [True, False], "n": [1, 2], "big": [2**40, -1], "f": [0.1, 2.5], "d": [0.1, 1e300]}


def mixed(**more):
    """Two good rows as records, with some columns replaced or added."""
    columns = {**ROWS, **more}
    return records(*({k: v[i] for k, v in columns.items()} for i in range(2)))


ask("mixed", "records", mixed())
ask("mixed", "inputs", {"inputs": ROWS})
ask("mixed", "inputs, objects", {"inputs": mixed()["dataframe_records"]})
ask("mixed", "instances", {"instances": mixed()["dataframe_records"]})
ask("mixed", "a fraction for an integer", mixed(n=[1.5, 2.5]))
ask("mixed", "three thousand million for int32", mixed(n=[3000000000, 1]))
ask("mixed", "text for a double", mixed(d=["5.1", "6"]))
ask("mixed", "a word for a double", mixed(d=["x", "6"]))
ask("mixed", "text for a boolean", mixed(flag=["false", ""]))
ask("mixed", "numbers for a boolean", mixed(flag=[0, 2]))
ask("mixed", "null for a boolean", mixed(flag=[None, True]))
ask("mixed", "null for an integer", mixed(n=[None, 1]))
ask("mixed", "null for a double", mixed(d=[None, 1]))
ask("mixed", "text", mixed(s=["a", "b"]))
ask("mixed", "numbers for text", mixed(s=[1, 2.5]))
ask("mixed", "a list for text", mixed(s=[[1], "b"]))
ask("mixed", "text with null", mixed(s=["a", None]))
ask("mixed", "base64", mixed(blob=["aGVsbG8=", ""]))
ask("mixed", "lenient base64", mixed(blob=["!!!", "a G V s"]))
ask("mixed", "base64 of a wrong length", mixed(blob=["abc", ""]))
ask("mixed", "base64 of one letter", mixed(blob=["a", ""]))
ask("mixed", "base64 with padding inside", mixed(blob=["YQ==YQ", "YQ="]))
ask("mixed", "base64 that ends early", mixed(blob=["YQ==!", "YQ==YQ"]))
ask("mixed", "a number for base64", mixed(blob=[5, "aGVsbG8="]))
ask("mixed", "null for base64", mixed(blob=[None, "aGVsbG8="]))
ask("mixed", "text for bytes through inputs", {"inputs": {**ROWS, "blob": ["aGVsbG8=", "x"]}})
ask("mixed", "accents for bytes through inputs", {"inputs": {**ROWS, "blob": ["h\u00e9", "x"]}})
for label, dates in {
    "dates": ["2024-01-31", "2024-02-29"], "times": ["2024-01-31T10:00:00", "2024-02-01T11:30:15"],
    "times with space": ["2024-01-31 10:00:00", "2024-02-01 11:30:15"],
    "fractions": ["2024-01-31T10:00:00.123", "2024-02-01T11:30:15.5"],
    "UTC": ["2024-01-31T10:00:00Z", "2024-02-01T11:30:15Z"],
    "offsets": ["2024-01-31T10:00:00+02:00", "2024-02-01T11:30:15+02:00"],
    "a word": ["soon", "later"], "an impossible day": ["2024-02-30", "2024-02-01"], "null": [None, "2024-02-01"],
    "all null": [None, None], "number": [0, 1700000000000000000], "month only": ["2024-01", "2024-02"],
    "mixed forms": ["2024-01-31", "2024-02-01T11:30:15"], "empty text": ["", "2024-02-01"], "true": [True, False],
    "a list": [["2024-01-31"], ["2024-01-31"]], "compact": ["20240131", "20240201"], "minutes": ["2024-01-31T10:00", "2024-02-01 11:30"],
}.items():
    ask("mixed", f"datetime, {label}", mixed(when=dates))
    ask("mixed", f"datetime through inputs, {label}", {"inputs": {**ROWS, "when": dates}})

GOOD = {"x": 1.5, "k": 2, "arr": [1.0, 2.5]}
for label, change in {
    "as it should be": {}, "ints in the array": {"arr": [1, 2]}, "zero and one in the array": {"arr": [0, 1]},
    "text in the array": {"arr": ["a"]},
    "text that is a number in the array": {"arr": ["1"]}, "an empty array": {"arr": []}, "null for the array": {"arr": None},
    "a number for the array": {"arr": 5}, "null in the array": {"arr": [1.5, None]}, "a list in the array": {"arr": [[1.0]]},
    "an object": {"obj": {"name": "a"}}, "an object with its option": {"obj": {"name": "a", "age": 3}},
    "an unknown property": {"obj": {"name": "a", "size": 3}}, "a missing property": {"obj": {"age": 3}},
    "a wrong property": {"obj": {"name": "a", "age": "old"}}, "null for an optional property": {"obj": {"name": "a", "age": None}},
    "a list for the object": {"obj": [1]}, "null for the object": {"obj": None}, "an empty object": {"obj": {}},
    "a number for text in the object": {"obj": {"name": 5}}, "null for text in the object": {"obj": {"name": None}},
    "a map": {"counts": {"a": 1, "b": 2}}, "text in the map": {"counts": {"a": "x"}}, "a list for the map": {"counts": [1]},
    "an empty map": {"counts": {}}, "anything": {"anything": {"a": [1, None, "x"]}}, "anything null": {"anything": None},
    "arrays of arrays": {"words": [["a"], ["b", "c"]]}, "numbers in arrays of arrays": {"words": [[1]]},
    "a flat list for arrays of arrays": {"words": ["a"]}, "float in the map": {"counts": {"a": 1.5}},
    "true in the array": {"arr": [True]}, "big numbers in the array": {"arr": [2**70]},
    "a missing array": {"arr": ...},
}.items():
    row = {k: v for k, v in {**GOOD, **change}.items() if v is not ...}
    ask("nested", f"records, {label}", records(row))
    ask("nested", f"inputs, {label}", {"inputs": row})
    ask("nested", f"instances, {label}", {"instances": [row]})
ask("nested", "records, two rows", records(GOOD, {**GOOD, "k": 5, "obj": {"name": "b"}}))
ask("nested", "inputs, objects", {"inputs": [GOOD, {**GOOD, "k": 5}]})
ask("nested", "split", split(["x", "k", "arr"], [1.5, 2, [1.5]]))

# ---- CSV ----

ask("iris", "CSV", "sl,sw,pl,pw\n5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n", CSV)
ask("iris", "CSV, other order and an extra column", "note,pw,pl,sw,sl\nx,0.2,1.4,3.5,5.1\n", CSV)
ask("iris", "CSV, quotes", '"sl","sw","pl","pw"\r\n"5.1","3.5","1.4","0.2"\r\n', CSV)
ask("iris", "CSV, no newline at the end", "sl,sw,pl,pw\n5.1,3.5,1.4,0.2", CSV)
ask("iris", "CSV, a blank line", "sl,sw,pl,pw\n\n5.1,3.5,1.4,0.2\n\n", CSV)
ask("iris", "CSV, an empty field", "sl,sw,pl,pw\n5.1,,1.4,0.2\n", CSV)
ask("iris", "CSV, NA and inf", "sl,sw,pl,pw\nNA,inf,-inf,nan\n", CSV)
ask("iris", "CSV, a word", "sl,sw,pl,pw\nabc,3.5,1.4,0.2\n", CSV)
ask("iris", "CSV, a missing column", "sl,sw,pl\n5.1,3.5,1.4\n", CSV)
ask("iris", "CSV, a short row", "sl,sw,pl,pw\n5.1,3.5\n", CSV)
ask("iris", "CSV, a long second row", "sl,sw,pl,pw\n5.1,3.5,1.4,0.2\n1,2,3,4,5\n", CSV)
ask("iris", "CSV, empty", "", CSV)
ask("iris", "CSV, header only", "sl,sw,pl,pw\n", CSV)
ask("iris", "CSV, not UTF-8", b"sl,sw,pl,pw\n\xff,1,1,1\n", CSV)
ask("iris", "CSV, an open quote", 'sl,sw,pl,pw\n"5.1,3.5,1.4,0.2\n', CSV)
ask("iris", "CSV, spaces", "sl,sw,pl,pw\n 5.1, 3.5,1.4 ,0.2\n", CSV)
ask("iris", "CSV, spaces in the header", "sl, sw, pl, pw\n5.1,3.5,1.4,0.2\n", CSV)
ask("unnamed", "CSV", "a,b\n1,2.5\n", CSV)
ask("unnamed", "CSV, more columns", "a,b,c\n1,2.5,x\n", CSV)
ask("longs", "CSV", "p,q\n1,2\n9007199254740993,4\n", CSV)
ask("longs", "CSV, a fraction", "p,q\n1.5,2\n", CSV)
ask("longs", "CSV, whole floats", "p,q\n1.0,2.0\n", CSV)
ask("longs", "CSV, an empty field", "p,q\n1,\n", CSV)
ask("integers", "CSV", "p,q\n1,2\n", CSV)
ask("integers", "CSV, too large", "p,q\n3000000000,2\n", CSV)
ask("flags", "CSV", "p,q\nTrue,false\nTRUE,False\n", CSV)
ask("flags", "CSV, numbers", "p,q\n1,0\n", CSV)
ask("flags", "CSV, an empty field", "p,q\nTrue,\n", CSV)
ask("floats", "CSV", "p,q\n0.1,2\n", CSV)
ask("mixed", "CSV", "flag,n,big,f,d,s\nTrue,1,2,0.5,0.25,x\n", CSV)
ask("mixed", "CSV, a datetime column", "flag,n,big,f,d,when\nTrue,1,2,0.5,0.25,2024-01-01\n", CSV)
ask("nested", "CSV against nested columns", 'x,k,arr\n1.5,2,"[1.0]"\n', CSV)
ask("tensor_rows", "CSV against a tensor", "p,q\n1.0,2.0\n", CSV)
ask("bare", "CSV without a signature", "p,q\n1.0,2.5\n", CSV)
ask("bare", "CSV without a signature, ints", "p,q\n1,2\n", CSV)
ask("bare", "CSV without a signature, a word", "p,q\n1.5,x\n", CSV)
ask("params", "CSV with params in the schema", "p,q\n1.0,2.0\n", CSV)
ask("iris", "parquet that is none", b"not parquet", PARQUET)

# ---- tensors ----

SQUARE = [[1.0, 2.0], [3.0, 4.0]]
ask("tensor", "inputs", {"inputs": [SQUARE]})
ask("tensor", "instances", {"instances": [SQUARE, SQUARE]})
ask("tensor", "inputs, ints", {"inputs": [[[1, 2], [3, 4]]]})
ask("tensor", "inputs, wrong rank", {"inputs": SQUARE})
ask("tensor", "inputs, wrong size", {"inputs": [[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]]})
ask("tensor", "inputs, ragged", {"inputs": [[[1.0, 2.0], [3.0]]]})
ask("tensor", "inputs, a number", {"inputs": 5})
ask("tensor", "inputs, text", {"inputs": "abc"})
ask("tensor", "inputs, null", {"inputs": None})
ask("tensor", "inputs, an object", {"inputs": {"x": [SQUARE]}})
ask("tensor", "inputs, objects", {"inputs": [{"x": SQUARE}]})
ask("tensor", "instances, objects", {"instances": [{"x": SQUARE}]})
ask("tensor", "instances, an object", {"instances": {"x": [SQUARE]}})
ask("tensor", "inputs, empty", {"inputs": []})
ask("tensor", "inputs, an empty batch is not a shape", {"inputs": [[]]})
ask("tensor", "a dataframe of flat lists", split(["x"], [[1.0, 2.0, 3.0, 4.0]], [[5, 6, 7, 8]]))
ask("tensor", "a dataframe of short lists", split(["x"], [[1.0, 2.0, 3.0]]))
ask("tensor", "a dataframe of uneven lists", split(["x"], [[1.0, 2.0, 3.0, 4.0]], [[5.0]]))
ask("tensor", "a dataframe of eight where four are wanted", split(["x"], [[1, 2, 3, 4, 5, 6, 7, 8]]))
ask("tensor", "a dataframe of nested lists", split(["x"], [SQUARE]))
ask("tensor", "a dataframe of numbers", split(["x"], [1.0], [2.0]))
ask("tensor", "a dataframe of four columns", split("abcd", [1.0, 2.0, 3.0, 4.0]))
ask("tensor", "a dataframe of text", split(["x"], ["abc"]))
ask("tensor", "a dataframe of lists of text", split(["x"], [["1", "2", "3", "4"]]))
ask("tensor", "a dataframe of lists of words", split(["x"], [["a", "b", "c", "d"]]))
ask("tensor", "a dataframe of empty lists", split(["x"], [[]]))
ask("tensor", "a dataframe, list and then number", split(["x"], [[1.0, 2.0, 3.0, 4.0]], [5.0]))
ask("tensor", "a dataframe without rows", split(["x"]))
ask("tensor_rows", "a dataframe of two columns", split(["p", "q"], [1.0, 2.0], [3, 4]))
ask("tensor_rows", "a dataframe of three columns", split(["p", "q", "r"], [1.0, 2.0, 3.0]))
ask("tensor_rows", "a dataframe of two columns of text", split(["p", "q"], ["1.0", "2.0"]))
ask("tensor_rows", "a dataframe of two columns of words", split(["p", "q"], ["a", "b"]))
ask("tensor_rows", "a dataframe of one column of lists", split(["p"], [[1.0, 2.0]]))
ask("tensor_rows", "a dataframe with null", split(["p", "q"], [1.0, None]))
ask("tensor_rows", "records", records({"p": 1.0, "q": 2.0}))
ask("tensor_scalar", "inputs", {"inputs": [1.0, 2.0]})
ask("tensor_scalar", "a dataframe of one column", split(["p"], [1.0], [2.0]))
ask("tensor_scalar", "inputs, rows", {"inputs": [[1.0], [2.0]]})
ask("tensor_double", "inputs, cast to the graph's float", {"inputs": [[0.1, 2.0]]})
ask("tensor_named", "inputs, by name", {"inputs": {"x": [[1.0, 2.0]]}})
ask("tensor_named", "inputs, a list for the one input", {"inputs": [[1.0, 2.0]]})
ask("tensor_named", "instances, objects", {"instances": [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]})
ask("tensor_named", "instances, objects of unequal shape", {"instances": [{"x": [1.0, 2.0]}, {"x": [3.0]}]})
ask("tensor_named", "instances, a list for the one input", {"instances": [[1.0, 2.0]]})
ask("tensor_named", "inputs, objects", {"inputs": [{"x": [1.0, 2.0]}]})
ask("tensor_named", "inputs, a number", {"inputs": 5})
ask("tensor_named", "inputs, another name", {"inputs": {"y": [[1.0, 2.0]]}})
ask("tensor_named", "a dataframe", split(["x"], [[1.0, 2.0]]))
ask("tensor_named", "a dataframe of another name", split(["y"], [[1.0, 2.0]]))
ask("tensor_named", "a dataframe of numbers", split(["x"], [1.0]))
ask("tensor_misnamed", "a name that the graph has not", {"inputs": {"not_x": [[1.0, 2.0]]}})
PAIR = {"a": [[1.5, 2.5], [3.5, 4.5]], "b": [7, 8]}
ask("tensor_pair", "inputs", {"inputs": PAIR})
ask("tensor_pair", "inputs, floats for int64", {"inputs": {**PAIR, "b": [7.9, -8.9]}})
ask("tensor_pair", "inputs, a missing input", {"inputs": {"a": PAIR["a"]}})
ask("tensor_pair", "inputs, an extra input", {"inputs": {**PAIR, "c": [1, 2]}})
ask("tensor_pair", "inputs, a ragged extra input", {"inputs": {**PAIR, "c": [1, [2]]}})
ask("tensor_pair", "inputs, unequal lengths", {"inputs": {**PAIR, "b": [7]}})
ask("tensor_pair", "inputs, wrong rank", {"inputs": {**PAIR, "b": [[7]]}})
ask("tensor_pair", "inputs, a list", {"inputs": PAIR["a"]})
ask("tensor_pair", "inputs, a number for an input", {"inputs": {**PAIR, "b": 7}})
ask("tensor_pair", "inputs, an object for an input", {"inputs": {**PAIR, "b": {"c": 1}}})
ask("tensor_pair", "instances, objects", {"instances": [{"a": [1.5, 2.5], "b": 7}, {"a": [3.5, 4.5], "b": 8}]})
ask("tensor_pair", "instances, an object of unequal lengths", {"instances": {**PAIR, "b": [7, 8, 9]}})
ask("tensor_pair", "instances, a missing input in one", {"instances": [{"a": [1.5, 2.5], "b": 7}, {"a": [3.5, 4.5]}]})
ask("tensor_pair", "a dataframe", split(["a", "b"], [[1.5, 2.5], 7], [[3.5, 4.5], 8]))
ask("tensor_pair", "a dataframe, other order and an extra", split(["b", "c", "a"], [7, "x", [1.5, 2.5]]))
ask("tensor_pair", "a dataframe, a missing input", split(["a"], [[1.5, 2.5]]))
ask("tensor_pair_as_one", "one tensor to a graph of two inputs", {"inputs": [[1.0, 2.0]]})
ask("small_types", "inputs", {"inputs": {"flag": [True, False], "tiny": [-5, 7], "byte": [[1, 255], [0, 3]],
                                         "half": [0.1, -65504]}})
ask("small_types", "inputs, out of range", {"inputs": {"flag": [True], "tiny": [128], "byte": [[1, 255]], "half": [1]}})
ask("small_types", "inputs, negative byte", {"inputs": {"flag": [True], "tiny": [1], "byte": [[1, -1]], "half": [1]}})

# ---- what comes out ----

ask("labelled", "two outputs as records", split(["p", "q"], [1.5, 2.5], [3.0, 1.0]))
ask("labelled_uneven", "outputs of unequal length as records", split(["p", "q"], [1.5, 2.5]))
ask("total", "an output without axes", split(["p", "q"], [1.5, 2.5], [1.0, 2.0]))
ask("unnamed", "a square output as rows", {"dataframe_split": {"data": [[12.0, 17.1], [1.0, 3.0]]}})
ask("bare_double", "how numbers print", {"inputs": [[1e-5, 5e15], [5e-324, 1e22], [0.05, 123456789.125], [1e16, 1e15],
                                                   [0.00005, 0.0005], [1.7976931348623157e308, -1e308]]})

# ---- no signature ----

ask("bare", "split", split(["p", "q"], [1.5, 2.5]))
ask("bare", "split, ints", split(["p", "q"], [1, 2]))
ask("bare", "split, ints and floats", split(["p", "q"], [1, 2.5]))
ask("bare", "records", records({"p": 1.5, "q": 2.5}))
ask("bare", "inputs", {"inputs": [[1.5, 2.5]]})
ask("bare", "inputs, ints", {"inputs": [[1, 2]]})
ask("bare", "inputs, by name", {"inputs": {"x": [[1.5, 2.5]]}})
ask("bare", "inputs, another name", {"inputs": {"y": [[1.5, 2.5]]}})
ask("bare", "inputs, an extra name", {"inputs": {"x": [[1.5, 2.5]], "y": [1]}})
ask("bare", "inputs, objects", {"inputs": [{"x": [1.5, 2.5]}]})
ask("bare", "instances, objects", {"instances": [{"x": [1.5, 2.5]}]})
ask("bare", "instances, unequal lengths", {"instances": {"x": [[1.5, 2.5]], "y": [1, 2]}})
ask("bare", "inputs, wrong shape", {"inputs": [[1.5, 2.5, 3.5]]})
ask("bare", "inputs, ragged", {"inputs": [[1.5, 2.5], [1.5]]})
ask("bare", "inputs, empty", {"inputs": []})
ask("bare", "inputs, text", {"inputs": [["a", "b"]]})
ask("bare", "inputs, null inside", {"inputs": [[None, 1.5]]})
ask("bare", "inputs, true inside", {"inputs": [[True, 1.5]]})
ask("bare", "inputs, a number", {"inputs": 5.0})
ask("bare", "inputs, text", {"inputs": "abc"})
ask("bare", "inputs, null", {"inputs": None})
ask("bare", "split, wrong number of columns", split(["p"], [1.5]))
ask("bare", "params are ignored", {**split(["p", "q"], [1.5, 2.5]), "params": {"n": 1}})
ask("bare_pair", "split", split(["b", "a"], [1, 2.5]))
ask("bare_pair", "split, an extra column", split(["b", "a", "c"], [1, 2.5, "x"]))
ask("bare_pair", "split, a missing column", split(["a"], [2.5]))
ask("bare_pair", "split, a float for int64", split(["b", "a"], [1.5, 2.5]))
ask("bare_pair", "inputs", {"inputs": {"a": [1.5], "b": [2]}})
ask("bare_pair", "inputs, a list", {"inputs": [1.5]})
ask("bare_pair", "instances", {"instances": [{"a": 1.5, "b": 2}, {"a": 2.5, "b": 3}]})
ask("column_pair", "split", split(["b", "a"], [1, 2.5]))
ask("column_pair_rank_two", "split", split(["a", "b"], [1.5, 2.5], [3, 4]))

# ---- params ----

TWO = split(["p", "q"], [1.5, 2.5])
for label, params in {
    "none": {}, "null": None, "a list": [1], "a number": 5, "an unknown one": {"zz": 1}, "an int": {"n": 5},
    "a float for an int": {"n": 1.5}, "a whole float for an int": {"n": 1.0}, "text for an int": {"n": "5"},
    "true for an int": {"n": True}, "null for an int": {"n": None}, "a list for an int": {"n": [1]},
    "an int for a float": {"temperature": 1}, "text for a float": {"temperature": "hot"},
    "a double for a float": {"temperature": 0.1}, "an int for a double": {"ratio": 2}, "a float for a double": {"ratio": 0.5},
    "true for a double": {"ratio": True}, "a boolean": {"strict": True}, "an int for a boolean": {"strict": 1},
    "text": {"mode": "slow"}, "an int for text": {"mode": 5}, "a list of text": {"stop": ["a", "b"]},
    "an empty list of text": {"stop": []}, "text for a list of text": {"stop": "a"}, "numbers in a list of text": {"stop": [1]},
    "lists in a list of text": {"stop": [["a"]]}, "a date": {"since": "2024-05-06"}, "a time": {"since": "2024-05-06T07:08:09"},
    "a word for a date": {"since": "soon"}, "a number for a date": {"since": 5}, "an object": {"options": {"k": "a", "v": 1.5}},
    "an object without its option": {"options": {"k": "a"}}, "an unknown property": {"options": {"k": "a", "z": 1}},
    "a missing property": {"options": {"v": 1.5}}, "text for an object": {"options": "a"}, "two wrong ones": {"n": "a", "ratio": "b"},
    "a small integer": {"small": 7}, "a large integer": {"small": 2**40}, "a huge int": {"n": 2**70},
    "ragged lists": {"stop": [["a"], "b"]}, "an object in a list": {"stop": [{"a": 1}]},
}.items():
    ask("params", f"params, {label}", {**TWO, "params": params})
ask("params", "params missing", TWO)
ask("params", "params beside inputs", {"inputs": {"p": [1.5], "q": [2.5]}, "params": {"n": 3}})
ask("params", "a wrong parameter and a wrong row", {**split(["p"], [1.5]), "params": {"n": "x"}})
ask("params", "params beside prompt", {"prompt": 1, "p": 1.5, "q": 2.5, "n": 3})
ask("params", "a wrong one beside prompt", {"prompt": 1, "p": 1.5, "q": 2.5, "n": "x"})

# ---- where Tessera answers otherwise ----
# (model, name) -> (status, error_code or None for success, why)
ONE_TENSOR_MANY_INPUTS = "MLflow answers 500, which clients retry; the request is wrong, and stays so"
DIFFERENCES = {
    ("tensor_pair_as_one", "one tensor to a graph of two inputs"): (400, "BAD_REQUEST", ONE_TENSOR_MANY_INPUTS),
    ("bare_pair", "inputs, a list"): (400, "BAD_REQUEST", ONE_TENSOR_MANY_INPUTS),
    ("iris", "parquet that is none"): (415, None, "parquet is not supported: its reader would outweigh the component"),
    ("iris", "split, index of another length"): (
        400, "BAD_REQUEST", "pandas repeats a single row for each label; for two rows it refuses, as we do for one"),
    ("column_pair_rank_two", "split"): (
        200, None, "MLflow feeds a column as [N] to a graph that wants [N, 1], which is what converters make; we reshape"),
}
