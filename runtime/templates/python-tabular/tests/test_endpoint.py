"""What the endpoint does before and after the model, without a server:

    PYTHONPATH=src:.tessera/sdk/python-guest python -m unittest discover tests
"""

import unittest

import tessera_guest as tessera
from endpoint import predictions, rows_of


class Rows(unittest.TestCase):
    def test_rows_are_taken_as_they_are(self):
        self.assertEqual(rows_of({"rows": [[5.1, 3.5, 1.4, 0.2]]}), [[5.1, 3.5, 1.4, 0.2]])

    def test_what_is_no_row_is_named(self):
        for body, words in [({}, "give `rows`"), ({"rows": [[1, 2, 3, 4], [1]]}, "row 1 is not")]:
            with self.assertRaisesRegex(tessera.InvalidInput, words):
                rows_of(body)


class Predictions(unittest.TestCase):
    def test_the_class_gets_its_name_and_its_probability(self):
        named = predictions(["no", "yes"], [1, 0], [[0.2, 0.9], [0.8, 0.1]])
        self.assertEqual(named, [{"label": "yes", "probability": 0.8}, {"label": "no", "probability": 0.9}])


if __name__ == "__main__":
    unittest.main()
