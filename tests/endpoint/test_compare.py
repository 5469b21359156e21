"""The comparison notices every kind of difference, and nothing else: `python3 -m unittest discover tests/endpoint`."""

import copy
import unittest

from compare import STAMP, check_stamps, differences

ITEM = {
    "iata": {"S": "ZRH"},
    "n": {"N": "1.5"},
    "s": {"SS": ["a", "b"]},
    "m": {"M": {"l": {"L": [{"NULL": True}, {"B": b"\x00"}, {"NS": ["1", "2"]}]}}},
    STAMP: {"S": "019aaf3c2a770000.01.p.000102030405060708090a0b0c0d0e0f"},
}
WRITTEN = 0x019AAF3C2A77 / 1000


def changed(change):
    item = copy.deepcopy(ITEM)
    change(item)
    return {"ZRH": item}


class Differences(unittest.TestCase):
    def test_equal_values_in_other_spellings_agree(self):
        for change in (
            lambda item: item.update(n={"N": "1.50"}),
            lambda item: item.update(n={"N": "15E-1"}),
            lambda item: item.update(s={"SS": ["b", "a"]}),
            lambda item: item["m"]["M"]["l"]["L"].__setitem__(2, {"NS": ["2.0", "1"]}),
            lambda item: item.pop(STAMP),
        ):
            self.assertEqual(differences({"ZRH": ITEM}, changed(change)), [])

    def test_any_other_value_is_told(self):
        for change in (
            lambda item: item.update(n={"N": "1.5000000000000000000000000000000000001"}),
            lambda item: item.update(n={"S": "1.5"}),
            lambda item: item.update(s={"SS": ["a"]}),
            lambda item: item.update(s={"L": [{"S": "a"}, {"S": "b"}]}),
            lambda item: item["m"]["M"]["l"]["L"].reverse(),
            lambda item: item["m"]["M"]["l"]["L"].__setitem__(0, {"BOOL": True}),
            lambda item: item["m"]["M"]["l"]["L"].__setitem__(1, {"B": b""}),
            lambda item: item.pop("m"),
            lambda item: item.update(more={"S": ""}),
        ):
            self.assertEqual(len(differences({"ZRH": ITEM}, changed(change))), 1)

    def test_missing_and_additional_items_are_told(self):
        self.assertEqual(
            differences({"ZRH": ITEM}, {"BRN": ITEM}), ["ZRH: missing", "BRN: should not be there"]
        )


class Stamps(unittest.TestCase):
    def test_the_same_well_formed_stamps_pass(self):
        check_stamps([{"ZRH": ITEM}, {"ZRH": ITEM}], WRITTEN)

    def test_others_do_not(self):
        for change in (
            lambda item: item.pop(STAMP),
            lambda item: item.update({STAMP: {"N": "1"}}),
            lambda item: item.update({STAMP: {"S": ITEM[STAMP]["S"].replace(".p.", ".d.")}}),
            lambda item: item.update({STAMP: {"S": ITEM[STAMP]["S"].replace("2a77", "2a78")}}),
            lambda item: item.update({STAMP: {"S": ITEM[STAMP]["S"][:-1]}}),
        ):
            for held in ([{"ZRH": ITEM}, changed(change)], [changed(change), {"ZRH": ITEM}]):
                with self.assertRaises(AssertionError):
                    check_stamps(held, WRITTEN)

    def test_a_stamp_of_another_time_does_not(self):
        with self.assertRaises(AssertionError):
            check_stamps([{"ZRH": ITEM}], WRITTEN + 10)


if __name__ == "__main__":
    unittest.main()
